"""Keeps the connections that this node has dialed: one per peer, opened on demand and replaced when lost."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass

from shared import errors
from shared.protocol import directory
from shared.protocol.directory import Directory, DirectoryEntry
from shared.rpc.connection import RpcConnection
from shared.timing.bounded_waits import wait_until_set
from shared.types import NodeId, Peer, Role

#: How long a call waits for a node to appear: a new process does not know any node yet, and a node wrongly taken for gone is back with
#: its next announcement.
WAIT_SECONDS = directory.ANNOUNCE_SECONDS + 0.5
MAX_DIALS = 3

_NO_NODES: frozenset[NodeId] = frozenset()

#: Opens a connection to a peer over one transport, or returns the open one. Raises PeerError.
Reach = Callable[[Peer, str], Awaitable[RpcConnection]]
#: Returns why this node receives no announcements; empty if nothing is wrong.
Trouble = Callable[[], str]
#: Returns why no node will ever be found, or None.
Refusal = Callable[[], errors.AimeshError | None]
LOOK_SECONDS = 0.5


@dataclass(slots=True)
class _Dial:
    """A node being dialed, and how many calls wait for it."""

    lock: asyncio.Lock
    callers: int = 0


class ConnectionPool:
    """Owned by one node. Uses the best route that the directory knows, and reports lost links to it."""

    def __init__(
        self,
        nodes: Directory,
        reach: Reach,
        rng: random.Random,
        *,
        wait_seconds: float = WAIT_SECONDS,
        trouble: Trouble = lambda: "",
        refusal: Refusal = lambda: None,
    ) -> None:
        self._directory = nodes
        self._wait_seconds = wait_seconds
        self._trouble = trouble
        self._refusal = refusal
        self._reach = reach
        self._rng = rng
        self._connections: dict[NodeId, RpcConnection] = {}
        self._dialling: dict[NodeId, _Dial] = {}
        self._changed = asyncio.Event()
        nodes.watch(lambda entry: self._changed.set())

    def ready(self, role: Role | None, to: NodeId | None) -> RpcConnection | None:
        """Return the connection that a call would use, if it is already open."""
        entry = self._choose(role, to, _NO_NODES)
        if entry is None:
            return None
        return self._open(entry)

    async def connection(self, role: Role | None, to: NodeId | None, until: float, *, without: NodeId | None = None) -> RpcConnection:
        """Connect to ``to``, or to the least loaded usable node of ``role``. Raises NotReachable, or what ``refusal`` returns."""
        refused = set() if without is None else {without}
        for _ in range(MAX_DIALS):
            entry = await self._entry(role, to, refused, until)
            try:
                return await self._connect(entry)
            except errors.PeerError as error:
                # It never saw the call, so another node may get it. Its next announcement brings it back.
                refused.add(entry.node)
                if to is not None or isinstance(error, errors.NotConnected):
                    raise
        raise errors.NotReachable(f"no {role} answers", hint="run `aicli doctor`", retry_after_seconds=1)

    def has_another(self, peer: Peer) -> bool:
        """Return whether another node can do what this one does."""
        return any(entry.node != peer.node for entry in self._directory.reachable(peer.role))

    def list_others_with(self, feature: str, peer: Peer) -> list[NodeId]:
        """Return the other nodes of its role that say they have the feature."""
        others = (entry for entry in self._directory.reachable(peer.role) if entry.node != peer.node)
        return [entry.node for entry in others if feature in entry.announcement.features]

    def in_flight(self, node: NodeId) -> int:
        """Return how many of our calls this node has not answered yet."""
        connection = self._connections.get(node)
        return 0 if connection is None else connection.in_flight

    def connections(self) -> list[RpcConnection]:
        return list(self._connections.values())

    async def _entry(self, role: Role | None, to: NodeId | None, refused: set[NodeId], until: float) -> DirectoryEntry:
        gives_up_at = min(until, time.monotonic() + self._wait_seconds)
        while True:
            entry = self._choose(role, to, refused)
            if entry is not None:
                return entry
            if (refusal := self._refusal()) is not None:
                raise refusal
            left = gives_up_at - time.monotonic()
            if left <= 0:
                raise self._unavailable(role, to)
            self._changed.clear()
            await wait_until_set(self._changed, min(left, LOOK_SECONDS))

    def _choose(self, role: Role | None, to: NodeId | None, refused: Set[NodeId]) -> DirectoryEntry | None:
        if to is not None:
            entry = self._directory.find(to)
            return entry if entry is not None and entry.is_reachable else None
        if role is None:
            raise ValueError("methods that every service serves need a node to call")
        candidates = self._directory.reachable(role)
        if len(candidates) == 1 and not refused:
            return candidates[0] if self._takes_calls(candidates[0].node) else None
        if refused or any(connection.going_away for connection in self._connections.values()):
            candidates = [entry for entry in candidates if entry.node not in refused and self._takes_calls(entry.node)]
        return directory.pick(candidates, self._rng, lambda entry: directory.expected_wait(entry, self.in_flight(entry.node)))

    def _takes_calls(self, node: NodeId) -> bool:
        connection = self._connections.get(node)
        return connection is None or not connection.going_away

    def _unavailable(self, role: Role | None, to: NodeId | None) -> errors.NotReachable:
        known = self._directory.entries(role) if to is None else [entry for entry in [self._directory.find(to)] if entry]
        if to is None and not known and (trouble := self._trouble()):
            return errors.NotReachable(f"no {role} was found: {trouble}", hint="run `aicli doctor`", retry_after_seconds=1)
        why = "; ".join(f"{entry.node[:8]}: {entry.why_not}" for entry in known[:3] if entry.why_not)
        who = f"no {role} is" if to is None else f"node {to[:8]} is not"
        if any(entry.alive and not entry.is_reachable for entry in known):
            return errors.NotConnected(
                f"{who} available: our own connection to NATS is lost", hint="run `aicli doctor`", retry_after_seconds=1
            )
        return errors.NotReachable(
            f"{who} available" + (f" ({why})" if why else ""), hint="run `aicli nodes` or `aicli doctor`", retry_after_seconds=1
        )

    def _open(self, entry: DirectoryEntry) -> RpcConnection | None:
        """Return the open connection, if it uses the best route. When a better one appears, new calls move to it and running ones finish on
        the old one."""
        connection = self._connections.get(entry.node)
        if connection is None or not connection.is_usable:
            return None
        return connection if entry.routes and connection.link.transport == entry.routes[0].transport else None

    async def _connect(self, entry: DirectoryEntry) -> RpcConnection:
        """Dial each node only once at a time. The last caller removes the dial, also after a failure."""
        dial = self._dialling.setdefault(entry.node, _Dial(asyncio.Lock()))
        dial.callers += 1
        try:
            async with dial.lock:
                return self._open(entry) or await self._reach_by_any(entry)
        finally:
            dial.callers -= 1
            if not dial.callers:
                del self._dialling[entry.node]

    async def _reach_by_any(self, entry: DirectoryEntry) -> RpcConnection:
        """Connect by the best route that works. A route that fails is removed until the next announcement over it. Raises PeerError."""
        failure: errors.PeerError | None = None
        for route in entry.routes:
            try:
                connection = await self._reach(Peer(entry.role, entry.node), route.transport)
            except errors.PeerError as error:
                if not isinstance(error, errors.NotConnected):
                    self._directory.remove_route(entry.node, route.transport, error.message)
                failure = failure or error
                continue
            self._connections[entry.node] = connection
            if self._lost not in connection.on_closed:
                connection.on_closed.append(self._lost)
            return connection
        raise failure or errors.NotReachable(f"node {entry.node[:8]} is not available", retry_after_seconds=1)

    def _lost(self, connection: RpcConnection) -> None:
        node = connection.peer.node
        if self._connections.get(node) is connection:
            del self._connections[node]
        # A node that closed the link itself, because of a gap or a restart, is still usable. A silent NATS server says nothing about it.
        closed = connection.link.closed
        if connection.link.fell_silent and closed is not None and not isinstance(closed, errors.TransportLost):
            self._directory.remove_route(node, connection.link.transport, closed.message)
