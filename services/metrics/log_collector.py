"""Reads the latest lines of the services' logs over the mesh, for an OTLP endpoint. A worker's log is its owner's and is not read."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

from services.metrics.otlp.log_records import LogLine
from services.metrics.otlp.outbox import Outbox
from shared import directory, errors
from shared import node as nodes
from shared.api import node as node_api
from shared.telemetry import kept_lines
from shared.telemetry.instruments import node_label
from shared.types import SERVICE_NAMES, NodeId, Role

EVERY_SECONDS: Final = 2.0
NODE_DEADLINE_SECONDS: Final = 2.0
#: Readings of one node in a row.
_MOST_READINGS: Final = 5

#: Asks every live node at the same time.
Each = Callable[[Callable[[directory.Entry], Coroutine[Any, Any, None]]], Awaitable[Sequence[None]]]


class LogCollector:
    """Owns where each node's reading goes on."""

    def __init__(self, node: nodes.Node, each: Each, outbox: Outbox[LogLine]) -> None:
        self._node = node
        self._each = each
        self._outbox = outbox
        self._after: dict[NodeId, int] = {}
        self._own_after = 0

    async def run(self) -> None:
        """For ever."""
        while True:
            self._read_own()
            await self._each(self._read)
            await asyncio.sleep(EVERY_SECONDS)

    def _read_own(self) -> None:
        batch = kept_lines.read(self._own_after)
        self._own_after = batch.next
        label = node_label(self._node.id)
        self._outbox.put([LogLine(self._node.service_name, label, text) for text in batch.items])

    async def _read(self, entry: directory.Entry) -> None:
        if entry.role is Role.WORKER:
            return
        service, label = SERVICE_NAMES[entry.role], node_label(entry.node)
        for _ in range(_MOST_READINGS):
            asked = node_api.ReadLogs(self._after.get(entry.node, 0))
            try:
                answer = await self._node.rpc.call(node_api.read_logs, asked, to=entry.node, deadline_seconds=NODE_DEADLINE_SECONDS)
            except errors.AimeshError:
                # Its health says so, and the lines wait there.
                return
            self._after[entry.node] = answer.next
            if answer.lost > 0:
                self._node.metrics.log_lines_lost.labels(reason="overwritten").inc(answer.lost)
            self._outbox.put([LogLine(service, label, text) for text in answer.lines])
            if len(answer.lines) < kept_lines.MAX_READ:
                return
