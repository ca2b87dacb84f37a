"""Questions about the history are answered from the rows that fit, or refused with the way to ask."""

from datetime import UTC, datetime, timedelta

import pytest

from services.metrics.history import chart_lines, query_plan
from services.metrics.history.history_store import StoredPoint
from shared import errors
from shared.api.metrics import GetHistory, HistoryGrouping

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
KEEPS = {15: timedelta(hours=24), 60: timedelta(days=7), 3600: timedelta(days=730)}
NAME = "ai_platform_queue_depth"


def asked(ago: timedelta, step: int = 60, name: str = NAME) -> GetHistory:
    return GetHistory((name,), NOW - ago, NOW, step)


@pytest.mark.parametrize(
    ("ago", "step", "resolution"),
    [
        (timedelta(minutes=10), 15, 15),
        (timedelta(hours=1), 60, 60),
        (timedelta(hours=1), 90, 15),
        (timedelta(days=2), 210, 60),
        (timedelta(days=2), 300, 60),
        (timedelta(days=30), 3600, 3600),
        (timedelta(days=30), 5400, 3600),
        (timedelta(days=900), 86400, 3600),
    ],
)
def test_the_longest_rows_that_fit_and_are_there(ago: timedelta, step: int, resolution: int) -> None:
    assert query_plan.read(asked(ago, step), NOW, KEEPS).resolution == resolution


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (asked(timedelta(hours=1), 20), "multiple of 15"),
        (asked(timedelta(hours=1), 0), "multiple of 15"),
        (asked(timedelta(hours=-1)), "no past time"),
        (asked(timedelta(days=5)), "1000"),
        (asked(timedelta(hours=1), name="up"), "no history"),
        (asked(timedelta(hours=1), name=f"p0:{NAME}"), "unknown prefix"),
        (asked(timedelta(hours=1), name=f"p95:{NAME}"), "no history"),
        *(
            (GetHistory((NAME,), NOW - timedelta(hours=1), NOW, node=node), "not a node ID")
            for node in ("", "UABC", "U\0" + "A" * 54, "U" * 57)
        ),
        (GetHistory((), NOW - timedelta(hours=1), NOW), "1 to "),
        (GetHistory((NAME,), datetime(2026, 6, 1), NOW), "time zone"),  # noqa: DTZ001 - that is the mistake
        (GetHistory((NAME,), datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)), "no past time"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_hint(question: GetHistory, reason: str) -> None:
    with pytest.raises(errors.BadRequest, match=reason) as refused:
        query_plan.read(question, NOW, KEEPS)
    assert refused.value.hint


def test_a_node_is_read_by_what_the_history_has_of_its_id() -> None:
    asked_of = [GetHistory((NAME,), NOW - timedelta(hours=1), NOW, node=node) for node in (None, "U" + "A" * 55, "U" + "A" * 11)]
    assert [query_plan.read(each, NOW, KEEPS).node for each in asked_of] == [None, "UAAAAAAAAAAA", "UAAAAAAAAAAA"]


def test_the_hint_about_too_many_steps_works() -> None:
    with pytest.raises(errors.BadRequest) as refused:
        query_plan.read(asked(timedelta(days=5)), NOW, KEEPS)
    step = int(refused.value.hint.split()[-1])
    assert query_plan.read(asked(timedelta(days=5), step), NOW, KEEPS).steps <= 1000


def test_quantiles_lie_evenly_in_their_bucket() -> None:
    counts = [(0.1, 0.0), (0.5, 8.0), (1.0, 10.0), (float("inf"), 10.0)]
    assert chart_lines.quantile(0.5, counts) == pytest.approx(0.1 + 0.4 * 5 / 8)
    assert chart_lines.quantile(0.95, counts) == pytest.approx(0.875)
    assert chart_lines.quantile(0.99, [(1.0, 0.0), (float("inf"), 3.0)]) == 1.0
    assert chart_lines.quantile(0.5, [(1.0, 0.0), (float("inf"), 0.0)]) is None
    assert chart_lines.quantile(0.5, [(1.0, 3.0)]) is None


def test_too_many_lines_are_refused() -> None:
    question = query_plan.read(asked(timedelta(hours=1)), NOW, KEEPS)
    points = [StoredPoint("inference", f"n{number}", NAME, 0, 1, 1, 1, 1) for number in range(201)]
    with pytest.raises(errors.BadRequest, match="201 lines"):
        chart_lines.draw(question, [HistoryGrouping.NODE], points, {})
    (line,) = chart_lines.draw(question, [], points, {})
    assert line.values[0] == 201
