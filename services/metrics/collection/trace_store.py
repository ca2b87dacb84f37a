"""Validate the spans of all nodes, and assemble the latest traces from them. Pure. Drops the oldest traces if full."""

import re
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite
from typing import Final

from services.metrics.export.otlp_records import NodeSpan
from shared.spans import REQUEST_ID, Span, Value
from shared.types import SERVICE_NAMES, Role

MAX_TRACES: Final = 1_000
MAX_SPANS: Final = 20_000
#: Per trace, so that one trace cannot displace all others.
MAX_SPANS_OF_ONE: Final = 500
MAX_WANTED: Final = 200
#: How many rounds to request a trace, because a node may end its part later.
_MAX_ROUNDS: Final = 3

_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}")
_SPAN_ID: Final = re.compile(r"[0-9a-f]{16}")
_MAX_NAME: Final = 200
_MAX_ATTRIBUTES: Final = 32
_MAX_TEXT: Final = 256
_MAX: Final = 2**63 - 1
#: Only these services create request ids.
_NAMES_REQUESTS: Final = frozenset({SERVICE_NAMES[Role.GATEWAY], SERVICE_NAMES[Role.WEB]})


def is_sound(span: Span, service: str) -> bool:
    """Return whether to store a span. Nodes are untrusted: limit its size, and let only gateways and web name requests."""
    ids = _TRACE_ID.fullmatch(span.trace_id) and _SPAN_ID.fullmatch(span.span_id) and _SPAN_ID.fullmatch(span.parent_id or span.span_id)
    if not ids or not 0 <= span.start_ns <= span.end_ns <= _MAX:
        return False
    if not 0 < len(span.name) <= _MAX_NAME or len(span.error) > _MAX_TEXT or len(span.attributes) > _MAX_ATTRIBUTES:
        return False
    if REQUEST_ID in span.attributes and service not in _NAMES_REQUESTS:
        return False
    return all(len(name) <= _MAX_NAME and _is_small(value) for name, value in span.attributes.items())


def _is_small(value: Value) -> bool:
    if isinstance(value, str):
        return len(value) <= _MAX_TEXT
    return -_MAX <= value <= _MAX if isinstance(value, int) else isfinite(value)


@dataclass(slots=True)
class _StoredTrace:
    spans: list[NodeSpan] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)


class TraceStore:
    def __init__(self) -> None:
        self._traces: OrderedDict[str, _StoredTrace] = OrderedDict()
        self._by_request: dict[str, str] = {}
        self._spans = 0
        #: Traces to request from all nodes, and how many more rounds.
        self._wanted: deque[tuple[str, int]] = deque()

    def __len__(self) -> int:
        return len(self._traces)

    def put(self, spans: Iterable[NodeSpan]) -> list[NodeSpan]:
        """Store spans and return the new ones."""
        new = []
        for one in spans:
            kept = self._traces.get(one.span.trace_id)
            if kept is None:
                kept = self._traces[one.span.trace_id] = _StoredTrace()
                self._wanted.append((one.span.trace_id, _MAX_ROUNDS))
            if one.span.span_id in kept.seen or len(kept.spans) >= MAX_SPANS_OF_ONE:
                continue
            kept.seen.add(one.span.span_id)
            kept.spans.append(one)
            self._spans += 1
            new.append(one)
            request = one.span.attributes.get(REQUEST_ID)
            if isinstance(request, str):
                self._by_request[request] = one.span.trace_id
        self._shorten()
        return new

    def wanted(self) -> tuple[str, ...]:
        """Return the traces to request in this round."""
        chosen = [self._wanted.popleft() for _ in range(min(len(self._wanted), MAX_WANTED))]
        self._wanted.extend((trace_id, times - 1) for trace_id, times in chosen if times > 1)
        return tuple(trace_id for trace_id, _ in chosen)

    def find(self, some_id: str) -> list[NodeSpan]:
        """Return the spans of a trace or request id, by start time; empty if unknown."""
        kept = self._traces.get(self._by_request.get(some_id, some_id))
        return [] if kept is None else sorted(kept.spans, key=lambda one: one.span.start_ns)

    def _shorten(self) -> None:
        while len(self._traces) > MAX_TRACES or self._spans > MAX_SPANS:
            trace_id, kept = self._traces.popitem(last=False)
            self._spans -= len(kept.spans)
            for one in kept.spans:
                request = one.span.attributes.get(REQUEST_ID)
                if isinstance(request, str) and self._by_request.get(request) == trace_id:
                    del self._by_request[request]
        while len(self._wanted) > MAX_TRACES:
            self._wanted.popleft()
