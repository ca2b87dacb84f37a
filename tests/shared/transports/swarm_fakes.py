"""Hyperswarm in memory: pairs of connections with windows and handshake hashes, and swarms that tests connect by hand."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from pyhyperswarm import ConnectionClosed, Path, PeerAddress

from shared.identity.node_keys import NodeKey

FIRST_BYTES, WINDOW_BYTES = 8192, 1024 * 1024
OVERHEAD = 32


class FakeConnection:
    """One end of a connection. As in reality, messages arrive in a later iteration of the loop."""

    def __init__(self, key: bytes, *, initiator: bool, channel: bytes, topics: tuple[bytes, ...] = ()) -> None:
        self.key = key
        self.initiator = initiator
        self.channel = channel
        self.topics = topics
        self.path = Path.DIRECT
        self.remote = PeerAddress("127.0.0.1", 1)
        self.closed: str | None = None
        self.aborted = False
        self.window_is_open = False
        self.on_room: Callable[[], None] | None = None
        self.on_closed: Callable[[str], None] | None = None
        #: Everything that was passed to ``send``, whether or not it has been sent.
        self.sent: list[bytes] = []
        #: If False, no message is taken, and the peer's window closes.
        self.reads = True
        self.peer: FakeConnection
        self._on_message: Callable[[bytes], None] | None = None
        self._credit = FIRST_BYTES
        self._granted = FIRST_BYTES
        self._waiting: list[bytes] = []
        self._arrived: list[bytes] = []
        self._was_full = False

    # --- used by swarm_link -------------------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        if self.closed is not None:
            raise ConnectionClosed(self.closed)
        self.sent.append(message)
        self._waiting.append(message)
        self._pump()

    @property
    def room(self) -> int:
        return self._credit - sum(len(message) + OVERHEAD for message in self._waiting)

    @property
    def is_full(self) -> bool:
        self._was_full = self.room <= 0
        return self._was_full

    @property
    def on_message(self) -> Callable[[bytes], None] | None:
        return self._on_message

    @on_message.setter
    def on_message(self, callback: Callable[[bytes], None] | None) -> None:
        self._on_message = callback
        self._deliver()

    def open_window(self) -> None:
        if not self.window_is_open:
            self.window_is_open = True
            self.peer.grant(WINDOW_BYTES - FIRST_BYTES)

    def close(self, reason: str = "", *, abort: bool = False) -> None:
        if self.closed is None:
            self.aborted = abort
            self.end(reason)
            asyncio.get_running_loop().call_soon(self.peer.end, "")

    # --- the other end ------------------------------------------------------------------------------------------------

    def grant(self, credit: int) -> None:
        self._credit += credit
        self._pump()
        if self._was_full and self.room > 0:
            self._was_full = False
            if self.on_room is not None:
                self.on_room()

    def arrive(self, message: bytes) -> None:
        if self.closed is None:
            self._arrived.append(message)
            self._deliver()

    def end(self, reason: str) -> None:
        if self.closed is None:
            self.closed = reason
            if self.on_closed is not None:
                self.on_closed(reason)

    def read_again(self) -> None:
        self.reads = True
        self._deliver()

    def _deliver(self) -> None:
        while self.reads and self._arrived and self._on_message is not None:
            message = self._arrived.pop(0)
            self._on_message(message)
            if self.window_is_open:
                self.peer.grant(len(message) + OVERHEAD)

    def _pump(self) -> None:
        while self._waiting and len(self._waiting[0]) + OVERHEAD <= self._credit:
            message = self._waiting.pop(0)
            self._credit -= len(message) + OVERHEAD
            asyncio.get_running_loop().call_soon(self.peer.arrive, message)


def pair(one: bytes, other: bytes, topics: tuple[bytes, ...] = ()) -> tuple[FakeConnection, FakeConnection]:
    """Return both ends of a connection, each as the owner of the first or second key sees it; ``one`` dialed."""
    channel = hashlib.blake2b(secrets.token_bytes(16)).digest()
    ends = (
        FakeConnection(other, initiator=True, channel=channel, topics=topics),
        FakeConnection(one, initiator=False, channel=channel),
    )
    ends[0].peer, ends[1].peer = ends[1], ends[0]
    return ends


@dataclass
class FakeSwarm:
    key: NodeKey
    relays: tuple[bytes, ...] = ()
    #: Raised when the swarm is opened.
    broken: Exception | None = None
    on_event: Callable[[Any], None] = lambda event: None
    denied: frozenset[bytes] = frozenset()
    joined: dict[bytes, tuple[bool, bool]] = field(default_factory=dict)
    refreshed: list[bytes] = field(default_factory=list)
    #: Raised by the next command, once.
    trouble: Exception | None = None
    is_open: bool = False
    _arrived: "asyncio.Queue[FakeConnection | None]" = field(default_factory=asyncio.Queue)

    async def __aenter__(self) -> "FakeSwarm":
        if self.broken is not None:
            raise self.broken
        self.is_open = True
        return self

    async def __aexit__(self, *failure: object) -> None:
        self.is_open = False

    async def __aiter__(self) -> AsyncIterator[FakeConnection]:
        while (connection := await self._arrived.get()) is not None:
            yield connection

    async def join(self, topic: bytes, *, server: bool = True, client: bool = True) -> None:
        self._stumble()
        self.joined[topic] = (server, client)

    async def leave(self, topic: bytes) -> None:
        self._stumble()
        del self.joined[topic]

    async def refresh(self, topic: bytes) -> None:
        self._stumble()
        self.refreshed.append(topic)

    async def deny(self, keys: frozenset[bytes]) -> None:
        self._stumble()
        self.denied = keys

    def bring(self, connection: FakeConnection | None) -> None:
        self._arrived.put_nowait(connection)

    def _stumble(self) -> None:
        trouble, self.trouble = self.trouble, None
        if trouble is not None:
            raise trouble


def connect(one: FakeSwarm, other: FakeSwarm, topics: tuple[bytes, ...] = ()) -> tuple[FakeConnection, FakeConnection]:
    ends = pair(one.key.raw, other.key.raw, topics)
    one.bring(ends[0])
    other.bring(ends[1])
    return ends
