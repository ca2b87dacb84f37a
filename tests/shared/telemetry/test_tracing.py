"""Which traces a node keeps, what a span contains, and that memory stays bounded without a reader."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shared import context, errors, spans
from shared.spans import Span, SpanKind
from shared.telemetry import tracing
from shared.telemetry.tracing import Traces

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
UNSAMPLED = f"00-{TRACE}-{PARENT}-00"


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def traces(clock: Clock) -> Traces:
    """Traces with a sampling ratio of 0, whose guaranteed few of this second are already used up."""
    made = Traces(ratio=0.0, clock=clock)
    for _ in range(5):
        with made.enter("first", ""):
            pass
    made.read(0)
    return made


def kept(traces: Traces) -> list[Span]:
    return [span for span in traces.read(0).spans if span.name != "first"]


def test_what_is_asked_for_is_kept_with_all_its_spans(traces: Traces) -> None:
    with traces.enter("GET /things", SAMPLED) as served:
        with tracing.span("outer", {"size": 3}) as outer, tracing.span("inner", kind=SpanKind.CLIENT):
            outer.tell({"found": True})
        served.tell({"rpc.system": "aimesh"})
    inner, middle, whole = kept(traces)
    assert [span.name for span in (inner, middle, whole)] == ["inner", "outer", "GET /things"]
    assert {span.trace_id for span in (inner, middle, whole)} == {TRACE}
    assert (whole.parent_id, middle.parent_id, inner.parent_id) == (PARENT, whole.span_id, middle.span_id)
    assert (whole.kind, middle.kind, inner.kind) == (SpanKind.SERVER, SpanKind.INTERNAL, SpanKind.CLIENT)
    assert (whole.attributes, middle.attributes) == ({"rpc.system": "aimesh"}, {"size": 3, "found": True})
    assert whole.start_ns <= middle.start_ns <= inner.start_ns <= inner.end_ns <= middle.end_ns <= whole.end_ns


def test_a_trace_that_begins_here_has_the_id_of_its_request(traces: Traces, clock: Clock) -> None:
    clock.now += 1
    request_id = context.new_request_id()
    with traces.enter("GET /", "", request_id):
        now = context.current.get()
        assert now is not None
        assert now.request_id == request_id
        assert now.traceparent[3:35] == request_id.hex
    assert context.current.get() is None
    assert [(span.trace_id, span.parent_id) for span in kept(traces)] == [(request_id.hex, "")]


@pytest.mark.parametrize(
    "traceparent",
    ["", "nonsense", f"01-{TRACE}-{PARENT}-01", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01", SAMPLED.upper(), SAMPLED + "\n"],
)
def test_what_is_no_trace_context_is_nobodys(traces: Traces, traceparent: str) -> None:
    with traces.enter("GET /", traceparent):
        now = context.current.get()
        assert now is not None
        assert now.traceparent[3:35] != TRACE
    assert traces.join("method", traceparent, context.new_request_id()) is None


def test_most_are_not_kept(traces: Traces) -> None:
    for _ in range(50):
        with traces.enter("GET /", ""):
            pass
    assert kept(traces) == []


def test_the_lot_is_the_same_on_every_node() -> None:
    ids = [f"{number:032x}" for number in range(2**55, 2**55 + 40)] + [f"{2**40 + number:032x}" for number in range(40)]
    chosen = []
    for _ in range(2):
        one = Traces(ratio=0.01, clock=lambda: 0.0)
        # Use up the few that are kept each second regardless of sampling, with ids that are never sampled.
        assert [one._is_chosen("f" * 32, None) for _ in range(6)] == [True] * 5 + [False]
        chosen.append([one._is_chosen(trace_id, None) for trace_id in ids])
    assert chosen[0] == chosen[1]
    assert chosen[0] == [False] * 40 + [True] * 40


@pytest.mark.parametrize(
    ("error", "code"),
    [(errors.Overloaded("full"), "overloaded"), (RuntimeError("bug"), "internal"), (errors.Limited("slow down"), "rate_limited")],
)
def test_what_fails_is_kept(traces: Traces, error: Exception, code: str) -> None:
    def fail() -> None:
        with tracing.span("part"):
            raise error

    with pytest.raises(type(error)), traces.enter("GET /", UNSAMPLED):
        fail()
    assert [(span.name, span.error) for span in kept(traces)] == [("part", code), ("GET /", code)]


def test_who_leaves_has_not_failed(traces: Traces) -> None:
    with pytest.raises(asyncio.CancelledError), traces.enter("GET /", UNSAMPLED):
        raise asyncio.CancelledError
    assert kept(traces) == []


def test_failures_are_kept_so_many_a_second(traces: Traces, clock: Clock) -> None:
    for _ in range(100):
        with traces.enter("GET /", "") as served:
            served.error = "overloaded"
    assert len(kept(traces)) == 5
    clock.now += 1
    with traces.enter("GET /", "") as served:
        served.error = "overloaded"
    assert len(kept(traces)) == 6


def test_what_is_slow_for_its_kind_is_kept(traces: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1]
    monkeypatch.setattr(spans, "now_ns", lambda: now[0])

    def took(name: str, nanoseconds: int) -> None:
        with traces.enter(name, ""):
            now[0] += nanoseconds

    for number in range(200):
        took("quick", 100 + number % 10)
        took("long", 10_000)
    assert kept(traces) == []
    took("long", 10_000)
    took("quick", 500)
    took("quick", 100)
    assert [(span.name, span.end_ns - span.start_ns) for span in kept(traces)] == [("quick", 500)]


def test_another_node_that_kept_it_gets_our_part(traces: Traces) -> None:
    for _ in range(2):
        serving = traces.join("inference.processPrompt", UNSAMPLED, context.new_request_id())
        assert serving is not None
        with serving, tracing.span("decode"):
            pass
    assert kept(traces) == []
    assert [span.name for span in traces.read(5, [TRACE, "unknown"]).spans] == ["decode", "inference.processPrompt"] * 2
    # The node's later spans of that trace are kept, too.
    serving = traces.join("inference.readReceipts", UNSAMPLED, context.new_request_id())
    assert serving is not None
    with serving:
        pass
    assert [span.name for span in kept(traces)][4:] == ["inference.readReceipts"]


def test_a_task_that_outlives_its_request_adds_to_its_trace(traces: Traces) -> None:
    late = spans.OpenSpan("late")
    with traces.enter("GET /", SAMPLED) as served:
        assert served.trace is not None
        late.begin(served.trace, served)
    late.end()
    assert [span.name for span in kept(traces)] == ["GET /", "late"]


def test_a_reader_goes_on_where_it_was(traces: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MAX_READ", 2)
    with traces.enter("whole", SAMPLED):
        for number in range(4):
            with tracing.span(str(number)):
                pass
    first = traces.read(5)
    second = traces.read(first.next)
    third = traces.read(second.next)
    assert [[span.name for span in one.spans] for one in (first, second, third)] == [["0", "1"], ["2", "3"], ["whole"]]
    assert traces.read(third.next).spans == ()
    assert traces.read(10_000_000).spans[0].name == "first", "this node has begun anew since that reader was here"


def test_nothing_grows_where_nobody_reads(traces: Traces, clock: Clock) -> None:
    for number in range(3000):
        clock.now += 0.001
        with traces.enter("GET /", SAMPLED if number % 2 else ""):
            for _ in range(20):
                with tracing.span("part"):
                    pass
    assert len(traces._kept) <= tracing.MAX_KEPT
    assert traces._waiting <= tracing.MAX_WAITING
    assert traces.read(0).lost == traces._kept._next - len(traces._kept)
    clock.now += 1000
    with traces.enter("GET /", ""):
        pass
    assert len(traces._ended) == 1
    assert traces._waiting <= 1


def test_one_request_has_so_many_spans_at_most(traces: Traces) -> None:
    with traces.enter("GET /", SAMPLED):
        for _ in range(1000):
            with tracing.span("part"):
                pass
    assert len(kept(traces)) == spans.MAX_SPANS


def test_turned_off_it_makes_no_spans_and_hands_on_what_came() -> None:
    off = Traces(ratio=1.0, is_on=False)
    with off.enter("GET /", SAMPLED) as served, tracing.span("part"):
        served.tell({"size": 1})
        now = context.current.get()
        assert now is not None
        assert now.traceparent == SAMPLED
    assert context.current.get() is None
    assert off.join("method", SAMPLED, context.new_request_id()) is None
    assert off.read(0).spans == ()


def test_outside_a_request_a_span_is_nothing() -> None:
    with tracing.span("part") as part:
        part.tell({"size": 1})
        part.part("piece", 1, 2)


async def test_what_another_node_does_hangs_below_the_asking(traces: Traces) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def stream() -> AsyncIterator[str]:
        now = context.current.get()
        assert now is not None
        seen.append(now.traceparent)
        yield "answer"

    with traces.enter("GET /", SAMPLED), tracing.span("chat llama3", {"gen_ai.request.model": "llama3"}, SpanKind.CLIENT) as asking:
        async with stream() as answer:
            assert answer == "answer"
            asking.tell({"tokens": 3})
    asked, _whole = kept(traces)
    assert asked.kind is SpanKind.CLIENT
    assert asked.attributes == {"gen_ai.request.model": "llama3", "tokens": 3}
    parent = spans.parse(seen[0])
    assert parent is not None
    assert parent.span_id == asked.span_id
