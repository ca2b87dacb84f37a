import pytest

from cli.stack import restarts
from cli.stack.restarts import History, RestartIn, StayDown


@pytest.mark.parametrize(
    ("crashes", "streak", "ran_seconds", "pause"),
    [
        pytest.param((), 0, 1, 1, id="the first crash costs a second"),
        pytest.param((900,), 1, 1, 2, id="the second costs two"),
        pytest.param((900, 920), 2, 1, 4, id="the pause doubles"),
        pytest.param((900, 920, 940), 3, 1, 8, id="the fourth costs eight"),
        pytest.param((750, 850), 6, 100, 30, id="it never waits longer than 30 s"),
        pytest.param((690, 695, 699, 700), 4, 299, 16, id="crashes of more than 5 minutes ago do not count"),
        pytest.param((650, 660, 680), 3, 300, 1, id="a run of 5 minutes starts the count anew"),
    ],
)
def test_a_crash_is_followed_by_a_pause(crashes: tuple[float, ...], streak: int, ran_seconds: float, pause: float) -> None:
    decision = restarts.decide(History(crashes, streak), status=1, hopeless_status=2, started_at=1000 - ran_seconds, now=1000)
    assert isinstance(decision, RestartIn)
    assert decision.seconds == pause


def test_the_fifth_crash_within_five_minutes_is_the_last() -> None:
    history, now, pauses = History(), 0.0, []
    while isinstance(decision := restarts.decide(history, status=-9, hopeless_status=None, started_at=now, now=now + 1), RestartIn):
        history, now = decision.history, now + 1 + decision.seconds
        pauses.append(decision.seconds)
    assert pauses == [1, 2, 4, 8]
    assert decision == StayDown("it ended 5 times within 5 minutes, last with signal 9")


def test_a_program_that_crashes_every_two_minutes_is_always_started_again() -> None:
    history, now = History(), 0.0
    for _ in range(50):
        decision = restarts.decide(history, status=1, hopeless_status=2, started_at=now, now=now + 120)
        assert isinstance(decision, RestartIn)
        assert decision.seconds <= 30
        history, now = decision.history, now + 120 + decision.seconds


def test_wrong_settings_are_not_tried_again() -> None:
    assert isinstance(restarts.decide(History(), status=2, hopeless_status=2, started_at=0, now=1), StayDown)


def test_history_stays_small() -> None:
    decision = restarts.decide(History(tuple(range(100))), status=1, hopeless_status=2, started_at=0, now=1000)
    assert isinstance(decision, RestartIn)
    assert decision.history.crashes == (1000,)
