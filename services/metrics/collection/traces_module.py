"""Collect traces from all nodes, and serve them by RPC."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, Protocol

from services.metrics.collection.read_positions import ReadPositions
from services.metrics.collection.span_validation import is_sound
from services.metrics.collection.trace_store import TraceStore
from services.metrics.export.otlp_outbox import OtlpOutbox
from services.metrics.export.span_records import NodeSpan
from shared import errors, rpc, telemetry
from shared import node as nodes
from shared.api import metrics as api
from shared.api import node as node_api
from shared.discovery import directory
from shared.rpc import RpcCall, serves
from shared.spans import Span
from shared.telemetry import tracing
from shared.telemetry.instruments import node_label
from shared.telemetry.ring_buffer import RingReading
from shared.types import SERVICE_NAMES, NodeId

EVERY_SECONDS: Final = 2.0
NODE_DEADLINE_SECONDS: Final = 2.0


class TracedNode(Protocol):
    """The part of Node that the collector needs."""

    @property
    def id(self) -> NodeId: ...
    @property
    def rpc(self) -> rpc.RpcClient: ...
    @property
    def traces(self) -> tracing.Traces: ...
    @property
    def metrics(self) -> telemetry.Metrics: ...
    @property
    def service_name(self) -> str: ...


Each = Callable[[Callable[[directory.DirectoryEntry], Coroutine[Any, Any, list[NodeSpan]]]], Awaitable[Sequence[list[NodeSpan]]]]


class SpanCollector:
    def __init__(self, node: TracedNode, each: Each, store: TraceStore, outbox: OtlpOutbox[NodeSpan] | None) -> None:
        self._node = node
        self._each = each
        self._store = store
        self._outbox = outbox
        self._bookmarks: ReadPositions[Span] = ReadPositions(page=tracing.MAX_READ, most_readings=10)
        self._own_after = 0

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(EVERY_SECONDS)

    async def look(self) -> None:
        """Read the spans that each node kept since the last round, and its parts of traces that other nodes kept."""
        wanted = self._store.wanted()
        spans = self._own(wanted)
        for part in await self._each(lambda entry: self._read(entry, wanted)):
            spans += part
        new = self._store.put(spans)
        if self._outbox is not None:
            self._outbox.put(new)

    def _own(self, wanted: tuple[str, ...]) -> list[NodeSpan]:
        batch = self._node.traces.read(self._own_after, wanted)
        self._own_after = batch.next
        return [NodeSpan(self._node.service_name, node_label(self._node.id), span) for span in batch.spans]

    async def _read(self, entry: directory.DirectoryEntry, wanted: tuple[str, ...]) -> list[NodeSpan]:
        async def fetch(after: int) -> RingReading[Span]:
            request = node_api.ReadSpans(after, wanted)
            answer = await self._node.rpc.call(node_api.read_spans, request, to=entry.node, deadline_seconds=NODE_DEADLINE_SECONDS)
            return RingReading(answer.spans, answer.next, answer.lost)

        found = await self._bookmarks.read(entry.node, fetch)
        if found.lost:
            self._node.metrics.spans_lost.labels(reason="overwritten").inc(min(found.lost, tracing.MAX_KEPT))
        service, node = SERVICE_NAMES[entry.role], node_label(entry.node)
        return [NodeSpan(service, node, span) for span in found.items if is_sound(span, service)]


class TracesModule:
    """The handlers, and ``collect``, which fills the store."""

    def __init__(self) -> None:
        self._store = TraceStore()

    async def collect(self, node: nodes.Node, each: Each, outbox: OtlpOutbox[NodeSpan] | None) -> None:
        await SpanCollector(node, each, self._store, outbox).run()

    @serves(api.get_trace)
    async def get_trace(self, request: api.GetTrace, call: RpcCall) -> api.FoundTrace:
        found = self._store.find(request.id.strip().lower())
        if not found:
            raise errors.NotFound(
                f"no trace found for {request.id[:80]!r}",
                hint="only recent traces are kept: failed and slow ones, and a sample of the others (OTEL_TRACES_SAMPLER_ARG)",
            )
        return api.FoundTrace(tuple(api.TracedSpan(one.service, one.node, one.span) for one in found))
