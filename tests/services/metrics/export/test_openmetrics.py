"""The merged metrics as OpenMetrics: whatever nodes send, a strict parser accepts the result, and our own series are complete."""

import string
from collections.abc import Mapping
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import parser as plain
from prometheus_client.openmetrics import parser as strict
from prometheus_client.samples import Exemplar as Found

from services.metrics.export import openmetrics, prometheus_merge
from services.metrics.export.prometheus_merge import MetricSource
from shared import context, telemetry
from shared.api.node import Exemplar, NodeMetrics
from shared.telemetry import instruments
from shared.telemetry.answer_metrics import MeasuredAnswer, WorkerAnswers
from shared.telemetry.tracing import Traces
from shared.types import ModelName

A = {"service": "inference", "node": "UA"}
B = {"service": "inference", "node": "UB"}
KNOWN = {one.name: str(one.kind) for one in instruments.ALL}
TRACE = "0af7651916cd43dd8448eb211c80319c"
NONE: Mapping[str, Exemplar] = MappingProxyType({})

HISTOGRAM = """# HELP h of seconds
# TYPE h histogram
h_bucket{le="0.5"} 1
h_bucket{le="+Inf"} 2
h_count 2
h_sum 1.5
"""


def _text(*texts: str, known: Mapping[str, str] | None = None, exemplars: Mapping[str, Exemplar] = NONE) -> str:
    sources = [MetricSource(text, labels, exemplars=exemplars) for text, labels in zip(texts, (A, B), strict=False)]
    return openmetrics.render(prometheus_merge.Merger(known).merge(sources), known or {})


def _families(text: str) -> dict[str, str]:
    return {family.name: family.type for family in strict.text_string_to_metric_families(text)}


def _shown(text: str) -> dict[str, Found]:
    """Return the exemplars by bucket."""
    return {
        sample.labels["le"]: sample.exemplar
        for family in strict.text_string_to_metric_families(text)
        for sample in family.samples
        if sample.exemplar
    }


def _worker() -> NodeMetrics:
    metrics = telemetry.Metrics("inference")
    answers = WorkerAnswers(metrics, "echo")
    for sampled in (False, True):
        serving = Traces(ratio=0).join("chat", f"00-{TRACE}-b7ad6b7169203331-{sampled:02x}", context.new_request_id())
        assert serving is not None
        with serving:
            answers.ended(
                MeasuredAnswer(operation="chat", method="m", model=ModelName("a b"), seconds=1, first_text_seconds=0.3, output_tokens=9)
            )
    metrics.worker_up.labels(model='"quoted" \\ and\nbroken').set(1)
    return metrics.read()


def test_merge_real_nodes_with_exemplars() -> None:
    read = _worker()
    assert read.exemplars
    sources = [MetricSource(read.text, labels, exemplars=read.exemplars) for labels in (A, B)]
    merged = prometheus_merge.Merger(KNOWN).merge(sources)
    assert merged.dropped == 0
    text = openmetrics.render(merged, KNOWN)
    families = {family.name: family for family in strict.text_string_to_metric_families(text)}
    for name in ("ai_platform_ttft_seconds", "gen_ai_server_time_to_first_token_seconds", "ai_platform_request_duration_seconds"):
        with_exemplars = [sample for sample in families[name].samples if sample.exemplar]
        assert {sample.labels["node"] for sample in with_exemplars} == {"UA", "UB"}
        assert {tuple(sample.exemplar.labels.items()) for sample in with_exemplars if sample.exemplar} == {(("trace_id", TRACE),)}
    # The other format, with its own parser and other names for counters, has the same series.
    here = {(sample.name, tuple(sorted(sample.labels.items())), sample.value) for one in families.values() for sample in one.samples}
    there = {
        (sample.name, tuple(sorted(sample.labels.items())), sample.value)
        for one in plain.text_string_to_metric_families(prometheus_merge.render(merged))
        for sample in one.samples
    }
    assert here == there
    assert TRACE not in prometheus_merge.render(merged)


@pytest.mark.parametrize(
    ("text", "families"),
    [
        pytest.param("# TYPE a_total counter\na_total 1\n", {"a": "counter"}, id="a counter without its total"),
        pytest.param("# TYPE a counter\na 1\n", {"a": "unknown"}, id="a counter that never had one keeps its name"),
        pytest.param("a 1\n", {"a": "unknown"}, id="untyped is unknown"),
        pytest.param(
            "# TYPE a gauge\na 1\n# TYPE a_total counter\na_total 1\n", {"a": "gauge", "a_total": "unknown"}, id="a short name taken"
        ),
        pytest.param(HISTOGRAM, {"h": "histogram"}, id="a histogram"),
        pytest.param("# TYPE h_created gauge\nh_created 1\n" + HISTOGRAM, {"h": "histogram"}, id="its other names are its own"),
        pytest.param("# TYPE s summary\ns_sum 1\ns_count 1\n", {}, id="no summaries"),
        pytest.param('# HELP a say "a" \\\\ b\n# TYPE a gauge\na 1\n', {"a": "gauge"}, id="quotation marks in a help"),
        pytest.param("# TYPE a gauge\n", {"a": "gauge"}, id="no series"),
    ],
)
def test_families(text: str, families: dict[str, str]) -> None:
    assert _families(_text(text, known={"h": "histogram"})) == families


def test_platform_names_cannot_be_taken_over() -> None:
    text = _text("# TYPE ai_platform_requests gauge\nai_platform_requests 1\n", "# TYPE ai_platform_requests_total counter\n", known=KNOWN)
    assert _families(text) == {"ai_platform_requests": "counter"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param('h_bucket{le="+Inf"} 2\n', "", id="no last bucket"),
        pytest.param("h_count 2", "h_count 3", id="another count"),
        pytest.param("h_count 2\n", "", id="no count"),
        pytest.param("h_sum 1.5\n", "", id="no sum"),
        pytest.param("h_sum 1.5", "h_sum NaN", id="a sum that is none"),
        pytest.param("h_sum 1.5", "h_sum -1.5", id="a negative sum"),
        pytest.param('le="0.5"} 1', 'le="0.5"} 3', id="falling buckets"),
        pytest.param('le="0.5"} 1', 'le="0.5"} 0.5', id="half a request"),
        pytest.param('le="0.5"', 'le="NaN"', id="no bound"),
        pytest.param('le="0.5"', 'le="0.50"', id="a bound spelt otherwise"),
        pytest.param('le="0.5"', 'le="-1.0"', id="a negative bound"),
    ],
)
@pytest.mark.parametrize("as_block", [True, False])
def test_inconsistent_histogram_drops_only_itself(old: str, new: str, *, as_block: bool) -> None:
    broken = HISTOGRAM.replace(old, new)
    assert broken != HISTOGRAM
    text = _text(broken if as_block else broken + "odd 1\n", HISTOGRAM)
    nodes = {
        sample.labels["node"]
        for family in strict.text_string_to_metric_families(text)
        if family.name == "h"
        for sample in family.samples
        if "h_count" in sample.name
    }
    assert nodes == {"UB"}


def test_histogram_with_scattered_lines_is_reassembled() -> None:
    mixed = """# HELP h a
# TYPE h histogram
h_bucket{le="+Inf",x="1"} 2
h_bucket{le="+Inf",x="2"} 2
h_count{x="1"} 2
h_count{x="2"} 2
h_sum{x="2"} 2
h_sum{x="1"} 2
"""
    (family,) = strict.text_string_to_metric_families(_text(mixed))
    assert len(family.samples) == 6


GOOD = Exemplar(TRACE, 0.25, 1_763_000_000.5)
BUCKET = 'h_bucket{le="0.5"}'


@pytest.mark.parametrize("as_block", [True, False])
def test_exemplar_is_shown_at_its_bucket(*, as_block: bool) -> None:
    text = _text(HISTOGRAM if as_block else HISTOGRAM + "odd 1\n", exemplars={BUCKET: GOOD})
    (shown,) = _shown(text).values()
    assert (shown.labels, shown.value, float(shown.timestamp or 0)) == ({"trace_id": TRACE}, 0.25, 1_763_000_000.5)
    assert list(_shown(text)) == ["0.5"]


@pytest.mark.parametrize("as_block", [True, False])
@pytest.mark.parametrize(
    ("where", "exemplar"),
    [
        pytest.param(BUCKET, Exemplar("x" * 32, 0.25, 1.0), id="no trace id"),
        pytest.param(BUCKET, Exemplar(TRACE + "0" * 100, 0.25, 1.0), id="too long"),
        pytest.param(BUCKET, Exemplar("0" * 32, 0.25, 1.0), id="the trace that is none"),
        pytest.param(BUCKET, Exemplar(TRACE + "\n", 0.25, 1.0), id="a newline"),
        pytest.param(BUCKET, Exemplar('"} 1\nevil 1 # {a="', 0.25, 1.0), id="another line"),
        pytest.param(BUCKET, Exemplar(TRACE, 0.75, 1.0), id="beyond its bucket"),
        pytest.param(BUCKET, Exemplar(TRACE, float("nan"), 1.0), id="not a number"),
        pytest.param(BUCKET, Exemplar(TRACE, -0.25, 1.0), id="negative"),
        pytest.param('h_bucket{le="+Inf"}', Exemplar(TRACE, float("inf"), 1.0), id="infinite"),
        pytest.param(BUCKET, Exemplar(TRACE, 0.25, float("nan")), id="no time"),
        pytest.param(BUCKET, Exemplar(TRACE, 0.25, 1e300), id="no time of ours"),
        pytest.param("h_count", GOOD, id="at a count"),
        pytest.param('h_bucket{le="0.7"}', GOOD, id="at a bucket that is not there"),
        pytest.param("", GOOD, id="nowhere"),
    ],
)
def test_invalid_exemplar_is_dropped(where: str, exemplar: Exemplar, *, as_block: bool) -> None:
    text = _text(HISTOGRAM if as_block else HISTOGRAM + "odd 1\n", exemplars={where: exemplar})
    assert _shown(text) == {}
    assert " # {" not in text
    assert _families(text)["h"] == "histogram"


# --- arbitrary texts of nodes ---------------------------------------------------------------------------------------------

names = st.sampled_from(["h", "h_bucket", "h_sum", "h_count", "h_created", "a", "a_total", "a_created", "b", "ai_platform_ttft_seconds"])
label_values = st.sampled_from(["", "1", "0.5", "1.0", "+Inf", "UA", "UB", 'q"\\\n', "\0", "é"]) | st.text(max_size=3)
numbers = st.sampled_from(["0", "1", "2", "2.5", "-1", "NaN", "+Inf", "-Inf", "1e5", "x"])
labels = st.dictionaries(st.sampled_from(["le", "x", "node", "service", "exported_node"]), label_values, max_size=3)


def _line(name: str, pairs: Mapping[str, str], number: str) -> str:
    escaped = {key: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for key, value in pairs.items()}
    inside = ",".join(f'{key}="{value}"' for key, value in escaped.items())
    return f"{name}{{{inside}}} {number}" if pairs else f"{name} {number}"


lines = st.one_of(
    st.builds(_line, names, labels, numbers),
    st.builds("# TYPE {} {}".format, names, st.sampled_from(["counter", "gauge", "histogram", "summary", "untyped"])),
    st.builds("# HELP {} {}".format, names, st.text(string.printable, max_size=5)),
    st.text(max_size=4),
)


def _block(name: str, kind: str, body: list[tuple[dict[str, str], str, str]]) -> str:
    suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
    made = [_line(name + suffixes[len(suffix) % len(suffixes)], pairs, number) for pairs, number, suffix in body]
    return "\n".join([f"# HELP {name} it is", f"# TYPE {name} {kind}", *made])


blocks = st.builds(
    _block,
    st.sampled_from(["h", "a_total", "b"]),
    st.sampled_from(["counter", "gauge", "histogram"]),
    st.lists(st.tuples(labels, numbers, st.sampled_from(["", ".", ".."])), max_size=6),
)
texts = st.one_of(st.lists(lines, max_size=12), st.lists(blocks, max_size=4), st.lists(blocks | lines, max_size=5)).map(
    lambda parts: "\n".join([*parts, ""])
)
exemplars = st.dictionaries(
    st.sampled_from([BUCKET, 'h_bucket{le="1.0"}', 'h_bucket{le="+Inf",x="1"}', "h_count"]),
    st.builds(Exemplar, st.sampled_from([TRACE, "", "z"]) | st.text(max_size=40), st.floats(), st.floats()),
    max_size=2,
)


@given(st.lists(st.tuples(texts, exemplars), max_size=3))
def test_output_is_valid_whatever_nodes_send(texts_of_nodes: list[tuple[str, dict[str, Exemplar]]]) -> None:
    sources = [
        MetricSource(text, {"service": "inference", "node": f"U{number}"}, exemplars=shown)
        for number, (text, shown) in enumerate(texts_of_nodes)
    ]
    merged = prometheus_merge.Merger(KNOWN).merge([*sources, MetricSource(HISTOGRAM, A)])
    list(strict.text_string_to_metric_families(openmetrics.render(merged, KNOWN)))
    list(plain.text_string_to_metric_families(prometheus_merge.render(merged)))


@given(st.lists(texts, max_size=3), st.booleans())
def test_block_and_line_parsing_give_the_same_result(texts_of_nodes: list[str], ours: bool) -> None:
    """A second, empty source with the same labels forces every text to be parsed line by line."""
    sources = [MetricSource(text, {"service": "inference", "node": f"U{number}"}) for number, text in enumerate(texts_of_nodes)]
    own = (
        [MetricSource(_block("a_total", "counter", [({"node": "U0"}, "1", "")]) + "\n", {"service": "metrics"}, trusted=True)]
        if ours
        else []
    )
    whole = prometheus_merge.Merger({}).merge([*own, *sources])
    by_line = prometheus_merge.Merger({}).merge([*own, *sources, *(MetricSource("", source.labels) for source in sources)])
    assert sorted(prometheus_merge.render(whole).split("\n")) == sorted(prometheus_merge.render(by_line).split("\n"))
    assert sorted(openmetrics.render(whole, {}).split("\n")) == sorted(openmetrics.render(by_line, {}).split("\n"))
    assert whole.dropped == by_line.dropped


def test_cached_text_is_read_again_with_new_numbers() -> None:
    merger = prometheus_merge.Merger()
    first = merger.merge([MetricSource(HISTOGRAM, A), MetricSource(HISTOGRAM, B)])
    second = merger.merge([MetricSource(HISTOGRAM.replace("h_sum 1.5", "h_sum 9"), A)])
    assert 'h_sum{service="inference",node="UA"} 9\n' in prometheus_merge.render(second)
    assert 'h_sum{service="inference",node="UB"} 1.5\n' in prometheus_merge.render(first)
