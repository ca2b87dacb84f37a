"""The spans of one request on one node, and how W3C trace context names them. Pure, but for the clock and the dice."""

import itertools
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

#: What a span may say of its work. Never a prompt, an answer, a key or a name of a person.
Value = str | int | float | bool

#: Of one request on one node; a request that does more is shown without the rest.
MAX_SPANS: Final = 128

#: The attribute by which the trace of a request is found.
REQUEST_ID: Final = "aimesh.request_id"

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
_SAMPLED = 1

_SPAN_ID = 2**64 - 1
#: Of spans: in a row within a process, from somewhere between others.
_numbers = itertools.count(random.getrandbits(64))

#: Wall-clock time less monotonic time, once: the spans of a process lie right beside each other, whatever is done to its clock.
_EPOCH = time.time_ns() - time.monotonic_ns()


class SpanKind(StrEnum):
    """As OpenTelemetry names them."""

    INTERNAL = "internal"
    SERVER = "server"
    CLIENT = "client"


class Span(msgspec.Struct, frozen=True, array_like=True):
    """One piece of work that has ended."""

    trace_id: str
    span_id: str
    #: Empty for the first of its trace.
    parent_id: str
    name: str
    kind: SpanKind
    start_ns: int
    end_ns: int
    #: The code of the error it ended with; empty where it went well.
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
    """None where it is not valid."""
    found = _TRACEPARENT.fullmatch(text)
    if found is None:
        return None
    trace_id, span_id, flags = found.groups()
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return Traceparent(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


def now_ns() -> int:
    """The wall-clock time of the spans."""
    return time.monotonic_ns() + _EPOCH


class OpenSpan:
    """A span from its beginning on; ``end`` it once. Its texts are made when somebody reads it: most are never read."""

    __slots__ = ("_number", "_parent", "attributes", "end_ns", "error", "kind", "name", "start_ns", "trace")

    def __init__(self, name: str, attributes: Mapping[str, Value] | None = None, kind: SpanKind = SpanKind.INTERNAL) -> None:
        """Of no trace until ``begin``."""
        self.name = name
        self.attributes = attributes
        self.kind = kind
        #: The code of what went wrong.
        self.error = ""
        self.trace: Trace | None = None

    def begin(self, trace: "Trace", parent: "OpenSpan | str") -> None:
        """``parent`` is the id of a span of another process, empty for the first of all, or one of ours."""
        self.trace = trace
        self._parent = parent
        self._number = next(_numbers)
        self.start_ns = now_ns()

    def end(self, *, at_ns: int | None = None) -> None:
        assert self.trace is not None  # it has begun
        self.end_ns = max(self.start_ns, now_ns() if at_ns is None else at_ns)
        self.trace.add(self)

    def tell(self, attributes: Mapping[str, Value]) -> None:
        """What is known of it by now; nothing happens where nobody looks."""
        if self.trace is not None:
            self.attributes = {**self.attributes, **attributes} if self.attributes else attributes

    @property
    def id(self) -> str:
        return f"{self._number & _SPAN_ID:016x}"

    @property
    def traceparent(self) -> str:
        """For what this span asks of others."""
        assert self.trace is not None  # it has begun
        return f"00-{self.trace.id}-{self.id}-{int(self.trace.sampled):02x}"

    def read(self) -> Span:
        """What it was; it has ended."""
        assert self.trace is not None
        parent = self._parent if isinstance(self._parent, str) else self._parent.id
        attributes = dict(self.attributes or ())
        return Span(self.trace.id, self.id, parent, self.name, self.kind, self.start_ns, self.end_ns, self.error, attributes)


class Trace:
    """What one request does on one node; for the event loop of that node."""

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
        """Its spans so far; what ends from now on, in a task that outlives the request, goes to ``late``."""
        spans, self._spans, self._late = self._spans, [], late
        return spans
