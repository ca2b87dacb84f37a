"""The spans of one request on one node, and their W3C trace context. Pure, except for the clock and random numbers."""

import itertools
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

#: A span attribute. Never a prompt, an answer, a key or a user's name.
Value = str | int | float | bool

MAX_SPANS: Final = 128

#: The attribute that links a trace to its request.
REQUEST_ID: Final = "aimesh.request_id"

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
_SAMPLED = 1

_SPAN_ID = 2**64 - 1
#: Span ids are consecutive within a process, from a random start.
_numbers = itertools.count(random.getrandbits(64))

#: Wall-clock minus monotonic time, measured once, so that clock changes do not shift spans against each other.
_EPOCH = time.time_ns() - time.monotonic_ns()


class SpanKind(StrEnum):
    INTERNAL = "internal"
    SERVER = "server"
    CLIENT = "client"


class Span(msgspec.Struct, frozen=True, array_like=True):
    """A finished span."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: SpanKind
    start_ns: int
    end_ns: int
    error: str
    attributes: dict[str, Value]


@dataclass(frozen=True, slots=True)
class Traceparent:
    """W3C trace context, https://www.w3.org/TR/trace-context/."""

    trace_id: str
    span_id: str
    sampled: bool

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


def parse(text: str) -> Traceparent | None:
    """Return None if the text is not valid."""
    found = _TRACEPARENT.fullmatch(text)
    if found is None:
        return None
    trace_id, span_id, flags = found.groups()
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return Traceparent(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


def now_ns() -> int:
    return time.monotonic_ns() + _EPOCH


class OpenSpan:
    """A running span; ``end`` it once. Ids become text only on demand, because most spans are never read."""

    __slots__ = ("_number", "_parent", "attributes", "end_ns", "error", "kind", "name", "start_ns", "trace")

    def __init__(self, name: str, attributes: Mapping[str, Value] | None = None, kind: SpanKind = SpanKind.INTERNAL) -> None:
        self.name = name
        self.attributes = attributes
        self.kind = kind
        self.error = ""
        self.trace: Trace | None = None

    def begin(self, trace: "Trace", parent: "OpenSpan | str") -> None:
        """``parent`` is one of our spans or the id of another process's span; empty for a root span."""
        self.trace = trace
        self._parent = parent
        self._number = next(_numbers)
        self.start_ns = now_ns()

    def end(self, *, at_ns: int | None = None) -> None:
        assert self.trace is not None
        self.end_ns = max(self.start_ns, now_ns() if at_ns is None else at_ns)
        self.trace.add(self)

    def tell(self, attributes: Mapping[str, Value]) -> None:
        """Add attributes. Does nothing if the span is not traced."""
        if self.trace is not None:
            self.attributes = {**self.attributes, **attributes} if self.attributes else attributes

    @property
    def id(self) -> str:
        return f"{self._number & _SPAN_ID:016x}"

    @property
    def traceparent(self) -> str:
        """Return the trace context for calls made within this span."""
        assert self.trace is not None
        return f"00-{self.trace.id}-{self.id}-{int(self.trace.sampled):02x}"

    def read(self) -> Span:
        assert self.trace is not None
        parent = self._parent if isinstance(self._parent, str) else self._parent.id
        attributes = dict(self.attributes or ())
        return Span(self.trace.id, self.id, parent, self.name, self.kind, self.start_ns, self.end_ns, self.error, attributes)


class Trace:
    """The spans of one request on one node. For use in one event loop."""

    __slots__ = ("_late", "_spans", "dropped", "id", "sampled")

    def __init__(self, trace_id: str, *, sampled: bool = False) -> None:
        self.id = trace_id
        self.sampled = sampled
        self.dropped = 0
        self._spans: list[OpenSpan] = []
        self._late: Callable[[OpenSpan], object] | None = None

    def add(self, span: OpenSpan) -> None:
        if self._late is not None:
            self._late(span)
        elif len(self._spans) < MAX_SPANS:
            self._spans.append(span)
        else:
            self.dropped += 1

    def close(self, late: Callable[[OpenSpan], object]) -> list[OpenSpan]:
        """Return the spans so far. Spans that end later, in tasks that outlive the request, go to ``late``."""
        spans, self._spans, self._late = self._spans, [], late
        return spans
