from datetime import UTC, datetime
from uuid import UUID

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.metrics.collection import event_counters
from services.metrics.collection.event_counters import HOUR, ActiveUserCounter, EventCounters
from shared import telemetry
from shared.api import events
from shared.types import KeyId, ModelName, NodeId, RequestId, RequestStatus, UserId

NOW = datetime(2026, 1, 1, tzinfo=UTC)
USER = UserId(UUID(int=1))


def _completed(status: RequestStatus, model: str | None = "m", user: UserId | None = USER, tokens: int = 5) -> events.RequestCompleted:
    return events.RequestCompleted(
        at=NOW,
        request_id=RequestId(UUID(int=9)),
        user_id=user,
        model=None if model is None else ModelName(model),
        status=status,
        tokens=tokens,
        duration_ms=10,
    )


def _values(metrics: telemetry.Metrics, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.render())
        for sample in family.samples
        if sample.name == name
    }


def test_every_event_increments_its_counter() -> None:
    metrics = telemetry.Metrics("metrics")
    counted = EventCounters(metrics)
    for event in (
        events.UserRegistered(at=NOW, user_id=USER),
        events.KeyCreated(at=NOW, key_id=KeyId(UUID(int=2)), user_id=USER),
        events.KeyCreated(at=NOW, key_id=KeyId(UUID(int=3)), user_id=USER),
        events.KeyRevoked(at=NOW, key_id=KeyId(UUID(int=3)), user_id=USER),
        events.WorkerJoined(at=NOW, node=NodeId("U1"), models=()),
        events.WorkerLeft(at=NOW, node=NodeId("U1"), why="silent"),
        _completed(RequestStatus.SUCCESS),
    ):
        counted.count(event, 0.0)
    assert _values(metrics, "ai_platform_events_total") == {
        ("user.registered",): 1,
        ("key.created",): 2,
        ("key.revoked",): 1,
        ("worker.joined",): 1,
        ("worker.lost",): 1,
        ("request.completed",): 1,
    }


def test_completed_requests_count_by_status_and_model() -> None:
    metrics = telemetry.Metrics("metrics")
    counted = EventCounters(metrics)
    counted.count(_completed(RequestStatus.SUCCESS), 0.0)
    counted.count(_completed(RequestStatus.SUCCESS), 0.0)
    counted.count(_completed(RequestStatus.LIMITED, model=None, user=None, tokens=0), 0.0)
    counted.count(_completed(RequestStatus.ERROR, tokens=-7), 0.0)
    assert _values(metrics, "ai_platform_completed_requests_total") == {("m", "success"): 2, ("", "limited"): 1, ("m", "error"): 1}
    assert _values(metrics, "ai_platform_completed_tokens_total") == {("m",): 10, ("",): 0}


def test_active_users_follow_completed_requests() -> None:
    metrics = telemetry.Metrics("metrics")
    counted = EventCounters(metrics)
    counted.count(_completed(RequestStatus.SUCCESS), 0.0)
    counted.count(_completed(RequestStatus.ERROR, user=UserId(UUID(int=2))), 4000.0)
    counted.count(_completed(RequestStatus.LIMITED, user=None), 4000.0)
    counted.show_active_users(4000.0)
    assert _values(metrics, "ai_platform_active_users") == {("1h",): 1, ("24h",): 2, ("7d",): 2}


def test_unknown_model_names_create_no_series() -> None:
    metrics = telemetry.Metrics("metrics")
    counted = EventCounters(metrics)
    for number in range(event_counters.MAX_MODELS + 50):
        counted.count(_completed(RequestStatus.ERROR, model=f"m{number}"), 0.0)
    requests = _values(metrics, "ai_platform_completed_requests_total")
    assert len(requests) == event_counters.MAX_MODELS + 1
    assert requests[(event_counters.OTHER_MODELS, "error")] == 50


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
