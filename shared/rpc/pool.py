"""The connections that this node has dialled: one per peer, made when first needed, replaced when lost."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Set

from shared import directory, errors
from shared.directory import Directory, Entry
from shared.link import Link
from shared.rpc.connection import Connection
from shared.rpc.serving import Dispatcher
from shared.types import NodeId, Peer, Role

#: How long a call waits for somebody to announce that he serves it: a fresh process has heard of nobody yet, and a node
#: that was taken for gone is back with its next announcement, within ANNOUNCE_SECONDS.
PATIENCE_SECONDS = directory.ANNOUNCE_SECONDS + 0.5
#: Nodes tried before a call is given up because none of them answers.
MAX_DIALS = 3

_NOBODY: frozenset[NodeId] = frozenset()

Dial = Callable[[Peer], Awaitable[Link]]


class Pool:
    """Owned by one node. Dials by what the directory says, and tells it whose link died."""

    def __init__(self, nodes: Directory, dial: Dial, dispatcher: Dispatcher | None, rng: random.Random) -> None:
        self._directory = nodes
        self._dial = dial
        self._dispatcher = dispatcher
        self._rng = rng
        self._connections: dict[NodeId, Connection] = {}
        self._dialling: dict[NodeId, asyncio.Lock] = {}
        self._changed = asyncio.Event()
        nodes.watch(lambda entry: self._changed.set())

    def ready(self, role: Role | None, to: NodeId | None) -> Connection | None:
        """The connection that a call would take, if it is open already."""
        entry = self._choose(role, to, _NOBODY)
        if entry is None:
            return None
        connection = self._connections.get(entry.node)
        return connection if connection is not None and connection.is_usable else None

    async def connection(self, role: Role | None, to: NodeId | None, until: float) -> Connection:
        """A live connection to ``to``, or to the least loaded usable node of ``role``. Raises NotReachable."""
        refused: set[NodeId] = set()
        for _ in range(MAX_DIALS):
            entry = await self._entry(role, to, refused, until)
            try:
                return await self._connect(Peer(entry.role, entry.node))
            except errors.PeerError as error:
                # It was never asked, so another node may be. Its next announcement brings it back.
                self._directory.gone(entry.node, error.message)
                refused.add(entry.node)
                if to is not None:
                    raise
        raise errors.NotReachable(f"no {role} answers", hint="aicli doctor says what is wrong", retry_after_seconds=1)

    def in_flight(self, node: NodeId) -> int:
        """Our calls that this node has not answered yet."""
        connection = self._connections.get(node)
        return 0 if connection is None else connection.in_flight

    def connections(self) -> list[Connection]:
        return list(self._connections.values())

    async def _entry(self, role: Role | None, to: NodeId | None, refused: set[NodeId], until: float) -> Entry:
        patience = min(until, time.monotonic() + PATIENCE_SECONDS)
        while True:
            entry = self._choose(role, to, refused)
            if entry is not None:
                return entry
            self._changed.clear()
            try:
                async with asyncio.timeout(max(0.0, patience - time.monotonic())):
                    await self._changed.wait()
            except TimeoutError:
                raise self._nobody(role, to) from None

    def _choose(self, role: Role | None, to: NodeId | None, refused: Set[NodeId]) -> Entry | None:
        if to is not None:
            entry = self._directory.find(to)
            return entry if entry is not None and entry.alive else None
        if role is None:
            raise ValueError("a method that every service serves needs a node to ask")
        candidates = self._directory.usable(role)
        if len(candidates) == 1 and not refused:
            return candidates[0] if self._takes_calls(candidates[0].node) else None
        if refused or self._is_somebody_leaving():
            candidates = [entry for entry in candidates if entry.node not in refused and self._takes_calls(entry.node)]
        return directory.pick(candidates, self._rng, lambda entry: directory.expected_wait(entry, self.in_flight(entry.node)))

    def _is_somebody_leaving(self) -> bool:
        return any(connection.going_away for connection in self._connections.values())

    def _takes_calls(self, node: NodeId) -> bool:
        connection = self._connections.get(node)
        return connection is None or not connection.going_away

    def _nobody(self, role: Role | None, to: NodeId | None) -> errors.NotReachable:
        known = self._directory.entries(role) if to is None else [entry for entry in [self._directory.find(to)] if entry]
        why = "; ".join(f"{entry.node[:8]}: {entry.why_not}" for entry in known[:3] if entry.why_not)
        who = f"no {role} is" if to is None else f"node {to[:8]} is not"
        return errors.NotReachable(
            f"{who} there" + (f" ({why})" if why else ""), hint="aicli nodes and aicli doctor say more", retry_after_seconds=1
        )

    async def _connect(self, peer: Peer) -> Connection:
        connection = self._connections.get(peer.node)
        if connection is not None and connection.is_usable:
            return connection
        lock = self._dialling.setdefault(peer.node, asyncio.Lock())
        async with lock:
            connection = self._connections.get(peer.node)
            if connection is not None and connection.is_usable:
                return connection
            connection = Connection(await self._dial(peer), self._dispatcher)
            connection.on_closed = self._lost
            self._connections[peer.node] = connection
        self._dialling.pop(peer.node, None)
        return connection

    def _lost(self, connection: Connection) -> None:
        node = connection.peer.node
        if self._connections.get(node) is connection:
            del self._connections[node]
        # A node that closed the link (it had lost a message, or was started anew) is as good for the next call as before.
        if connection.link.fell_silent and connection.link.closed is not None:
            self._directory.gone(node, connection.link.closed.message)
