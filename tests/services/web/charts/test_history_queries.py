from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.metrics.history import kept_series, query_plan, rollup
from services.web.charts import history_queries
from services.web.charts.history_queries import HistoryQuery, HistorySpan
from shared.api import metrics

#: The default retention of the metrics service.
KEEPS = {rollup.RAW: timedelta(hours=24), rollup.MINUTE: timedelta(days=7), rollup.HOUR: timedelta(days=730)}
MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - Hypothesis takes its bounds without a zone


@given(MOMENTS, st.sampled_from(HistorySpan), st.sampled_from(HistoryQuery))
def test_metrics_service_keeps_the_requested_step(now: datetime, span: HistorySpan, question: HistoryQuery) -> None:
    sent = history_queries.make_request(question, span, now)
    understood = query_plan.read(sent, now, KEEPS)
    assert (understood.since, understood.step_seconds) == (sent.since, sent.step_seconds)
    assert 119 <= understood.steps <= 181
    # Now is in the last step or just after it, and the whole period is covered.
    assert abs(now - sent.until) <= timedelta(seconds=sent.step_seconds)
    assert (sent.until <= now) == (span is HistorySpan.HOUR)
    assert sent.until - sent.since == history_queries.STEPS[span].whole


@pytest.mark.parametrize("span", HistorySpan)
def test_columns_consist_of_whole_steps(span: HistorySpan) -> None:
    steps = history_queries.STEPS[span]
    assert steps.period % steps.step == timedelta(0)
    assert steps.whole % steps.period == timedelta(0)


def test_every_requested_series_is_stored() -> None:
    now = datetime(2026, 11, 20, 14, 5, tzinfo=UTC)
    for question in HistoryQuery:
        names = history_queries.make_request(question, HistorySpan.HOUR, now).names
        assert 1 <= len(names) <= metrics.MAX_NAMES
        for name in names:
            rest = name.rpartition(":")[2]
            assert rest in kept_series.BY_NAME or f"{rest}_bucket" in kept_series.BY_NAME, name


@pytest.mark.parametrize(
    ("machines", "of_one", "queries"),
    [
        (0, False, 5),
        (25, False, 5),
        (26, False, 12),
        (200, False, 12),
        (201, False, 9),
        (25, True, 3),
        (201, True, 3),
    ],
)
def test_first_queries_fit_into_the_responses(machines: int, of_one: bool, queries: int) -> None:
    plan = history_queries.plan(machines, of_one=of_one)
    assert len(plan) == len(set(plan)) == queries
    assert plan[0] is HistoryQuery.WHOLE
    assert (HistoryQuery.TOGETHER in plan) == (machines > metrics.MAX_LINES and not of_one)


@pytest.mark.parametrize("of_one", [False, True])
@pytest.mark.parametrize("machines", [0, 100, 1000])
def test_each_query_is_sent_once_at_most(machines: int, of_one: bool) -> None:
    seen: list[HistoryQuery] = []
    waiting = list(history_queries.plan(machines, of_one=of_one))
    while waiting:
        seen += waiting
        others = dict.fromkeys(other for each in waiting for other in history_queries.instead(each, of_one=of_one))
        waiting = [each for each in others if each not in seen]
    assert len(seen) == len(set(seen)) <= len(HistoryQuery)
    assert (HistoryQuery.TOGETHER in seen) == (not of_one)


def test_page_of_one_machine_queries_its_series_and_the_collection_times() -> None:
    node, now = "UAAAAAAAAAAA", datetime(2026, 11, 20, 14, 5, tzinfo=UTC)
    sent = {
        question: history_queries.make_request(question, HistorySpan.HOUR, now, node) for question in history_queries.plan(300, of_one=True)
    }
    assert {question: each.node for question, each in sent.items()} == {
        HistoryQuery.WHOLE: None, HistoryQuery.ROUND_TRIPS: node, HistoryQuery.MACHINES: node,
    }  # fmt: skip
    assert sent[HistoryQuery.WHOLE].names == (history_queries.MESH_SEEN,)
    assert history_queries.make_request(HistoryQuery.MACHINES, HistorySpan.HOUR, now).node is None


def test_invalid_span_is_the_last_hour() -> None:
    assert [history_queries.read_span(text) for text in ("", "<b>", "week")] == [HistorySpan.HOUR, HistorySpan.HOUR, HistorySpan.WEEK]
