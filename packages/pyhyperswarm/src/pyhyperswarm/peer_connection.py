"""One connection to a peer: whole messages in order in both directions, with flow control."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, Self

from pyhyperswarm import sidecar_frames
from pyhyperswarm.flow_control import OVERHEAD, ReceiveWindow, SendWindow
from pyhyperswarm.swarm_errors import ConnectionClosed, SwarmError

#: The sender refuses longer messages, and the receiver closes the connection, because it must hold a whole message.
MAX_MESSAGE_BYTES: Final = 1024 * 1024
_GRACEFUL, _ABORT = b"\0", b"\1"


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """The address of a DHT node or of the peer of a connection."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse "host:port". Raises ValueError."""
        host, _, port = text.strip().rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"{text!r} is not an address; write host:port, as in 203.0.113.5:49737")
        if ":" in host:
            raise ValueError(f"{text!r}: the DHT is IPv4 only")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Path(StrEnum):
    DIRECT = "direct"
    PUNCHED = "punched"
    #: Through a blind relay, which cannot read anything.
    RELAYED = "relayed"


@dataclass(frozen=True, slots=True)
class Opening:
    key: bytes
    initiator: bool
    path: Path
    remote: PeerAddress
    topics: tuple[bytes, ...]
    channel: bytes
    credit: int


class Pipe(Protocol):
    """Sends the frames of connections: the sidecar that runs them."""

    def send(self, kind: int, number: int, payload: bytes) -> None: ...


class PeerConnection:
    """Created by a Swarm. ``send`` never waits; producers check ``is_full`` or await ``drained``.

    Messages go to ``on_message`` if it is set, otherwise ``read`` returns them. Callbacks run on the event loop and must not wait or raise.
    """

    def __init__(self, pipe: Pipe, number: int, opening: Opening, window: ReceiveWindow, forget: Callable[[int], None]) -> None:
        #: The peer's public key, proved by the Noise handshake.
        self.key = opening.key
        self.initiator = opening.initiator
        self.path = opening.path
        self.remote = opening.remote
        #: The topics by which we found the peer; empty if only it found us.
        self.topics = opening.topics
        #: The hash of the Noise handshake, which is the same on both sides and unique to this connection.
        self.channel = opening.channel
        #: Why it ended, empty if the peer simply closed it; None while it is open.
        self.closed: str | None = None
        #: Called when there is room again after ``is_full``.
        self.on_room: Callable[[], None] | None = None
        self.on_closed: Callable[[str], None] | None = None
        self._send = pipe.send
        self._forget = forget
        self._number = number
        self._sending = SendWindow(opening.credit)
        self._receiving = window
        self._on_message: Callable[[bytes], None] | None = None
        self._messages: deque[tuple[bytes, int]] = deque()
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._parts_cost = 0
        self._was_full = False
        self._reading = asyncio.Event()
        self._draining = asyncio.Event()
        self._ended = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Connection {self.key.hex()[:8]} {self.path} {self.remote}{'' if self.closed is None else ' closed'}>"

    def send(self, message: bytes) -> None:
        """Send a message. It waits in memory if the peer has not granted enough. Raises ConnectionClosed, SwarmError."""
        if self.closed is not None:
            raise ConnectionClosed(self.closed)
        if self._sending.take(message):
            self._send(sidecar_frames.DATA, self._number, message)
            return
        if len(message) > MAX_MESSAGE_BYTES:
            raise SwarmError(f"a message of {len(message)} bytes is over the limit of {MAX_MESSAGE_BYTES}; split it")
        self._sending.wait(message)
        self._pump()

    @property
    def is_full(self) -> bool:
        if self._sending.room > 0:
            return False
        self._was_full = True
        return True

    async def drained(self) -> None:
        """Wait until there is room. Raises ConnectionClosed."""
        while self.closed is None and self.is_full:
            self._draining.clear()
            await self._draining.wait()
        if self.closed is not None:
            raise ConnectionClosed(self.closed)

    async def write(self, message: bytes) -> None:
        await self.drained()
        self.send(message)

    @property
    def on_message(self) -> Callable[[bytes], None] | None:
        """Called for each message as it arrives. When it returns, the peer may send more. Setting it delivers waiting messages."""
        return self._on_message

    @on_message.setter
    def on_message(self, callback: Callable[[bytes], None] | None) -> None:
        self._on_message = callback
        while self._messages and self._on_message is not None:
            self._on_message(self._take())

    async def read(self) -> bytes:
        """Return the next message, also after the end while some are left. Raises ConnectionClosed. One reader at a time."""
        while not self._messages:
            if self.closed is not None:
                raise ConnectionClosed(self.closed)
            self._reading.clear()
            await self._reading.wait()
        return self._take()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the messages until the connection ends."""
        while True:
            try:
                message = await self.read()
            except ConnectionClosed:
                return
            yield message

    def open_window(self) -> None:
        """Grant the peer, which is no longer a stranger, a whole window. Safe to call twice."""
        self._grant(self._receiving.open())

    def close(self, reason: str = "", *, abort: bool = False) -> None:
        """Close after sending what the peer has room for, or at once (``abort``). Safe to call twice."""
        if self.closed is None:
            self._send(sidecar_frames.CLOSE, self._number, _ABORT if abort else _GRACEFUL)
            self.end(reason)

    async def wait_closed(self) -> None:
        await self._ended.wait()

    def receive_part(self, part: bytes) -> None:
        """Handle a part of a message that is not its last."""
        self._parts.append(part)
        self._parts_bytes += len(part)
        self._parts_cost += len(part) + OVERHEAD
        if self._parts_bytes > MAX_MESSAGE_BYTES:
            self.close("the peer sent a message that is too long", abort=True)
        elif not self._messages:
            # No message is waiting, so no other credit would let this one complete.
            self._grant_parts()

    def receive(self, message: bytes) -> None:
        """Handle a message, or the last part of one."""
        cost = len(message) + OVERHEAD
        if self._parts:
            self._parts.append(message)
            message, cost = b"".join(self._parts), cost + self._parts_cost
            self._parts, self._parts_bytes, self._parts_cost = [], 0, 0
            if len(message) > MAX_MESSAGE_BYTES:
                self.close("the peer sent a message that is too long", abort=True)
                return
        if self._on_message is not None:
            self._on_message(message)
            self._grant(self._receiving.take(cost))
        else:
            self._messages.append((message, cost))
            self._reading.set()

    def receive_credit(self, credit: int) -> None:
        self._sending.grant(credit)
        self._pump()
        if self._was_full and self._sending.room > 0:
            self._was_full = False
            self._draining.set()
            if self.on_room is not None:
                self.on_room()

    def end(self, reason: str) -> None:
        """Handle the end of the connection. Safe to call twice."""
        if self.closed is not None:
            return
        self.closed = reason
        self._parts, self._parts_bytes, self._parts_cost = [], 0, 0
        self._forget(self._number)
        for event in (self._reading, self._draining, self._ended):
            event.set()
        if self.on_closed is not None:
            self.on_closed(reason)

    def _take(self) -> bytes:
        message, cost = self._messages.popleft()
        self._grant(self._receiving.take(cost))
        if self._parts and not self._messages:
            self._grant_parts()
        return message

    def _grant_parts(self) -> None:
        if self._receiving.is_open:
            cost, self._parts_cost = self._parts_cost, 0
            self._grant(self._receiving.take(cost))

    def _grant(self, credit: int) -> None:
        if credit and self.closed is None:
            self._send(sidecar_frames.CREDIT, self._number, sidecar_frames.encode_number(credit))

    def _pump(self) -> None:
        while (part := self._sending.next_part()) is not None:
            payload, is_last = part
            self._send(sidecar_frames.DATA if is_last else sidecar_frames.PART, self._number, payload)
