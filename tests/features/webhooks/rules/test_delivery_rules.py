"""What follows each attempt, as a table."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from features.webhooks.contract import EventType
from features.webhooks.rules import delivery_rules
from features.webhooks.rules.delivery_rules import PAUSES_SECONDS, Result

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "attempt", "retry_after", "result", "pause"),
    [
        (200, 1, "60", Result.DELIVERED, None),
        (299, 1, "", Result.DELIVERED, None),
        (301, 1, "", Result.FAILED, 5),
        (410, 1, "60", Result.GONE, None),
        (500, 1, "", Result.FAILED, 5),
        (None, 2, "", Result.UNREACHABLE, 300),
        (429, 1, "120", Result.FAILED, 120),
        (429, 1, "Sun, 29 Nov 2026 12:02:00 GMT", Result.FAILED, 120),
        (429, 1, "7200", Result.FAILED, 3600),
        (429, 1, "9" * 70, Result.FAILED, 3600),
        (429, 1, "-5", Result.FAILED, 5),
        (429, 1, "tomorrow", Result.FAILED, 5),
        (429, 5, "60", Result.FAILED, 18_000),
        (503, 9, "", Result.FAILED, 86_400),
        (503, 10, "60", Result.FAILED, None),
    ],
)
def test_the_verdict(status: int | None, attempt: int, retry_after: str, result: Result, pause: float | None) -> None:
    found = delivery_rules.judge(attempt, status, retry_after, NOW, is_test=False, draw=lambda: 0.5)
    assert (found.result, found.pause_seconds) == (result, pause)


def test_ids_of_events_stay_as_receivers_know_them() -> None:
    found = delivery_rules.derive_event_id(UUID(int=1), EventType.BATCH_COMPLETED, "batch_1")
    assert str(found) == "5f5b7886-3fbf-59ea-b6f4-815ccb6607bc"


def test_a_test_is_not_repeated() -> None:
    assert delivery_rules.judge(1, 500, "60", NOW, is_test=True).pause_seconds is None


@pytest.mark.parametrize("attempt", range(1, 10))
def test_jitter_is_a_tenth(attempt: int) -> None:
    low = delivery_rules.judge(attempt, 500, "", NOW, is_test=False, draw=lambda: 0.0).pause_seconds
    high = delivery_rules.judge(attempt, 500, "", NOW, is_test=False, draw=lambda: 1.0).pause_seconds
    assert low == pytest.approx(PAUSES_SECONDS[attempt - 1] * 0.9)
    assert high == pytest.approx(PAUSES_SECONDS[attempt - 1] * 1.1)
