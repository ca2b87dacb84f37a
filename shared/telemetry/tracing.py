"""Spans as they are made: which traces a node keeps, and what of them waits to be read.

    with tracing.span("ledger.reserve"):
        …

A node keeps the traces that were chosen by lot, and of all others those that failed or were slow; the rest stay for a minute, in
case another node kept its part. Everything is bounded: where nobody reads, the oldest go.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, Self, TypeVar

from shared import context, errors, spans
from shared.spans import OpenSpan, Span, SpanKind, Trace, Value
from shared.telemetry.ring_buffer import RingBuffer
from shared.types import RequestId

#: Spans that wait to be read, about 1 KiB each.
MAX_KEPT = 8_192
#: Spans of traces that nobody has kept yet, and for how long they may still be wanted.
MAX_WAITING = 16_384
WAITING_SECONDS = 60.0
#: Of one reading: a message of the mesh, with room to spare.
MAX_READ = 1_000

#: A second, of each kind: chosen although the lot was against it, failed, slow, and asked for by a caller.
_PER_SECOND = 5.0
_ASKED_PER_SECOND = 20.0
#: Slow is slower than so many of the latest of its name.
_SLOW_QUANTILE = 0.95
_LATEST = 256
_ENOUGH_TO_KNOW = 64
_MAX_NAMES = 200

_LOT = 2**56

T = TypeVar("T")


@dataclass(slots=True)
class _Ended:
    """A trace whose work here is over."""

    since: float
    kept: bool = False
    #: Of one that is not kept.
    spans: list[OpenSpan] = field(default_factory=list)


class Traces:
    """One for a node."""

    def __init__(self, *, ratio: float, clock: Callable[[], float] = time.monotonic, is_on: bool = True) -> None:
        """``ratio``: of all traces that begin here, those that are kept whatever becomes of them. Turned off, it makes no spans."""
        self._clock = clock
        self._is_on = is_on
        self._limit = int(ratio * _LOT)
        self._budgets = {kind: _Budget(_PER_SECOND) for kind in ("few", "failed", "slow")} | {"asked": _Budget(_ASKED_PER_SECOND)}
        self._paces: OrderedDict[str, _Pace] = OrderedDict()
        self._kept: RingBuffer[OpenSpan] = RingBuffer(MAX_KEPT)
        #: By the trace's id, the longest ended first.
        self._ended: OrderedDict[str, _Ended] = OrderedDict()
        #: Spans in them.
        self._waiting = 0

    # --- while it runs ----------------------------------------------------------------------------------------------

    def enter(self, name: str, traceparent: str, request_id: RequestId | None = None) -> "ServingSpan":
        """Serve somebody from outside: a trace begins here, as a part of theirs where ``traceparent`` says so."""
        request_id = request_id or context.new_request_id()
        if not self._is_on:
            return ServingSpan(self, None, traceparent, name, request_id, is_door=True)
        asked = spans.parse(traceparent)
        trace_id = request_id.hex if asked is None else asked.trace_id
        trace = Trace(trace_id, sampled=self._is_chosen(trace_id, asked))
        return ServingSpan(self, trace, "" if asked is None else asked.span_id, name, request_id, is_door=True)

    def join(self, name: str, traceparent: str, request_id: RequestId) -> "ServingSpan | None":
        """Serve another node of the mesh; None where its request has no trace."""
        asked = spans.parse(traceparent)
        if asked is None or not self._is_on:
            return None
        trace = Trace(asked.trace_id, sampled=asked.sampled)
        return ServingSpan(self, trace, asked.span_id, name, request_id, is_door=False)

    def _is_chosen(self, trace_id: str, asked: spans.Traceparent | None) -> bool:
        now = self._clock()
        if asked is not None and asked.sampled and self._budgets["asked"].spend(now):
            return True
        # By its id, so that every node would choose the same.
        return int(trace_id[-14:], 16) < self._limit or self._budgets["few"].spend(now)

    # --- when it has ended --------------------------------------------------------------------------------------------

    def ended(self, served: OpenSpan, *, is_door: bool) -> None:
        """Decide about the trace whose work on this node was ``served``."""
        trace, now = served.trace, self._clock()
        assert trace is not None  # it has begun
        keep = trace.sampled or self._is_remarkable(served, now, is_door=is_door)
        # A node may serve several calls of one trace.
        ended = self._ended.get(trace.id)
        if ended is None:
            ended = self._ended[trace.id] = _Ended(now)
        self._put(ended, trace.close(self._late))
        if keep:
            self._keep(ended)
        self._forget(now)

    def _is_remarkable(self, served: OpenSpan, now: float, *, is_door: bool) -> bool:
        if served.error and served.error != errors.Cancelled.code:
            return self._budgets["failed"].spend(now)
        if not is_door:
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

    # --- for the reader -----------------------------------------------------------------------------------------------

    def read(self, after: int, wanted: Iterable[str] = ()) -> "SpanBatch":
        """The spans kept from number ``after`` on, and from now on those of the traces ``wanted``, which another node kept."""
        for trace_id in wanted:
            if trace_id in self._ended:
                self._keep(self._ended[trace_id])
        reading = self._kept.read(after, MAX_READ)
        return SpanBatch(tuple(span.read() for span in reading.items), reading.next, reading.lost)


@dataclass(frozen=True, slots=True)
class SpanBatch:
    spans: tuple[Span, ...]
    #: Where the next reading goes on.
    next: int
    #: Kept, and overwritten before they were read.
    lost: int


class ServingSpan:
    """Work for one request, from its arrival here to its end: the block is its span, and ``context.current`` its request."""

    __slots__ = ("_before", "_is_door", "_parent", "_request_id", "_trace", "_traces", "span")

    def __init__(self, traces: Traces, trace: Trace | None, parent: str, name: str, request_id: RequestId, *, is_door: bool) -> None:
        """``parent`` is the asking span's id, and where there is no trace, all of what came with the request."""
        self._traces = traces
        self._trace = trace
        self._parent = parent
        self._request_id = request_id
        self._is_door = is_door
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
            self.span.error = _code(error)
        self.span.end()
        self._traces.ended(self.span, is_door=self._is_door)


class span(OpenSpan):  # noqa: N801 - read as a statement: with tracing.span("route.select")
    """The block is a span of the running request; of none, it is nothing."""

    __slots__ = ("_before",)

    def __enter__(self) -> Self:
        now = context.current.get()
        if now is not None and now.span is not None and now.span.trace is not None:
            self._before = now
            self.begin(now.span.trace, now.span)
            context.current.set(context.RequestContext(now.request_id, span=self))
        return self

    def part(self, name: str, start_ns: int, end_ns: int) -> None:
        """A piece of it that was measured otherwise, in ``spans.now_ns``."""
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
            self.error = _code(error)
        self.end()


class CallSpan(Generic[T]):
    """A stream of another node, opened in a span of its own that ends with it: what that node does hangs below it. It may be left by
    another task than the one that entered it, as what a generator holds is."""

    __slots__ = ("_stream", "span")

    def __init__(self, name: str, attributes: Mapping[str, Value], stream: AbstractAsyncContextManager[T]) -> None:
        self.span = OpenSpan(name, attributes, SpanKind.CLIENT)
        self._stream = stream

    async def __aenter__(self) -> T:
        now = context.current.get()
        if now is None or now.span is None or now.span.trace is None:
            return await self._stream.__aenter__()
        self.span.begin(now.span.trace, now.span)
        context.current.set(context.RequestContext(now.request_id, span=self.span))
        try:
            return await self._stream.__aenter__()
        except BaseException as error:
            self.span.error = _code(error)
            self.span.end()
            raise
        finally:
            context.current.set(now)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if self.span.trace is not None:
            self.span.error = "" if error is None else _code(error)
            self.span.end()
        await self._stream.__aexit__(kind, error, where)


def begin(name: str, attributes: Mapping[str, Value] | None = None, kind: SpanKind = SpanKind.INTERNAL) -> OpenSpan | None:
    """A span that is no block, such as one around what a generator yields: ``end`` it. None where no request is looked at."""
    now = context.current.get()
    if now is None or now.span is None or now.span.trace is None:
        return None
    made = OpenSpan(name, attributes, kind)
    made.begin(now.span.trace, now.span)
    return made


def of_headers(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The trace that an HTTP client names, as it wrote it; empty where it names none."""
    return next((value.decode("latin-1") for name, value in headers if name == b"traceparent"), "")


def _code(error: BaseException) -> str:
    if isinstance(error, errors.AimeshError):
        return errors.code_of(error)
    return errors.Cancelled.code if isinstance(error, (asyncio.CancelledError, GeneratorExit)) else errors.Internal.code


class _Budget:
    """At most so many a second, a few more after a pause."""

    __slots__ = ("_at", "_left", "_per_second")

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._left = per_second
        self._at = 0.0

    def spend(self, now: float) -> bool:
        self._left = min(self._per_second, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class _Pace:
    """How long the latest of one name took."""

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
