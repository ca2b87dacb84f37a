"""The tree of a trace: every span once, below its parent, whatever nodes report."""

from hypothesis import given
from hypothesis import strategies as st

from cli.ask.trace import lines
from shared.api.metrics import TracedSpan
from shared.spans import Span, SpanKind


def traced_span(span: int, parent: int, start_ms: int, took_ms: int = 1, *, name: str = "", error: str = "") -> TracedSpan:
    begin = 10**18 + start_ms * 1_000_000
    parent_id = f"{parent:016x}" if parent else ""
    made = Span("a" * 32, f"{span:016x}", parent_id, name or str(span), SpanKind.INTERNAL, begin, begin + took_ms * 1_000_000, error, {})
    return TracedSpan("gateway", "node", made)


def test_spans_are_nested_and_sorted_by_time() -> None:
    found = lines([traced_span(3, 1, 5), traced_span(2, 1, 2, 3, error="overloaded"), traced_span(1, 0, 0, 10), traced_span(4, 2, 3)])
    assert [line.span for line in found] == ["1", "  2", "    4", "  3"]
    assert [(line.start_ms, line.took_ms) for line in found] == [(0, 10), (2, 3), (3, 1), (5, 1)]
    assert [line.error for line in found] == ["", "overloaded", "", ""]


def test_spans_without_a_known_parent_are_top_level() -> None:
    assert [line.span for line in lines([traced_span(5, 9, 4), traced_span(1, 7, 0), traced_span(2, 1, 1)])] == ["1", "  2", "5"]


def test_json_names_are_not_indented() -> None:
    assert [line.span for line in lines([traced_span(1, 0, 0), traced_span(2, 1, 1)], indented=False)] == ["1", "2"]
    assert lines([]) == []


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20), st.integers(0, 100)), unique_by=lambda row: row[0], max_size=20))
def test_every_span_is_shown_at_most_once(rows: list[tuple[int, int, int]]) -> None:
    found = [line.span.strip() for line in lines([traced_span(*row) for row in rows])]
    assert len(found) == len(set(found))
    assert set(found) <= {str(row[0]) for row in rows}
    roots = {span for span, parent, _ in rows if parent not in {row[0] for row in rows}}
    assert {str(root) for root in roots} <= set(found)
