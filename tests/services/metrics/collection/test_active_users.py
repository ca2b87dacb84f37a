from uuid import UUID

import pytest

from services.metrics.collection.active_users import HOUR, ActiveUserCounter
from shared.types import UserId

DAY = 24 * HOUR
ANN, BEN, CYD = (UserId(UUID(int=number)) for number in (1, 2, 3))


@pytest.mark.parametrize(
    ("seen", "now", "expected"),
    [
        pytest.param([], 0.0, {"1h": 0, "24h": 0, "7d": 0}, id="nobody"),
        pytest.param([(ANN, 0.0)], 0.0, {"1h": 1, "24h": 1, "7d": 1}, id="one, just now"),
        pytest.param([(ANN, 0.0), (ANN, 5.0)], 9.0, {"1h": 1, "24h": 1, "7d": 1}, id="a user counts once"),
        pytest.param([(ANN, 0.0), (BEN, HOUR)], 2 * HOUR, {"1h": 1, "24h": 2, "7d": 2}, id="one left the hour"),
        pytest.param([(ANN, 0.0)], 8 * DAY, {"1h": 0, "24h": 0, "7d": 0}, id="everybody left"),
        pytest.param([(ANN, 0.0), (BEN, DAY), (ANN, 2 * DAY)], 2 * DAY, {"1h": 1, "24h": 2, "7d": 2}, id="the last time counts"),
    ],
)
def test_count(seen: list[tuple[UserId, float]], now: float, expected: dict[str, int]) -> None:
    users = ActiveUserCounter()
    for user, at in seen:
        users.record(user, at)
    assert users.count(now) == expected


def test_users_beyond_the_longest_window_are_forgotten() -> None:
    users = ActiveUserCounter()
    users.record(ANN, 0.0)
    users.record(BEN, 7 * DAY)
    users.count(7 * DAY + 1)
    assert len(users) == 1


def test_memory_is_bounded_and_the_least_recent_user_is_dropped() -> None:
    users = ActiveUserCounter(limit=2)
    for at, user in enumerate([ANN, BEN, ANN, CYD]):
        users.record(user, float(at))
    assert len(users) == 2
    users.record(ANN, 9.0)
    assert users.count(9.0)["1h"] == 2
