"""The spans of one request on one node, and how W3C trace context names them. Pure, but for the clock and the dice."""

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

#: Wall-clock time less monotonic time, once: the spans of a process lie right beside each other, whatever is done to its clock.
_EPOCH = time.time_ns() - time.monotonic_ns()


class Kind(StrEnum):
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
    kind: Kind
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


def new_id() -> str:
    """Of a span."""
    return f"{random.getrandbits(64) or 1:016x}"


def now_ns() -> int:
    """The wall-clock time of the spans."""
    return time.monotonic_ns() + _EPOCH


class Trace:
    """What one request does on one node; for the event loop of that node."""

    __slots__ = ("_late", "_spans", "dropped", "id", "remote_parent", "sampled")

    def __init__(self, trace_id: str, *, remote_parent: str = "", sampled: bool = False) -> None:
        self.id = trace_id
        #: The span of another process that asked; empty where the trace begins here.
        self.remote_parent = remote_parent
        self.sampled = sampled
        self.dropped = 0
        self._spans: list[Span] = []
        self._late: Callable[[Span], object] | None = None

    def add(self, span: Span) -> None:
        if self._late is not None:
            self._late(span)
        elif len(self._spans) < MAX_SPANS:
            self._spans.append(span)
        else:
            self.dropped += 1

    def close(self, late: Callable[[Span], object]) -> list[Span]:
        """Its spans so far; what ends from now on, in a task that outlives the request, goes to ``late``."""
        spans, self._spans, self._late = self._spans, [], late
        return spans


class Open:
    """A span that has begun; ``end`` it once."""

    __slots__ = ("_trace", "attributes", "error", "id", "kind", "name", "parent_id", "start_ns")

    def __init__(self, trace: Trace, parent_id: str, name: str, kind: Kind, attributes: Mapping[str, Value] | None = None) -> None:
        self._trace = trace
        self.parent_id = parent_id
        self.name = name
        self.kind = kind
        self.attributes: dict[str, Value] = {} if attributes is None else {**attributes}
        #: The code of what went wrong.
        self.error = ""
        self.id = new_id()
        self.start_ns = now_ns()

    @property
    def traceparent(self) -> str:
        """For what this span asks of others."""
        return f"00-{self._trace.id}-{self.id}-{int(self._trace.sampled):02x}"

    def end(self, *, at_ns: int | None = None) -> Span:
        end_ns = max(self.start_ns, now_ns() if at_ns is None else at_ns)
        span = Span(self._trace.id, self.id, self.parent_id, self.name, self.kind, self.start_ns, end_ns, self.error, self.attributes)
        self._trace.add(span)
        return span
