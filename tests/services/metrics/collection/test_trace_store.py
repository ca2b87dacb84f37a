"""Traces are assembled from spans in any order, found by either id, and bounded. What a node can put into a span is limited."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.metrics.collection import trace_store
from services.metrics.collection.trace_store import TraceStore, is_sound
from services.metrics.export.otlp_records import NodeSpan
from shared.spans import REQUEST_ID, Span, SpanKind, Value


def node_span(trace: int, span: int, *, service: str = "gateway", start: int = 0, **attributes: Value) -> NodeSpan:
    made = Span(f"{trace:032x}", f"{span:016x}", "", "work", SpanKind.INTERNAL, start, start + 1, "", dict(attributes))
    return NodeSpan(service, "node", made)


def test_trace_is_found_by_its_id_and_its_requests() -> None:
    kept = TraceStore()
    request = "0192f0c1-2b3a-7c4d-8e5f-001122334455"
    kept.put([node_span(1, 2, start=5), node_span(2, 9)])
    kept.put([node_span(1, 1, start=1, **{REQUEST_ID: request})])
    assert [one.span.span_id[-1] for one in kept.find(f"{1:032x}")] == ["1", "2"]
    assert kept.find(request) == kept.find(f"{1:032x}")
    assert kept.find("nothing") == []


def test_repeated_span_is_stored_once() -> None:
    kept = TraceStore()
    assert len(kept.put([node_span(1, 1), node_span(1, 2)])) == 2
    assert kept.put([node_span(1, 1), node_span(1, 2)]) == []
    assert len(kept.find(f"{1:032x}")) == 2


def test_new_traces_are_requested_a_few_times() -> None:
    kept = TraceStore()
    kept.put([node_span(1, 1)])
    assert [kept.wanted() for _ in range(5)] == [(f"{1:032x}",)] * 3 + [()] * 2
    kept.put([node_span(1, 2)])
    assert kept.wanted() == (), "it has been"


def test_requested_traces_per_round_are_limited() -> None:
    kept = TraceStore()
    kept.put([node_span(number, 1) for number in range(trace_store.MAX_WANTED + 50)])
    assert len(kept.wanted()) == trace_store.MAX_WANTED
    assert f"{trace_store.MAX_WANTED:032x}" in kept.wanted()


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2**40)), max_size=200))
def test_no_span_is_lost_or_duplicated(spans: list[tuple[int, int]]) -> None:
    kept = TraceStore()
    for trace, span in spans:
        kept.put([node_span(trace, span)])
    for trace in range(31):
        found = [one.span.span_id for one in kept.find(f"{trace:032x}")]
        assert sorted(found) == sorted({f"{span:016x}" for of, span in spans if of == trace})


def test_oldest_traces_are_dropped_whole() -> None:
    kept = TraceStore()
    for number in range(trace_store.MAX_TRACES + 100):
        kept.put([node_span(number, span, **{REQUEST_ID: f"r{number}"}) for span in range(3)])
    assert len(kept) == trace_store.MAX_TRACES
    assert kept.find(f"{99:032x}") == kept.find("r99") == []
    assert len(kept.find("r100")) == 3
    assert len(kept._by_request) == trace_store.MAX_TRACES
    assert len(kept._wanted) <= trace_store.MAX_TRACES


def test_made_up_spans_use_the_limit_of_one_trace() -> None:
    kept = TraceStore()
    kept.put([node_span(1, number) for number in range(100_000)])
    assert len(kept.find(f"{1:032x}")) == trace_store.MAX_SPANS_OF_ONE
    kept.put([node_span(2, 1)])
    assert len(kept.find(f"{2:032x}")) == 1


SPAN = Span("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "", "chat llama3", SpanKind.CLIENT, 10**18, 10**18 + 5, "", {})


def changed(**fields: Any) -> Span:
    return msgspec.structs.replace(SPAN, **fields)


def test_valid_span_is_accepted() -> None:
    assert is_sound(SPAN, "inference")
    assert is_sound(changed(parent_id="a" * 16, attributes={"gen_ai.usage.output_tokens": 5}), "inference")
    assert is_sound(changed(attributes={REQUEST_ID: "x"}), "gateway")


@pytest.mark.parametrize(
    "fields",
    [
        {"trace_id": "short"},
        {"trace_id": "G" * 32},
        {"span_id": ""},
        {"span_id": "0" * 15 + "\n"},
        {"parent_id": "x"},
        {"name": ""},
        {"name": "n" * 10_000},
        {"error": "e" * 10_000},
        {"start_ns": -1},
        {"start_ns": 10**18 + 6},
        {"end_ns": 2**70},
        {"attributes": {str(number): 1 for number in range(100)}},
        {"attributes": {"a" * 1000: 1}},
        {"attributes": {"a": "b" * 10_000}},
        {"attributes": {"a": 2**70}},
        {"attributes": {"a": float("nan")}},
        {"attributes": {REQUEST_ID: "somebody else's"}},
    ],
    ids=str,
)
def test_invalid_span_is_refused(fields: dict[str, Any]) -> None:
    assert not is_sound(changed(**fields), "inference")
