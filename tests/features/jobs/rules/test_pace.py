from features.jobs.rules.pace import Pace


def test_a_live_request_that_waits_halves_the_lines_until_there_are_none() -> None:
    pace = Pace()
    assert pace.look(slots=8, waits_live=False) == 16
    assert [pace.look(slots=8, waits_live=True) for _ in range(6)] == [8, 4, 2, 1, 0, 0]
    assert [pace.look(slots=8, waits_live=False) for _ in range(5)] == [1, 4, 9, 16, 16]


def test_without_slots_nothing_is_claimed_and_few_slots_have_lines_ahead() -> None:
    assert Pace().look(slots=0, waits_live=False) == 0
    assert Pace().look(slots=1, waits_live=False) == 5
    assert Pace().look(slots=10_000, waits_live=False) == 256
