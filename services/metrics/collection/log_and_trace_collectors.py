"""Collect log lines and spans from the ring buffers of all nodes, and serve the traces by RPC."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, Generic, TypeAlias, TypeVar

from services.metrics.collection.trace_store import TraceStore, is_sound
from services.metrics.export.otlp_outbox import OtlpOutbox
from services.metrics.export.otlp_records import LogLine, NodeSpan
from shared import errors
from shared import node as nodes
from shared.api import metrics as api
from shared.api import node as node_api
from shared.protocol.directory import DirectoryEntry
from shared.rpc import RpcCall, serves
from shared.spans import Span
from shared.telemetry import log_buffer, tracing
from shared.telemetry.instrument import node_label
from shared.telemetry.ring_buffer import RingReading
from shared.types import SERVICE_NAMES, NodeId, Role

EVERY_SECONDS: Final = 2.0
NODE_DEADLINE_SECONDS: Final = 2.0
_MAX_NODES: Final = 2_000

T = TypeVar("T")

#: Asks all live nodes concurrently.
Each: TypeAlias = Callable[[Callable[[DirectoryEntry], Coroutine[Any, Any, T]]], Awaitable[Sequence[T]]]


class ReadPositions(Generic[T]):
    """Remembers how far the ring buffer of each node was read."""

    def __init__(self, *, page: int, most_readings: int) -> None:
        """A response with fewer than ``page`` items is the last. After ``most_readings`` calls, the rest waits for the next round."""
        self._page = page
        self._most_readings = most_readings
        self._after: dict[NodeId, int] = {}

    async def read(self, node: NodeId, fetch: Callable[[int], Awaitable[RingReading[T]]]) -> RingReading[T]:
        """Return the new items of a node, as far as it responds; ``fetch`` reads from a number on."""
        if node not in self._after and len(self._after) >= _MAX_NODES:
            # Known nodes are read from the start again.
            self._after.clear()
        items: list[T] = []
        lost = 0
        for _ in range(self._most_readings):
            try:
                found = await fetch(self._after.get(node, 0))
            except errors.AimeshError:
                # The health shows it, and the rest waits in the buffer.
                break
            self._after[node] = found.next
            items += found.items
            lost += max(0, found.lost)
            if len(found.items) < self._page:
                break
        return RingReading(tuple(items), self._after.get(node, 0), lost)


class LogCollector:
    """Passes log lines to the OTLP endpoint. Workers' logs belong to their owners and are never read."""

    def __init__(self, node: nodes.Node, each: Each[None], outbox: OtlpOutbox[LogLine]) -> None:
        self._node = node
        self._each = each
        self._outbox = outbox
        self._positions: ReadPositions[str] = ReadPositions(page=log_buffer.MAX_READ, most_readings=5)
        self._own_after = 0

    async def run(self) -> None:
        while True:
            self._read_own()
            await self._each(self._read)
            await asyncio.sleep(EVERY_SECONDS)

    def _read_own(self) -> None:
        batch = log_buffer.read(self._own_after)
        self._own_after = batch.next
        label = node_label(self._node.id)
        self._outbox.put([LogLine(self._node.service_name, label, text) for text in batch.items])

    async def _read(self, entry: DirectoryEntry) -> None:
        if entry.role is Role.WORKER:
            return

        async def fetch(after: int) -> RingReading[str]:
            request = node_api.ReadLogs(after)
            answer = await self._node.rpc.call(node_api.read_logs, request, to=entry.node, deadline_seconds=NODE_DEADLINE_SECONDS)
            return RingReading(answer.lines, answer.next, answer.lost)

        found = await self._positions.read(entry.node, fetch)
        if found.lost:
            self._node.metrics.log_lines_lost.labels(reason="overwritten").inc(found.lost)
        service, label = SERVICE_NAMES[entry.role], node_label(entry.node)
        self._outbox.put([LogLine(service, label, text) for text in found.items])


class TraceCollector:
    """``run`` fills the store from which the handler answers, and passes new spans to the OTLP endpoint."""

    def __init__(self, node: nodes.Node, each: Each[list[NodeSpan]], outbox: OtlpOutbox[NodeSpan] | None) -> None:
        self._node = node
        self._each = each
        self._outbox = outbox
        self._store = TraceStore()
        self._positions: ReadPositions[Span] = ReadPositions(page=tracing.MAX_READ, most_readings=10)
        self._own_after = 0

    async def run(self) -> None:
        while True:
            await self._collect()
            await asyncio.sleep(EVERY_SECONDS)

    async def _collect(self) -> None:
        """Read the spans that each node kept since the last round, and its parts of traces that other nodes kept."""
        wanted = self._store.wanted()
        spans = self._read_own(wanted)
        for part in await self._each(lambda entry: self._read(entry, wanted)):
            spans += part
        new = self._store.put(spans)
        if self._outbox is not None:
            self._outbox.put(new)

    def _read_own(self, wanted: tuple[str, ...]) -> list[NodeSpan]:
        batch = self._node.traces.read(self._own_after, wanted)
        self._own_after = batch.next
        return [NodeSpan(self._node.service_name, node_label(self._node.id), span) for span in batch.spans]

    async def _read(self, entry: DirectoryEntry, wanted: tuple[str, ...]) -> list[NodeSpan]:
        async def fetch(after: int) -> RingReading[Span]:
            request = node_api.ReadSpans(after, wanted)
            answer = await self._node.rpc.call(node_api.read_spans, request, to=entry.node, deadline_seconds=NODE_DEADLINE_SECONDS)
            return RingReading(answer.spans, answer.next, answer.lost)

        found = await self._positions.read(entry.node, fetch)
        if found.lost:
            self._node.metrics.spans_lost.labels(reason="overwritten").inc(min(found.lost, tracing.MAX_KEPT))
        service, node = SERVICE_NAMES[entry.role], node_label(entry.node)
        return [NodeSpan(service, node, span) for span in found.items if is_sound(span, service)]

    @serves(api.get_trace)
    async def get_trace(self, request: api.GetTrace, call: RpcCall) -> api.FoundTrace:
        found = self._store.find(request.id.strip().lower())
        if not found:
            raise errors.NotFound(
                f"no trace found for {request.id[:80]!r}",
                hint="only recent traces are kept: failed and slow ones, and a sample of the others (OTEL_TRACES_SAMPLER_ARG)",
            )
        return api.FoundTrace(tuple(api.TracedSpan(one.service, one.node, one.span) for one in found))
