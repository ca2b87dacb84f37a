"""Record spans, choose the traces that a node keeps, and buffer them for the metrics service.

    with tracing.span("ledger.reserve"):
        …

A node keeps a random sample of all traces, and those that failed or were slow. It holds the rest for a minute, in case another node
kept its part of the trace. All buffers are bounded and drop the oldest.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from shared import context, errors, spans
from shared.spans import OpenSpan, Span, SpanKind, Trace
from shared.telemetry.ring_buffer import RingBuffer
from shared.timing.token_bucket import TokenBucket
from shared.types import RequestId

#: Kept spans that wait to be read, about 1 KiB each.
MAX_KEPT = 8_192
#: Spans of traces that are not kept, and how long another node can still request them.
MAX_WAITING = 16_384
WAITING_SECONDS = 60.0
#: Per call, so that they fit into one message.
MAX_READ = 1_000

#: Traces per second, per reason: failed, slow, or extra at low traffic; and requested by a caller.
_PER_SECOND = 5.0
_ASKED_PER_SECOND = 20.0
#: A trace is slow if it takes longer than this share of the latest ones of the same name.
_SLOW_QUANTILE = 0.95
_LATEST = 256
_ENOUGH_TO_KNOW = 64
_MAX_NAMES = 200

_LOT = 2**56


@dataclass(slots=True)
class _Ended:
    since: float
    kept: bool = False
    spans: list[OpenSpan] = field(default_factory=list)


class Traces:
    """The traces of one node."""

    def __init__(self, *, ratio: float, clock: Callable[[], float] = time.monotonic, is_on: bool = True) -> None:
        """``ratio`` is the share of traces starting here that is always kept. Records nothing unless ``is_on``."""
        self._clock = clock
        self._is_on = is_on
        self._limit = int(ratio * _LOT)
        rates = {"few": _PER_SECOND, "failed": _PER_SECOND, "slow": _PER_SECOND, "asked": _ASKED_PER_SECOND}
        self._budgets = {kind: TokenBucket(rate, at_once=rate) for kind, rate in rates.items()}
        self._paces: OrderedDict[str, _Pace] = OrderedDict()
        self._kept: RingBuffer[OpenSpan] = RingBuffer(MAX_KEPT)
        self._ended: OrderedDict[str, _Ended] = OrderedDict()
        self._waiting = 0

    def enter(self, name: str, traceparent: str, request_id: RequestId | None = None) -> "ServingSpan":
        """Serve an external caller. A trace starts here, as part of the caller's if ``traceparent`` is set."""
        request_id = request_id or context.new_request_id()
        if not self._is_on:
            return ServingSpan(self, None, traceparent, name, request_id, is_entry=True)
        asked = spans.parse(traceparent)
        trace_id = request_id.hex if asked is None else asked.trace_id
        trace = Trace(trace_id, sampled=self._is_chosen(trace_id, asked))
        return ServingSpan(self, trace, "" if asked is None else asked.span_id, name, request_id, is_entry=True)

    def join(self, name: str, traceparent: str, request_id: RequestId) -> "ServingSpan | None":
        """Serve another node of the mesh. Returns None if its request has no trace."""
        asked = spans.parse(traceparent)
        if asked is None or not self._is_on:
            return None
        trace = Trace(asked.trace_id, sampled=asked.sampled)
        return ServingSpan(self, trace, asked.span_id, name, request_id, is_entry=False)

    def _is_chosen(self, trace_id: str, asked: spans.Traceparent | None) -> bool:
        now = self._clock()
        if asked is not None and asked.sampled and self._budgets["asked"].spend(now):
            return True
        # By trace id, so that every node makes the same choice.
        return int(trace_id[-14:], 16) < self._limit or self._budgets["few"].spend(now)

    def ended(self, served: OpenSpan, *, is_entry: bool) -> None:
        """Decide whether to keep the trace that ended on this node with ``served``."""
        trace, now = served.trace, self._clock()
        assert trace is not None
        keep = trace.sampled or self._is_remarkable(served, now, is_entry=is_entry)
        # A node can serve several calls of one trace.
        ended = self._ended.get(trace.id)
        if ended is None:
            ended = self._ended[trace.id] = _Ended(now)
        self._put(ended, trace.close(self._late))
        if keep:
            self._keep(ended)
        self._forget(now)

    def _is_remarkable(self, served: OpenSpan, now: float, *, is_entry: bool) -> bool:
        if served.error and served.error != errors.Cancelled.code:
            return self._budgets["failed"].spend(now)
        if not is_entry:
            return False
        pace = self._paces.get(served.name)
        if pace is None:
            pace = self._paces[served.name] = _Pace()
            if len(self._paces) > _MAX_NAMES:
                self._paces.popitem(last=False)
        return pace.is_slow(served.end_ns - served.start_ns) and self._budgets["slow"].spend(now)

    def _late(self, span: OpenSpan) -> None:
        ended = None if span.trace is None else self._ended.get(span.trace.id)
        if ended is not None:
            self._put(ended, [span])

    def _put(self, ended: _Ended, found: list[OpenSpan]) -> None:
        if ended.kept:
            self._kept.add(found)
        elif len(ended.spans) < spans.MAX_SPANS:
            ended.spans += found
            self._waiting += len(found)

    def _keep(self, ended: _Ended) -> None:
        if not ended.kept:
            found, ended.spans, ended.kept = ended.spans, [], True
            self._waiting -= len(found)
            self._put(ended, found)

    def _forget(self, now: float) -> None:
        while self._ended:
            oldest = next(iter(self._ended.values()))
            if self._waiting <= MAX_WAITING and len(self._ended) <= MAX_WAITING and now - oldest.since < WAITING_SECONDS:
                return
            self._waiting -= len(oldest.spans)
            self._ended.popitem(last=False)

    def read(self, after: int, wanted: Iterable[str] = ()) -> "SpanBatch":
        """Return kept spans from number ``after`` on. Also starts to keep the traces ``wanted``, which another node kept."""
        for trace_id in wanted:
            if trace_id in self._ended:
                self._keep(self._ended[trace_id])
        reading = self._kept.read(after, MAX_READ)
        return SpanBatch(tuple(span.read() for span in reading.items), reading.next, reading.lost)


@dataclass(frozen=True, slots=True)
class SpanBatch:
    """``shared.api.node.Spans``, which tracing must not import: nearly everything imports tracing."""

    spans: tuple[Span, ...]
    next: int
    lost: int


class ServingSpan:
    """A context manager for serving one request: sets ``context.current`` and records a span."""

    __slots__ = ("_before", "_is_entry", "_parent", "_request_id", "_trace", "_traces", "span")

    def __init__(self, traces: Traces, trace: Trace | None, parent: str, name: str, request_id: RequestId, *, is_entry: bool) -> None:
        """``parent`` is the caller's span id, or the whole traceparent without a trace. ``is_entry``: the request entered the mesh here."""
        self._traces = traces
        self._trace = trace
        self._parent = parent
        self._request_id = request_id
        self._is_entry = is_entry
        self._before: context.RequestContext | None = None
        self.span = OpenSpan(name, None, SpanKind.SERVER)

    def __enter__(self) -> OpenSpan:
        self._before = context.current.get()
        if self._trace is None:
            context.current.set(context.RequestContext(self._request_id, self._parent))
        else:
            self.span.begin(self._trace, self._parent)
            context.current.set(context.RequestContext(self._request_id, span=self.span))
        return self.span

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _where: TracebackType | None) -> None:
        context.current.set(self._before)
        if self._trace is None:
            return
        if error is not None and not self.span.error:
            self.span.error = error_code(error)
        self.span.end()
        self._traces.ended(self.span, is_entry=self._is_entry)


class span(OpenSpan):  # noqa: N801 - read as a statement: with tracing.span("route.select")
    """A context manager that records a span of the current request. Does nothing without one."""

    __slots__ = ("_before",)

    def __enter__(self) -> Self:
        now = context.current.get()
        if now is not None and now.span is not None and now.span.trace is not None:
            self._before = now
            self.begin(now.span.trace, now.span)
            context.current.set(context.RequestContext(now.request_id, span=self))
        return self

    def part(self, name: str, start_ns: int, end_ns: int) -> None:
        """Add a child span that was measured elsewhere, in ``spans.now_ns``."""
        if self.trace is not None:
            piece = OpenSpan(name)
            piece.begin(self.trace, self)
            piece.start_ns = start_ns
            piece.end(at_ns=end_ns)

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _where: TracebackType | None) -> None:
        if self.trace is None:
            return
        context.current.set(self._before)
        if error is not None:
            self.error = error_code(error)
        self.end()


def of_headers(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the traceparent header of an HTTP client; empty without one."""
    return next((value.decode("latin-1") for name, value in headers if name == b"traceparent"), "")


def error_code(error: BaseException) -> str:
    if isinstance(error, errors.AimeshError):
        return errors.code_of(error)
    return errors.Cancelled.code if isinstance(error, (asyncio.CancelledError, GeneratorExit)) else errors.Internal.code


class _Pace:
    __slots__ = ("_latest", "_slow_ns")

    def __init__(self) -> None:
        self._latest: list[int] = []
        self._slow_ns: int | None = None

    def is_slow(self, duration_ns: int) -> bool:
        slow = self._slow_ns is not None and duration_ns > self._slow_ns
        self._latest.append(duration_ns)
        if len(self._latest) >= (_ENOUGH_TO_KNOW if self._slow_ns is None else _LATEST):
            self._latest.sort()
            self._slow_ns = self._latest[int(len(self._latest) * _SLOW_QUANTILE)]
            if len(self._latest) >= _LATEST:
                self._latest.clear()
        return slow
