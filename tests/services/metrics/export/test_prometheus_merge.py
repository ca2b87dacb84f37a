"""Merging metrics, case by case. An independent parser accepts the result of any input."""

import string
from collections.abc import Mapping
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from services.metrics.export import metric_families, prometheus_merge, series
from services.metrics.export.prometheus_merge import MetricSource
from shared import telemetry

A = {"service": "auth", "node": "UA"}
B = {"service": "gateway", "node": "UB"}


class Result(NamedTuple):
    text: str
    dropped: int


def _merge(sources: list[MetricSource], known: Mapping[str, str] | None = None) -> Result:
    merged = prometheus_merge.Merger(known).merge(sources)
    return Result(prometheus_merge.render(merged), merged.dropped)


def _merged(*texts: str) -> Result:
    return _merge([MetricSource(text, labels) for text, labels in zip(texts, (A, B), strict=False)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "# TYPE a counter\na 1\n", '# HELP a \n# TYPE a counter\na{service="auth",node="UA"} 1\n', id="gets its node's labels"
        ),
        pytest.param("a 1", '# HELP a \n# TYPE a untyped\na{service="auth",node="UA"} 1\n', id="undeclared is untyped"),
        pytest.param(
            'a{service="auth",x="1"} 1', '# HELP a \n# TYPE a untyped\na{service="auth",node="UA",x="1"} 1\n', id="same label is kept"
        ),
        pytest.param(
            'a{service="web"} 1',
            '# HELP a \n# TYPE a untyped\na{service="auth",node="UA",exported_service="web"} 1\n',
            id="another node's label is moved",
        ),
        pytest.param(
            'a{node="x",exported_node="y"} 1',
            '# HELP a \n# TYPE a untyped\na{service="auth",node="UA",exported_exported_node="x",exported_node="y"} 1\n',
            id="moved as far as it must",
        ),
        pytest.param(
            'a{x="q\\"\\\\\\n,}"} +Inf',
            '# HELP a \n# TYPE a untyped\na{service="auth",node="UA",x="q\\"\\\\\\n,}"} +Inf\n',
            id="escapes and infinity",
        ),
        pytest.param("a 1 1700000000000", '# HELP a \n# TYPE a untyped\na{service="auth",node="UA"} 1\n', id="the time is the scraper's"),
        pytest.param("# HELP a b\\d\na 1", '# HELP a b\\\\d\n# TYPE a untyped\na{service="auth",node="UA"} 1\n', id="help is repaired"),
        pytest.param("# TYPE a counter\n", "# HELP a \n# TYPE a counter\n", id="a family without series is shown"),
        pytest.param("# TYPE a rocket\n# just text\n\n", "", id="comments go"),
    ],
)
def test_merge_one_text(text: str, expected: str) -> None:
    assert _merged(text) == Result(expected, 0)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "a",
        "a b",
        "a 1 2 3",
        "1a 1",
        'a{x="1} 1',
        'a{x="1"y="2"} 1',
        'a{x="\\q"} 1',
        'a{x="1",x="2"} 1',
        'a{__name__="b"} 1',
        "a{} nan",
        "a 1\r",
        "a\u00a01",
        "ä 1",
        "a ٣",
        'a{x="1"} 0x10',
        "} 1",
    ],
)
def test_broken_line_drops_only_itself(line: str) -> None:
    merged = _merged(f"# TYPE ok gauge\nok 1\n{line}\nok 2\nok2 3")
    assert merged.text.count("\nok{") == 1
    assert "\nok2{" in merged.text
    assert merged.dropped == 1 + bool(line)  # the second ok is a duplicate


@pytest.mark.parametrize(
    ("one", "two", "names", "dropped"),
    [
        pytest.param("# TYPE a counter\na 1", "# TYPE a counter\na 1", {"a"}, 0, id="same family, two nodes"),
        pytest.param("# TYPE a counter\na 1", "# TYPE a gauge\na 1", {"a"}, 1, id="the first type is right"),
        pytest.param("# TYPE a counter\na 1", "a 1", {"a"}, 1, id="untyped is another type"),
        pytest.param(
            '# TYPE h histogram\nh_bucket{le="+Inf"} 1\nh_sum 1\nh_count 1',
            "# TYPE h_count gauge\nh_count 1",
            {"h"},
            1,
            id="h_count is h's",
        ),
        pytest.param(
            "# TYPE h_count gauge\nh_count 1", "# TYPE h histogram\nh_sum 1\nh_count 1", {"h_count"}, 2, id="and the other way round"
        ),
        pytest.param("# TYPE h histogram\nh 1", "", {"h"}, 1, id="a histogram has no series of its bare name"),
        pytest.param("# TYPE s summary\ns_bucket 1", "", {"s", "s_bucket"}, 0, id="a summary has no buckets"),
        pytest.param('a{x=""} 1\na 1', "", {"a"}, 1, id="an empty label is no label"),
        pytest.param('a{exported_service="w",z="1"} 1\na{service="w",z="1"} 1', "", {"a"}, 1, id="moved onto another"),
    ],
)
def test_merge_families_of_the_same_name(one: str, two: str, names: set[str], dropped: int) -> None:
    merged = _merged(one, two)
    assert {family.name for family in text_string_to_metric_families(merged.text)} == names
    assert merged.dropped == dropped


def test_known_family_cannot_be_redefined() -> None:
    known = {"h": "histogram"}
    thief = MetricSource("# TYPE h gauge\nh 1\n# TYPE h_sum gauge\nh_sum 1", A)
    honest = MetricSource("# TYPE h histogram\nh_sum 1", B)
    assert _merge([thief, honest], known) == Result('# HELP h \n# TYPE h histogram\nh_sum{service="gateway",node="UB"} 1\n', 2)


def test_own_text_keeps_its_labels() -> None:
    merged = _merge([MetricSource('up{node="UB"} 1', A, trusted=True)])
    assert 'up{service="auth",node="UB"} 1' in merged.text


def test_series_per_node_are_limited() -> None:
    many = "\n".join(f'a{{x="{number}"}} 1' for number in range(prometheus_merge.MAX_SERIES_PER_SOURCE + 5))
    merged = _merged(many, "b 1")
    assert merged.dropped == 5
    assert "\nb{" in merged.text


def test_empty_families_per_node_are_limited() -> None:
    merged = _merged("\n".join(f"# TYPE a{number} gauge" for number in range(prometheus_merge.MAX_FAMILIES_PER_SOURCE + 5)))
    assert merged.text.count("# TYPE") == prometheus_merge.MAX_FAMILIES_PER_SOURCE


def test_nodes_are_distinguished_and_each_family_is_declared_once() -> None:
    texts = []
    for service in ("auth", "gateway"):
        metrics = telemetry.Metrics(service)
        metrics.requests.labels(service=service, method="m", status="success").inc(3)
        metrics.request_duration.labels(service=service, method="m", model="").observe(0.2)
        texts.append(metrics.render())
    merged = _merged(*texts)
    assert merged.dropped == 0
    declared = [line for line in merged.text.splitlines() if line.startswith("# TYPE")]
    assert len(declared) == len(set(declared))
    families = {family.name: family for family in text_string_to_metric_families(merged.text)}
    requests = {(sample.labels["service"], sample.labels["node"]): sample.value for sample in families["ai_platform_requests"].samples}
    assert requests == {("auth", "UA"): 3.0, ("gateway", "UB"): 3.0}
    assert families["ai_platform_request_duration_seconds"].type == "histogram"


names = st.from_regex(r"[a-z_:][a-z0-9_:]{0,3}", fullmatch=True)
label_names = st.from_regex(r"[a-z][a-z_]{0,3}", fullmatch=True) | st.sampled_from(["service", "node", "exported_service", "exported_node"])
values = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
kinds = st.sampled_from(["counter", "gauge", "histogram", "summary", "untyped", "rocket"])
lines_of_series = st.builds(
    lambda name, labels, number: f"{name}{{{series.pairs({label: series.escape(text) for label, text in labels.items()})}}} {number!r}",
    names,
    st.dictionaries(label_names, values, max_size=3),
    st.floats(allow_nan=False, allow_infinity=False),
)
lines = st.one_of(lines_of_series, st.builds("# TYPE {} {}".format, names, kinds), st.builds("# HELP {} {}".format, names, values), values)


@given(st.lists(st.lists(lines, max_size=12).map("\n".join), max_size=3))
def test_output_is_valid_whatever_nodes_send(texts: list[str]) -> None:
    merged = _merge([MetricSource(text, {"service": "auth", "node": f"U{number}"}) for number, text in enumerate(texts)])
    seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    names_seen: set[str] = set()
    for family in text_string_to_metric_families(merged.text):
        names_seen.add(family.name)
        for sample in family.samples:
            identity = (sample.name, frozenset((label, text) for label, text in sample.labels.items() if text))
            assert identity not in seen
            seen.add(identity)
            assert sample.labels["service"] == "auth"
    valid = sum(1 for line in merged.text.split("\n") if line and not line.startswith("#"))
    assert valid == len(seen)


@given(st.dictionaries(label_names, values, max_size=3), st.floats(allow_nan=False, allow_infinity=False))
def test_valid_series_arrive_unchanged(labels: dict[str, str], number: float) -> None:
    text = prometheus_merge.render_family("m", "gauge", "help\\\n", iter([(labels, number)]))
    merged = _merge([MetricSource(text, {}, trusted=True)])
    assert merged.dropped == 0
    (family,) = text_string_to_metric_families(merged.text)
    assert family.documentation == "help\\\n"
    (sample,) = family.samples
    assert (sample.labels, sample.value) == (labels, number)


@given(st.text(string.printable, max_size=300))
def test_noise_is_survived(text: str) -> None:
    _merge([MetricSource(text, A)])


# --- families in the form that nodes write, which are taken whole ------------------------------------------------------------


def _family(kind: str, *lines: str) -> str:
    return "\n".join(["# HELP a_total of it", f"# TYPE a_total {kind}", *lines, ""])


@pytest.mark.parametrize(
    ("text", "taken", "dropped"),
    [
        pytest.param(_family("gauge", 'a_total{x="1"} 1', 'a_total{x="2"} 1'), 2, 0, id="as it should be"),
        pytest.param(_family("gauge", 'a_total{x="1"} 1', 'a_total{x="1"} 2'), 1, 1, id="twice"),
        pytest.param(_family("gauge", 'a_total{x="1",y="2"} 1', 'a_total{y="2",x="1"} 2'), 1, 1, id="twice, in another order"),
        pytest.param(_family("gauge", 'a_total{x=""} 1', "a_total 2"), 1, 1, id="twice, with a label that is empty"),
        pytest.param(_family("gauge", 'a_total{service="auth"} 1', "a_total 2"), 1, 1, id="twice, with a label that it gets anyway"),
        pytest.param(_family("gauge", 'a_total{node="UB"} 1', "a_total 2"), 2, 0, id="with another node's label"),
        pytest.param(_family("counter", "a_total -1"), 0, 1, id="a counter that is negative"),
        pytest.param(_family("counter", "a_total NaN"), 0, 1, id="a counter that is no number"),
        pytest.param(_family("gauge", "a_total -1"), 1, 0, id="a gauge may be negative"),
        pytest.param(_family("histogram", 'a_total_bucket{le="1.0"} -1', "a_total_sum -1"), 1, 1, id="a sum may be, a bucket not"),
        pytest.param(_family("gauge", 'a_total{x="\0"} 1'), 1, 0, id="a label that is what stands for labels"),
        pytest.param(_family("gauge", "a_total 1", "b 1"), 2, 0, id="with a stranger"),
        pytest.param(_family("gauge", "a_total 1") + _family("gauge", 'a_total{x="2"} 1'), 2, 0, id="in two parts"),
        pytest.param(_family("gauge", "a_total 1 1763000000000"), 1, 0, id="with a time"),
        pytest.param(_family("gauge", "a_total", 'a_total{x="2"} 1'), 1, 1, id="with a line that is none"),
    ],
)
def test_family_in_the_usual_form(text: str, taken: int, dropped: int) -> None:
    merged = prometheus_merge.Merger().merge([MetricSource(text, A), MetricSource(text, {**A, "node": "UC"})])
    assert (sum(family.size for family in merged.families), merged.dropped) == (2 * taken, 2 * dropped)
    families = list(text_string_to_metric_families(prometheus_merge.render(merged)))
    assert {sample.labels["node"] for family in families for sample in family.samples} <= {"UA", "UC"}


def test_node_cannot_repeat_our_series_about_it() -> None:
    ours = MetricSource(_family("gauge", 'a_total{service="auth",node="UA"} 1'), {"service": "metrics", "node": "UM"}, trusted=True)
    nodes = [MetricSource(_family("gauge", "a_total 7"), labels) for labels in (A, B)]
    merged = _merge([*nodes, ours])
    assert merged.dropped == 1
    assert 'a_total{service="auth",node="UA"} 1\n' in merged.text
    assert 'a_total{service="gateway",node="UB"} 7\n' in merged.text


def test_counter_rules_hold_after_many_merges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_families, "_MAX_NUMBERS", 1)
    merger = prometheus_merge.Merger()
    for _ in range(2):
        assert merger.merge([MetricSource(_family("counter", "a_total -1", 'a_total{x="1"} 5', 'a_total{x="2"} 6'), A)]).dropped == 1


def test_ever_new_labels_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_families, "_MAX_HEADS", 10)
    merger = prometheus_merge.Merger()
    for number in range(50):
        merged = merger.merge([MetricSource(_family("gauge", f'a_total{{x="{number}"}} 1'), A)])
        assert f'x="{number}"' in prometheus_merge.render(merged)
    assert len(merger._blocks._made_of) <= 11
