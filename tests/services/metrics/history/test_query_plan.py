"""History queries are answered from matching rows, or refused with advice."""

import math
from datetime import UTC, datetime, timedelta

import pytest

from services.metrics.export import series
from services.metrics.history import chart_lines, query_plan
from services.metrics.history.history_store import StoredPoint
from shared import errors
from shared.api.metrics import GetHistory, HistoryGrouping

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
KEEPS = {15: timedelta(hours=24), 60: timedelta(days=7), 3600: timedelta(days=730)}
NAME = "ai_platform_queue_depth"


def request(ago: timedelta, step: int = 60, name: str = NAME) -> GetHistory:
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
def test_coarsest_available_resolution_is_chosen(ago: timedelta, step: int, resolution: int) -> None:
    assert query_plan.read(request(ago, step), NOW, KEEPS).resolution == resolution


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (request(timedelta(hours=1), 20), "multiple of 15"),
        (request(timedelta(hours=1), 0), "multiple of 15"),
        (request(timedelta(hours=-1)), "no past time"),
        (request(timedelta(days=5)), "1000"),
        (request(timedelta(hours=1), name="up"), "no history"),
        (request(timedelta(hours=1), name=f"p0:{NAME}"), "unknown prefix"),
        (request(timedelta(hours=1), name=f"p95:{NAME}"), "no history"),
        *(
            (GetHistory((NAME,), NOW - timedelta(hours=1), NOW, node=node), "not a node ID")
            for node in ("", "UABC", "U\0" + "A" * 54, "U" * 57)
        ),
        (GetHistory((), NOW - timedelta(hours=1), NOW), "1 to "),
        (GetHistory((NAME,), datetime(2026, 6, 1), NOW), "time zone"),  # noqa: DTZ001 - that is the mistake
        (GetHistory((NAME,), datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)), "no past time"),
    ],
)
def test_invalid_queries_are_refused_with_a_hint(question: GetHistory, reason: str) -> None:
    with pytest.raises(errors.BadRequest, match=reason) as refused:
        query_plan.read(question, NOW, KEEPS)
    assert refused.value.hint


def test_node_id_may_be_a_prefix() -> None:
    requests = [GetHistory((NAME,), NOW - timedelta(hours=1), NOW, node=node) for node in (None, "U" + "A" * 55, "U" + "A" * 11)]
    assert [query_plan.read(each, NOW, KEEPS).node for each in requests] == [None, "UAAAAAAAAAAA", "UAAAAAAAAAAA"]


def test_hint_for_too_many_steps_works() -> None:
    with pytest.raises(errors.BadRequest) as refused:
        query_plan.read(request(timedelta(days=5)), NOW, KEEPS)
    step = int(refused.value.hint.split()[-1])
    assert query_plan.read(request(timedelta(days=5), step), NOW, KEEPS).steps <= 1000


def test_quantiles_are_interpolated_within_their_bucket() -> None:
    counts = [(0.1, 0.0), (0.5, 8.0), (1.0, 10.0), (float("inf"), 10.0)]
    assert chart_lines.quantile_of(0.5, counts) == pytest.approx(0.1 + 0.4 * 5 / 8)
    assert chart_lines.quantile_of(0.95, counts) == pytest.approx(0.875)
    assert chart_lines.quantile_of(0.99, [(1.0, 0.0), (float("inf"), 3.0)]) == 1.0
    assert math.isnan(chart_lines.quantile_of(0.5, [(1.0, 0.0), (float("inf"), 0.0)]))
    assert math.isnan(chart_lines.quantile_of(0.5, [(1.0, 3.0)]))


def test_too_many_lines_are_refused() -> None:
    question = query_plan.read(request(timedelta(hours=1)), NOW, KEEPS)
    points = [StoredPoint("inference", f"n{number}", NAME, 0, 1, 1, 1, 1) for number in range(201)]
    with pytest.raises(errors.BadRequest, match="201 lines"):
        chart_lines.draw(question, [HistoryGrouping.NODE], points, {})
    (line,) = chart_lines.draw(question, [], points, {})
    assert line.values[0] == 201


def test_backslash_before_an_n_in_a_label_is_no_newline() -> None:
    question = query_plan.read(request(timedelta(hours=1)), NOW, KEEPS)
    label = 'C:\\new "models"'
    points = [StoredPoint("inference", "n", f'{NAME}{{model="{series.escape(label)}"}}', 0, 1, 1, 1, 1)]
    (line,) = chart_lines.draw(question, [HistoryGrouping.MODEL], points, {})
    assert line.labels == {"model": label}
