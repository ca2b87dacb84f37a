"""Collect log lines from all services for the OTLP endpoint. Workers' logs belong to their owners and are never read."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

from services.metrics.collection.read_positions import ReadPositions
from services.metrics.export.log_records import LogLine
from services.metrics.export.otlp_outbox import OtlpOutbox
from shared import node as nodes
from shared.api import node as node_api
from shared.discovery import directory
from shared.telemetry import log_buffer
from shared.telemetry.instruments import node_label
from shared.telemetry.ring_buffer import RingReading
from shared.types import SERVICE_NAMES, Role

EVERY_SECONDS: Final = 2.0
NODE_DEADLINE_SECONDS: Final = 2.0

Each = Callable[[Callable[[directory.DirectoryEntry], Coroutine[Any, Any, None]]], Awaitable[Sequence[None]]]


class LogCollector:
    def __init__(self, node: nodes.Node, each: Each, outbox: OtlpOutbox[LogLine]) -> None:
        self._node = node
        self._each = each
        self._outbox = outbox
        self._read: ReadPositions[str] = ReadPositions(page=log_buffer.MAX_READ, most_readings=5)
        self._own_after = 0

    async def run(self) -> None:
        while True:
            self._look_at_own()
            await self._each(self._look)
            await asyncio.sleep(EVERY_SECONDS)

    def _look_at_own(self) -> None:
        batch = log_buffer.read(self._own_after)
        self._own_after = batch.next
        label = node_label(self._node.id)
        self._outbox.put([LogLine(self._node.service_name, label, text) for text in batch.items])

    async def _look(self, entry: directory.DirectoryEntry) -> None:
        if entry.role is Role.WORKER:
            return

        async def fetch(after: int) -> RingReading[str]:
            request = node_api.ReadLogs(after)
            answer = await self._node.rpc.call(node_api.read_logs, request, to=entry.node, deadline_seconds=NODE_DEADLINE_SECONDS)
            return RingReading(answer.lines, answer.next, answer.lost)

        found = await self._read.read(entry.node, fetch)
        if found.lost:
            self._node.metrics.log_lines_lost.labels(reason="overwritten").inc(found.lost)
        service, label = SERVICE_NAMES[entry.role], node_label(entry.node)
        self._outbox.put([LogLine(service, label, text) for text in found.items])
