import math

import pytest

from bench import contenders, rounds


def test_the_ratio_is_of_pairs_and_not_of_medians() -> None:
    # The machine is half as fast in the second round, for both.
    row = rounds.paired("ours", "tokens/s", [200.0, 90.0, 220.0], "theirs", [100.0, 50.0, 100.0], at_least=2.0)
    assert (row.value, row.rival_value) == (200.0, 100.0)
    assert row.ratio == pytest.approx(2.0)
    assert (row.claim, row.between) == ("ours", (1.8, 2.2))
    assert row.met


@pytest.mark.parametrize("others", [[0.0, 100.0, 100.0], [math.nan, 100.0, 100.0]], ids=["nothing", "no number"])
def test_a_round_without_a_figure_leaves_no_ratio(others: list[float]) -> None:
    row = rounds.paired("ours", "tokens/s", [200.0, 90.0, 220.0], "theirs", others, at_least=1.0)
    assert row.ratio is not None
    assert math.isnan(row.ratio)
    assert row.met is False


@pytest.mark.parametrize(
    ("at_most", "at_least", "met"),
    [
        pytest.param(1.1, None, True, id="little enough"),
        pytest.param(0.9, None, False, id="too much"),
        pytest.param(None, 1.0, True, id="just enough"),
        pytest.param(None, 1.01, False, id="too little"),
        pytest.param(None, None, None, id="for information"),
    ],
)
def test_a_target_is_met_or_not(at_most: float | None, at_least: float | None, met: bool | None) -> None:
    row = rounds.paired("ours", "ms", [5.0], "theirs", [5.0], at_most=at_most, at_least=at_least)
    assert row.met is met
    assert (row.target is None) == (met is None)


def test_everybody_goes_first_once() -> None:
    everyone: list[contenders.Contender] = [*contenders.everyone(), contenders.PythonServer()]
    firsts = [rounds.in_turn(everyone, number)[0] for number in range(len(everyone))]
    assert firsts == everyone
    assert all(set(rounds.in_turn(everyone, number)) == set(everyone) for number in range(5))
