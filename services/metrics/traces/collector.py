"""Reads the kept spans of every node, over the mesh: a worker behind NAT needs no way to a collector of traces."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, Protocol

from services.metrics.otlp.outbox import Outbox
from services.metrics.otlp.spans import Told
from services.metrics.traces.shelf import Shelf
from services.metrics.traces.soundness import is_sound
from shared import directory, errors, rpc, telemetry, tracing
from shared.api import node as node_api
from shared.telemetry.instruments import node_label
from shared.types import SERVICE_NAMES, NodeId

EVERY_SECONDS: Final = 2.0
NODE_DEADLINE_SECONDS: Final = 2.0
#: Readings of one node in a row; one that has more than this tells the rest in the next round.
_MOST_READINGS: Final = 10
_MOST_NODES: Final = 2_000


class Member(Protocol):
    """What the collector needs of its node."""

    @property
    def id(self) -> NodeId: ...
    @property
    def rpc(self) -> rpc.Client: ...
    @property
    def traces(self) -> tracing.Traces: ...
    @property
    def metrics(self) -> telemetry.Metrics: ...
    @property
    def service_name(self) -> str: ...


#: Asks every live node at the same time.
Each = Callable[[Callable[[directory.Entry], Coroutine[Any, Any, list[Told]]]], Awaitable[Sequence[list[Told]]]]


class Collector:
    """Owns where each node's reading goes on."""

    def __init__(self, node: Member, each: Each, shelf: Shelf, outbox: Outbox[Told] | None) -> None:
        self._node = node
        self._each = each
        self._shelf = shelf
        self._outbox = outbox
        #: 0 where a node was not read before.
        self._after: dict[NodeId, int] = {}
        self._own_after = 0

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY_SECONDS)

    async def look(self) -> None:
        """One round: every node tells what it kept since the last one, and what others kept of the same traces."""
        wanted = self._shelf.wanted()
        if len(self._after) > _MOST_NODES:
            # Those that are still there tell what they have once more, and what is known already is not taken twice.
            self._after.clear()
        told = self._own(wanted)
        for part in await self._each(lambda entry: self._read(entry, wanted)):
            told += part
        new = self._shelf.put(told)
        if self._outbox is not None:
            self._outbox.put(new)

    def _own(self, wanted: tuple[str, ...]) -> list[Told]:
        batch = self._node.traces.read(self._own_after, wanted)
        self._own_after = batch.next
        return [Told(self._node.service_name, node_label(self._node.id), span) for span in batch.spans]

    async def _read(self, entry: directory.Entry, wanted: tuple[str, ...]) -> list[Told]:
        service, node = SERVICE_NAMES[entry.role], node_label(entry.node)
        told: list[Told] = []
        for _ in range(_MOST_READINGS):
            asked = node_api.ReadSpans(self._after.get(entry.node, 0), wanted)
            try:
                answer = await self._node.rpc.call(node_api.read_spans, asked, to=entry.node, deadline_seconds=NODE_DEADLINE_SECONDS)
            except errors.AimeshError:
                # Its health says so, and the spans wait there.
                return told
            self._after[entry.node] = answer.next
            if answer.lost > 0:
                self._node.metrics.spans_lost.labels(reason="overwritten").inc(min(answer.lost, tracing.MAX_KEPT))
            told += [Told(service, node, span) for span in answer.spans if is_sound(span, service)]
            if len(answer.spans) < tracing.MAX_READ:
                break
        return told
