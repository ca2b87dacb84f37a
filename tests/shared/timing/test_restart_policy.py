import pytest

from shared.timing import restart_policy
from shared.timing.restart_policy import GiveUp, RestartHistory, RestartIn


@pytest.mark.parametrize(
    ("crashes", "streak", "ran_seconds", "pause"),
    [
        pytest.param((), 0, 1, 1, id="the first crash costs a second"),
        pytest.param((900,), 1, 1, 2, id="the second costs two"),
        pytest.param((900, 920), 2, 1, 4, id="the pause doubles"),
        pytest.param((900, 920, 940), 3, 1, 8, id="the fourth costs eight"),
        pytest.param((750, 850), 6, 29, 30, id="it never waits longer than 30 s"),
        pytest.param((690, 695, 699, 700), 4, 29, 16, id="crashes of more than 5 minutes ago do not count"),
        pytest.param((750, 850, 950), 6, 30, 1, id="a program that ran well starts anew"),
    ],
)
def test_a_crash_is_followed_by_a_pause(crashes: tuple[float, ...], streak: int, ran_seconds: float, pause: float) -> None:
    decision = restart_policy.decide(RestartHistory(crashes, streak), started_at=1000 - ran_seconds, now=1000)
    assert isinstance(decision, RestartIn)
    assert decision.seconds == pause


def test_the_fifth_crash_within_five_minutes_is_the_last() -> None:
    history, now, pauses = RestartHistory(), 0.0, []
    while isinstance(decision := restart_policy.decide(history, started_at=now, now=now + 1), RestartIn):
        history, now = decision.history, now + 1 + decision.seconds
        pauses.append(decision.seconds)
    assert pauses == [1, 2, 4, 8]
    assert decision == GiveUp(5)


def test_a_crash_every_two_minutes_is_always_restarted() -> None:
    history, now = RestartHistory(), 0.0
    for _ in range(50):
        decision = restart_policy.decide(history, started_at=now, now=now + 120)
        assert isinstance(decision, RestartIn)
        assert decision.seconds == 1
        history, now = decision.history, now + 120 + decision.seconds


def test_the_history_stays_small() -> None:
    decision = restart_policy.decide(RestartHistory(tuple(range(100))), started_at=0, now=1000)
    assert isinstance(decision, RestartIn)
    assert decision.history.crashes == (1000,)
