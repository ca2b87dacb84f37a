"""The room of traces, opened and joined; and its RPC method."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, Protocol

from services.metrics.collection.read_positions import ReadPositions
from services.metrics.export.otlp.otlp_outbox import OtlpOutbox
from services.metrics.export.otlp.span_records import NodeSpan
from services.metrics.traces.span_validation import is_sound
from services.metrics.traces.trace_store import TraceStore
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
    """What the collector needs of its node."""

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


#: Asks every live node at the same time.
Each = Callable[[Callable[[directory.DirectoryEntry], Coroutine[Any, Any, list[NodeSpan]]]], Awaitable[Sequence[list[NodeSpan]]]]


class SpanCollector:
    def __init__(self, node: TracedNode, each: Each, shelf: TraceStore, outbox: OtlpOutbox[NodeSpan] | None) -> None:
        self._node = node
        self._each = each
        self._shelf = shelf
        self._outbox = outbox
        self._bookmarks: ReadPositions[Span] = ReadPositions(page=tracing.MAX_READ, most_readings=10)
        self._own_after = 0

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY_SECONDS)

    async def look(self) -> None:
        """One round: every node tells what it kept since the last one, and what others kept of the same traces."""
        wanted = self._shelf.wanted()
        told = self._own(wanted)
        for part in await self._each(lambda entry: self._read(entry, wanted)):
            told += part
        new = self._shelf.put(told)
        if self._outbox is not None:
            self._outbox.put(new)

    def _own(self, wanted: tuple[str, ...]) -> list[NodeSpan]:
        batch = self._node.traces.read(self._own_after, wanted)
        self._own_after = batch.next
        return [NodeSpan(self._node.service_name, node_label(self._node.id), span) for span in batch.spans]

    async def _read(self, entry: directory.DirectoryEntry, wanted: tuple[str, ...]) -> list[NodeSpan]:
        async def ask(after: int) -> RingReading[Span]:
            asked = node_api.ReadSpans(after, wanted)
            answer = await self._node.rpc.call(node_api.read_spans, asked, to=entry.node, deadline_seconds=NODE_DEADLINE_SECONDS)
            return RingReading(answer.spans, answer.next, answer.lost)

        found = await self._bookmarks.read(entry.node, ask)
        if found.lost:
            self._node.metrics.spans_lost.labels(reason="overwritten").inc(min(found.lost, tracing.MAX_KEPT))
        service, node = SERVICE_NAMES[entry.role], node_label(entry.node)
        return [NodeSpan(service, node, span) for span in found.items if is_sound(span, service)]


class TracesModule:
    """Handlers; ``collect`` fills what they read."""

    def __init__(self) -> None:
        self._shelf = TraceStore()

    async def collect(self, node: nodes.Node, each: Each, outbox: OtlpOutbox[NodeSpan] | None) -> None:
        """For ever; without an outbox they are kept here alone."""
        await SpanCollector(node, each, self._shelf, outbox).run()

    @serves(api.get_trace)
    async def get_trace(self, request: api.GetTrace, call: RpcCall) -> api.FoundTrace:
        found = self._shelf.find(request.id.strip().lower())
        if not found:
            raise errors.NotFound(
                f"there is no trace of {request.id[:80]!r} here",
                hint="the latest are kept for a while: those that failed or were slow, and some of the others (OTEL_TRACES_SAMPLER_ARG)",
            )
        return api.FoundTrace(tuple(api.TracedSpan(one.service, one.node, one.span) for one in found))
