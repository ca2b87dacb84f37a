"""`aicli scale`: pools, hook calls and the simulation."""

import json

from shared.api import metrics
from tests.cli.fake_mesh import Shell


def test_simulation_compares_the_advice_with_hpa_and_oracle(shell: Shell) -> None:
    result = shell("scale", "simulate", "--users", "1000")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line[:16].strip() for line in lines] == ["oracle", "advice", "HPA, GPU 70 %", "HPA, slots 70 %"]
    assert "1.00 × oracle" in lines[0]
    assert "p95 wait 0 s" in lines[1]


def test_simulation_is_data_for_programs_and_the_same_for_the_same_seed(shell: Shell) -> None:
    first, second, other = (shell("scale", "simulate", "--users", "100", "--seed", seed, "--json").stdout for seed in ("1", "1", "2"))
    assert first == second != other
    assert json.loads(first)["advice"]["p95_wait_seconds"] <= 5


def test_number_of_users_is_bounded(shell: Shell) -> None:
    assert shell("scale", "simulate", "--users", "5").exit_code == 2


def test_status_of_a_pool_without_fresh_data(shell: Shell) -> None:
    pool = metrics.PoolScaling(pool="l4", ready=2, wanted=3, reason="4 requests/s need 3", min=1, max=5)
    asked: list[metrics.GetScaling] = []

    def answer(request: metrics.GetScaling) -> metrics.Scaling:
        asked.append(request)
        return metrics.Scaling((pool,), problem="POOLS_FILE: line 4: min 6 is more than max 5")

    shell.mesh.answer(metrics.get_scaling, answer)
    result = shell("scale", "status", "--pool", "l4")
    assert result.exit_code == 0
    assert "no fresh data, so nothing changes; last: 4 requests/s need 3" in result.stdout
    assert "line 4" in result.stderr
    assert "No calls yet" not in shell("scale", "history", "--last", "7").stdout
    assert asked == [metrics.GetScaling("l4"), metrics.GetScaling(None, calls=7)]
