from collections.abc import Mapping

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.metrics import recorded
from services.metrics.recorded import Recorded
from shared import errors


def _samples(store: Recorded) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(store.render())
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        pytest.param("jobs_total", [1, 2.5], 3.5, id="a counter adds"),
        pytest.param("ai_platform_jobs_total", [1, 0], 1, id="below our prefix, too"),
        pytest.param("queue_length", [7, 3], 3, id="anything else is set"),
        pytest.param("temperature", [-3], -3, id="a gauge may be negative"),
        pytest.param("team:load:ratio", [0.5], 0.5, id="colons"),
    ],
)
def test_record(name: str, values: list[float], expected: float) -> None:
    store = Recorded()
    for value in values:
        store.record(name, value, {"team": "a"})
    assert _samples(store) == {(name, frozenset({("team", "a")})): expected}
    (family,) = text_string_to_metric_families(store.render())
    assert family.type == ("counter" if name.endswith("_total") else "gauge")


def test_labels_make_series_in_any_order_and_empty_ones_do_not() -> None:
    store = Recorded()
    store.record("a", 1, {"x": "1", "y": "2"})
    store.record("a", 2, {"y": "2", "x": "1"})
    store.record("a", 3, {"x": "1", "y": "2", "z": ""})
    store.record("a", 4, {})
    assert _samples(store) == {("a", frozenset({("x", "1"), ("y", "2")})): 3, ("a", frozenset()): 4}
    assert len(store) == 2


@pytest.mark.parametrize("text", ['quote " quote', "back \\ slash", "new\nline", "日本", "a" * recorded.MAX_LABEL_VALUE])
def test_any_label_value_survives(text: str) -> None:
    store = Recorded()
    store.record("a", 1, {"x": text})
    assert _samples(store) == {("a", frozenset({("x", text)})): 1}


@pytest.mark.parametrize(
    ("name", "value", "labels", "rule"),
    [
        pytest.param("", 1, {}, "metricName", id="no name"),
        pytest.param("1a", 1, {}, "begins with no digit", id="digit first"),
        pytest.param("a-b", 1, {}, "letters, digits", id="dash"),
        pytest.param("a\n", 1, {}, "letters, digits", id="newline at the end"),
        pytest.param("ä", 1, {}, "letters, digits", id="letters of ASCII only"),
        pytest.param("a" * 201, 1, {}, "200 characters", id="long name"),
        pytest.param("ai_platform_requests_total", 1, {}, "counted by aimesh itself", id="ours"),
        pytest.param("ai_platform_ttft_seconds_bucket", 1, {}, "counted by aimesh itself", id="part of ours"),
        pytest.param("ai_platform_process_open_fds", 1, {}, "counted by aimesh itself", id="the process's"),
        pytest.param("a", float("nan"), {}, "finite", id="NaN"),
        pytest.param("a", float("-inf"), {}, "finite", id="infinity"),
        pytest.param("a_total", -1, {}, "only grows", id="negative counter"),
        pytest.param("a", 1, {f"l{number}": "x" for number in range(11)}, "at most 10", id="labels"),
        pytest.param("a", 1, {"x-y": "1"}, "label's name", id="label name"),
        pytest.param("a", 1, {"x:y": "1"}, "label's name", id="no colon in a label name"),
        pytest.param("a", 1, {"": "1"}, "label's name", id="empty label name"),
        pytest.param("a", 1, {"__x": "1"}, "meaning of its own", id="Prometheus's label"),
        pytest.param("a", 1, {"le": "1"}, "meaning of its own", id="bucket's label"),
        pytest.param("a", 1, {"x": "y" * 201}, "at most 200", id="long label value"),
    ],
)
def test_what_breaks_a_rule_is_refused_with_the_rule(name: str, value: float, labels: Mapping[str, str], rule: str) -> None:
    store = Recorded()
    with pytest.raises(errors.BadRequest, match=rule):
        store.record(name, value, labels)
    assert store.render() == ""
    assert len(store) == 0


def test_the_thousandth_series_is_the_last() -> None:
    store = Recorded()
    for number in range(recorded.MAX_SERIES):
        store.record("a", number, {"x": str(number)})
    with pytest.raises(errors.BadRequest, match="1000 recorded series") as refused:
        store.record("b", 1, {})
    assert refused.value.hint
    store.record("a", 5, {"x": "0"})
    assert len(store) == recorded.MAX_SERIES
    assert "b " not in store.render()


def test_a_counter_cannot_leave_the_numbers() -> None:
    store = Recorded()
    store.record("a_total", 1e308, {})
    with pytest.raises(errors.BadRequest, match="range of numbers"):
        store.record("a_total", 1e308, {})
    assert _samples(store) == {("a_total", frozenset()): 1e308}
