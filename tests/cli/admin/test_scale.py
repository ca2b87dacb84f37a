"""`aicli scale`: the simulation, as a table and as data."""

import json

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
