"""Assemble the latest traces from the spans of all nodes. Pure. Drops the oldest traces if full."""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from services.metrics.export.span_records import NodeSpan
from shared.spans import REQUEST_ID

MAX_TRACES: Final = 1_000
MAX_SPANS: Final = 20_000
#: Per trace, so that one trace cannot displace all others.
MAX_SPANS_OF_ONE: Final = 500
MAX_WANTED: Final = 200
#: How many rounds to request a trace, because a node may end its part later.
_MAX_ROUNDS: Final = 3


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
