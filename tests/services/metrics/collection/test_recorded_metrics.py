"""What may be recorded and how. A refusal names the rule, and no node can use up the space of another."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.metrics.collection import recorded_metrics
from services.metrics.collection.recorded_metrics import REMEMBERED, RecordedMetricSet, RejectedRecords
from services.metrics.export import prometheus_merge
from shared import errors
from shared.api.metrics import RecordMetric

NOW = datetime(2026, 11, 21, tzinfo=UTC)
ME, OTHER = ("gateway", "UAAA"), ("inference", "UBBB")


def take(
    store: RecordedMetricSet,
    name: str,
    value: float,
    labels: Mapping[str, str] | None = None,
    reporter: recorded_metrics.MetricReporter = ME,
    **more: Any,
) -> None:
    store.record(RecordMetric(name, value, dict(labels or {}), **more), reporter, NOW)


def samples(store: RecordedMetricSet) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the samples as they appear in the mesh's metrics, without their node."""
    text = prometheus_merge.render(prometheus_merge.Merger({}).merge(store.sources()))
    return {
        (sample.name, frozenset((label, value) for label, value in sample.labels.items() if label not in ("service", "node"))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        pytest.param("custom_jobs_total", [1, 2.5], 3.5, id="a counter adds"),
        pytest.param("custom_queue_length", [7, 3], 3, id="anything else is set"),
        pytest.param("custom_temperature", [-3], -3, id="a gauge may be negative"),
        pytest.param("custom_load:ratio", [0.5], 0.5, id="colons"),
    ],
)
def test_record(name: str, values: list[float], expected: float) -> None:
    store = RecordedMetricSet()
    for value in values:
        take(store, name, value, {"team": "a"})
    assert samples(store) == {(name, frozenset({("team", "a")})): expected}


def test_platform_metrics_are_accepted_with_their_labels() -> None:
    store = RecordedMetricSet()
    take(store, "ai_platform_queue_depth", 3, {"model": "llama3"})
    take(store, "ai_platform_tokens_total", 5, {"type": "input", "model": "llama3"})
    take(store, "ai_platform_tokens_total", 5, {"type": "input", "model": "llama3"})
    assert sorted(samples(store).values()) == [3, 10]


def test_only_registered_namespaces_are_accepted() -> None:
    store = RecordedMetricSet(("billing", "my_app"))
    take(store, "my_app_jobs_total", 1)
    with pytest.raises(errors.BadRequest, match=r"registered namespace \(billing_…, my_app_…\)"):
        take(store, "custom_jobs_total", 1)
    with pytest.raises(errors.BadRequest, match=r"registered namespace \(none\)"):
        take(RecordedMetricSet(()), "custom_jobs_total", 1)


def test_each_node_has_its_own_values() -> None:
    store = RecordedMetricSet()
    take(store, "custom_load", 1)
    take(store, "custom_load", 2, reporter=OTHER)
    text = prometheus_merge.render(prometheus_merge.Merger({}).merge(store.sources()))
    assert 'custom_load{service="gateway",node="UAAA"} 1\n' in text
    assert 'custom_load{service="inference",node="UBBB"} 2\n' in text


def test_label_order_and_empty_labels_do_not_matter() -> None:
    store = RecordedMetricSet()
    take(store, "custom_a", 1, {"x": "1", "y": "2"})
    take(store, "custom_a", 2, {"y": "2", "x": "1"})
    take(store, "custom_a", 3, {"x": "1", "y": "2", "z": ""})
    take(store, "custom_a", 4)
    assert samples(store) == {("custom_a", frozenset({("x", "1"), ("y", "2")})): 3, ("custom_a", frozenset()): 4}
    assert len(store) == 2


@pytest.mark.parametrize("text", ['quote " quote', "back \\ slash", "new\nline", "日本", "a" * recorded_metrics.MAX_LABEL_VALUE])
def test_any_label_value_survives(text: str) -> None:
    store = RecordedMetricSet()
    take(store, "custom_a", 1, {"x": text})
    assert samples(store) == {("custom_a", frozenset({("x", text)})): 1}


@pytest.mark.parametrize(
    ("name", "value", "labels", "rule"),
    [
        pytest.param("", 1, {}, "metricName", id="no name"),
        pytest.param("1a", 1, {}, "no digit at the start", id="digit first"),
        pytest.param("custom_a-b", 1, {}, "letters, digits", id="dash"),
        pytest.param("custom_a\n", 1, {}, "letters, digits", id="newline at the end"),
        pytest.param("custom_ä", 1, {}, "letters, digits", id="letters of ASCII only"),
        pytest.param("custom_" + "a" * 200, 1, {}, "200 characters", id="long name"),
        pytest.param("jobs_total", 1, {}, "neither a platform metric nor in a registered namespace", id="no namespace"),
        pytest.param("customjobs_total", 1, {}, "neither a platform metric nor in a registered namespace", id="not the whole namespace"),
        pytest.param(
            "ai_platform_jobs_total",
            1,
            {},
            "neither a platform metric nor in a registered namespace",
            id="below our prefix, but not on the list",
        ),
        pytest.param("ai_platform_queue_depth", 1, {}, "requires exactly these: model", id="a label of the list is missing"),
        pytest.param("ai_platform_ledger_drift_micro", 1, {"x": "y"}, "requires exactly these: none", id="a label that the list has not"),
        pytest.param("ai_platform_ttft_seconds", 1, {"model": "a"}, "is a histogram", id="a histogram"),
        pytest.param("ai_platform_ttft_seconds_bucket", 1, {}, "part of a histogram", id="part of one"),
        pytest.param("ai_platform_process_open_fds", 1, {}, "neither a platform metric nor in a registered namespace", id="the process's"),
        pytest.param("custom_a", float("nan"), {}, "finite", id="NaN"),
        pytest.param("custom_a", float("-inf"), {}, "finite", id="infinity"),
        pytest.param("custom_a_total", -1, {}, "cannot decrease", id="negative counter"),
        pytest.param("custom_a", 1, {f"l{number}": "x" for number in range(11)}, "at most 10", id="labels"),
        pytest.param("custom_a", 1, {"x-y": "1"}, "in label names", id="label name"),
        pytest.param("custom_a", 1, {"x:y": "1"}, "in label names", id="no colon in a label name"),
        pytest.param("custom_a", 1, {"": "1"}, "in label names", id="empty label name"),
        pytest.param("custom_a", 1, {"__x": "1"}, "reserved by Prometheus", id="Prometheus's label"),
        pytest.param("custom_a", 1, {"le": "1"}, "reserved by Prometheus", id="bucket's label"),
        pytest.param("custom_a", 1, {"x": "y" * 201}, "the limit is 200", id="long label value"),
    ],
)
def test_invalid_records_are_refused_with_the_rule(name: str, value: float, labels: Mapping[str, str], rule: str) -> None:
    store = RecordedMetricSet()
    with pytest.raises(errors.BadRequest, match=rule):
        take(store, name, value, labels)
    assert samples(store) == {}
    assert len(store) == 0


@pytest.mark.parametrize(
    ("minutes", "is_taken"), [(0, True), (-4, True), (0.5, True), (-6, False), (2, False), (60 * 24 * 365, False), (-60 * 24 * 365, False)]
)
def test_samples_with_a_wrong_time_are_refused(minutes: float, is_taken: bool) -> None:
    store = RecordedMetricSet()
    at = NOW + timedelta(minutes=minutes)
    if is_taken:
        take(store, "custom_a", 1, at=at)
        take(store, "custom_a", 1, at=at.replace(tzinfo=None))
    else:
        with pytest.raises(errors.BadRequest, match="more than 5 minutes old or in the future"):
            take(store, "custom_a", 1, at=at)


def test_too_many_label_values_fill_only_one_nodes_limit_and_are_counted() -> None:
    store = RecordedMetricSet()
    batch = store.record_all((RecordMetric("custom_a", 1, {"x": str(number)}) for number in range(20_000)), ME, NOW)
    left_out = 20_000 - recorded_metrics.MAX_SERIES_OF_ONE
    assert (batch.taken, batch.refused, store.refused) == (recorded_metrics.MAX_SERIES_OF_ONE, left_out, left_out)
    assert store.first_refused == "custom_a of gateway UAAA"
    take(store, "custom_b", 1, reporter=OTHER)
    take(store, "custom_a", 5, {"x": "0"})
    assert len(store) == recorded_metrics.MAX_SERIES_OF_ONE + 1


def test_total_limit_is_one_thousand_series() -> None:
    store = RecordedMetricSet()
    for node in range(3):
        store.record_all((RecordMetric("custom_a", 1, {"x": str(number)}) for number in range(500)), ("inference", str(node)), NOW)
    assert len(store) == recorded_metrics.MAX_SERIES


def test_one_invalid_sample_does_not_undo_its_batch() -> None:
    store = RecordedMetricSet()
    samples_ = [RecordMetric("custom_a", 1), RecordMetric("nonsense", 1), RecordMetric("custom_b_total", -1), RecordMetric("custom_c", 3)]
    done = store.record_all(samples_, ME, NOW)
    assert (done.taken, done.refused, len(done.problems)) == (2, 2, 2)
    assert {name for name, _ in samples(store)} == {"custom_a", "custom_c"}


def test_counter_cannot_overflow() -> None:
    store = RecordedMetricSet()
    take(store, "custom_a_total", 1e308)
    with pytest.raises(errors.BadRequest, match="range of numbers"):
        take(store, "custom_a_total", 1e308)
    assert samples(store) == {("custom_a_total", frozenset()): 1e308}


def test_rejected_records_are_logged_once_and_reported_for_a_while() -> None:
    refusals = RejectedRecords()
    assert refusals.note("U1", 3, "value: NaN", NOW)
    assert not refusals.note("U1", 2, "value: negative", NOW + REMEMBERED)
    assert refusals.complaints(NOW + REMEMBERED) == {"U1": "5 recorded samples were rejected, the last one because: value: negative"}
    after = NOW + 2 * REMEMBERED + timedelta(seconds=1)
    assert refusals.complaints(after) == {}
    assert refusals.note("U1", 1, "x", after)
    assert refusals.complaints(after)["U1"].startswith("1 recorded sample was rejected")


def test_quoted_text_and_remembered_nodes_are_bounded() -> None:
    refusals = RejectedRecords()
    for number in range(1500):
        refusals.note(f"U{number}", 1, "x" * 10_000, NOW)
    complaints = refusals.complaints(NOW)
    assert len(complaints) == 1000
    assert "U1499" in complaints
    assert "U0" not in complaints
    assert len(complaints["U1499"]) < 300
