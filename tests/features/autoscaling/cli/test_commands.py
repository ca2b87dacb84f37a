"""`aicli scale`: pools, hook calls and the simulation."""

import json
import subprocess
from subprocess import CompletedProcess

import pytest

from features.autoscaling import contract
from tests.cli.fake_mesh import Shell


def test_simulation_compares_the_advice_with_hpa_and_oracle(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    result = shell("scale", "simulate", "--users", "100", "--seed", "1", "--json")
    assert result.exit_code == 0, result.stderr
    days = json.loads(result.stdout)
    assert list(days) == ["oracle", "advice", "HPA, GPU 70 %", "HPA, slots 70 %"]
    assert days["advice"]["p95_wait_seconds"] <= 5
    # The same day for people: it takes some seconds to simulate.
    monkeypatch.setattr(subprocess, "run", lambda command, **_: CompletedProcess(command, 0, stdout=result.stdout.encode()))
    lines = shell("scale", "simulate", "--users", "100", "--seed", "1").stdout.splitlines()
    assert [line[:16].strip() for line in lines] == list(days)
    assert "1.00 × oracle" in lines[0]
    assert f"p95 wait {days['advice']['p95_wait_seconds']:.0f} s" in lines[1]


def test_number_of_users_is_bounded(shell: Shell) -> None:
    assert shell("scale", "simulate", "--users", "5").exit_code == 2


def test_status_of_a_pool_without_fresh_data(shell: Shell) -> None:
    pool = contract.PoolScaling(pool="l4", ready=2, wanted=3, reason="4 requests/s need 3", min=1, max=5)
    asked: list[contract.GetScaling] = []

    def answer(request: contract.GetScaling) -> contract.Scaling:
        asked.append(request)
        return contract.Scaling((pool,), problem="POOLS_FILE: line 4: min 6 is more than max 5")

    shell.mesh.answer(contract.get_scaling, answer)
    result = shell("scale", "status", "--pool", "l4")
    assert result.exit_code == 0
    assert "No data" in result.stdout
    assert "line 4" in result.stderr
    assert "No hook" not in shell("scale", "history", "--last", "7").stdout
    assert asked == [contract.GetScaling("l4"), contract.GetScaling(None, calls=7)]
