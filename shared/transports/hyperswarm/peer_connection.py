"""One connection to a peer: whole messages in order both ways, as fast as the peer takes them."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, Protocol, Self

from shared.transports.hyperswarm import sidecar_frames
from shared.transports.hyperswarm.flow_control import OVERHEAD, ReceiveWindow, SendWindow
from shared.transports.hyperswarm.swarm_errors import ConnectionClosed, SwarmError

#: Longer messages are refused at the sender, and end the connection at the receiver: it must hold one whole.
MAX_MESSAGE_BYTES: Final = 1024 * 1024
_GRACEFUL, _ABORT = b"\0", b"\1"


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Of a node of the DHT, or the far end of a connection."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Of "host:port"; raises ValueError."""
        host, _, port = text.strip().rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"{text!r} is no address; write host:port, as in 203.0.113.5:49737")
        if ":" in host:
            raise ValueError(f"{text!r}: the DHT is IPv4 only")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Path(StrEnum):
    """How a connection runs."""

    #: Within one network, or to an address that is open to all.
    DIRECT = "direct"
    #: Through NATs that both sides had to open.
    PUNCHED = "punched"
    #: Through a blind relay, which reads nothing.
    RELAYED = "relayed"


@dataclass(frozen=True, slots=True)
class Opening:
    """What is known of a connection when it opens."""

    key: bytes
    initiator: bool
    path: Path
    remote: PeerAddress
    topics: tuple[bytes, ...]
    channel: bytes
    #: What the peer lets us send at first.
    credit: int


class Pipe(Protocol):
    """Where the frames of connections go: the sidecar that runs them."""

    def send(self, kind: int, number: int, payload: bytes) -> None: ...


class PeerConnection:
    """Made by a Swarm. ``send`` never waits; who produces much asks ``is_full`` or awaits ``drained``.

    Messages come through ``on_message`` if it is set, else ``read``. Callbacks run on the loop, must not wait and must not raise.
    """

    def __init__(self, pipe: Pipe, number: int, opening: Opening, window: ReceiveWindow, forget: Callable[[int], None]) -> None:
        #: The peer's public key, proven by the Noise handshake.
        self.key = opening.key
        #: Whether we dialled.
        self.initiator = opening.initiator
        self.path = opening.path
        self.remote = opening.remote
        #: The topics by which we found the peer; none when only it found us.
        self.topics = opening.topics
        #: The hash of the Noise handshake, the same on both sides and on no other connection.
        self.channel = opening.channel
        self.opened_at = datetime.now(UTC)
        #: Why it is over, "" when the peer just ended it; None while it is open.
        self.closed: str | None = None
        #: Called when the peer has taken enough for more to leave, after ``is_full``.
        self.on_room: Callable[[], None] | None = None
        #: Called once with the reason.
        self.on_closed: Callable[[str], None] | None = None
        self._send = pipe.send
        self._forget = forget
        self._number = number
        self._sending = SendWindow(opening.credit)
        self._receiving = window
        self._on_message: Callable[[bytes], None] | None = None
        #: With the cost that is given back when they are taken.
        self._messages: deque[tuple[bytes, int]] = deque()
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        #: Of the parts, as far as it has not been given back.
        self._parts_cost = 0
        self._was_full = False
        self._reading = asyncio.Event()
        self._draining = asyncio.Event()
        self._ended = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Connection {self.key.hex()[:8]} {self.path} {self.remote}{'' if self.closed is None else ' closed'}>"

    # --- sending ------------------------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Hands a message over; it waits in memory if the peer has not granted enough. Raises ConnectionClosed, SwarmError."""
        if self.closed is not None:
            raise ConnectionClosed(self.closed)
        if self._sending.take(message):
            self._send(sidecar_frames.DATA, self._number, message)
            return
        if len(message) > MAX_MESSAGE_BYTES:
            raise SwarmError(f"a message of {len(message)} bytes; at most {MAX_MESSAGE_BYTES}, so cut it")
        self._sending.wait(message)
        self._pump()

    @property
    def room(self) -> int:
        """Bytes that may be sent before they have to wait for the peer; negative when some wait."""
        return self._sending.room

    @property
    def is_full(self) -> bool:
        if self._sending.room > 0:
            return False
        self._was_full = True
        return True

    async def drained(self) -> None:
        """Until there is room. Raises ConnectionClosed."""
        while self.closed is None and self.is_full:
            self._draining.clear()
            await self._draining.wait()
        if self.closed is not None:
            raise ConnectionClosed(self.closed)

    async def write(self, message: bytes) -> None:
        """``drained``, then ``send``."""
        await self.drained()
        self.send(message)

    # --- receiving ----------------------------------------------------------------------------------------------

    @property
    def on_message(self) -> Callable[[bytes], None] | None:
        """Called for each message the moment it arrives; the peer may send more when it returns. Setting it brings what waits."""
        return self._on_message

    @on_message.setter
    def on_message(self, callback: Callable[[bytes], None] | None) -> None:
        self._on_message = callback
        while self._messages and self._on_message is not None:
            self._on_message(self._take())

    async def read(self) -> bytes:
        """The next message; what came before the end is still read. Raises ConnectionClosed. One reader at a time."""
        while not self._messages:
            if self.closed is not None:
                raise ConnectionClosed(self.closed)
            self._reading.clear()
            await self._reading.wait()
        return self._take()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The messages until the connection ends."""
        while True:
            try:
                message = await self.read()
            except ConnectionClosed:
                return
            yield message

    def open_window(self) -> None:
        """The peer is no stranger any more: it may send a whole window. Safe to call twice."""
        self._grant(self._receiving.open())

    # --- the end --------------------------------------------------------------------------------------------------

    def close(self, reason: str = "", *, abort: bool = False) -> None:
        """End it, after what the peer has room for, or at once (``abort``). Safe to call twice."""
        if self.closed is None:
            self._send(sidecar_frames.CLOSE, self._number, _ABORT if abort else _GRACEFUL)
            self.end(reason)

    async def wait_closed(self) -> None:
        await self._ended.wait()

    # --- for the swarm --------------------------------------------------------------------------------------------

    def receive_part(self, part: bytes) -> None:
        """A part of a message, and not its last."""
        self._parts.append(part)
        self._parts_bytes += len(part)
        self._parts_cost += len(part) + OVERHEAD
        if self._parts_bytes > MAX_MESSAGE_BYTES:
            self.close("the peer sent a message that is too long", abort=True)
        elif not self._messages:
            # Nothing else is there to be taken, so no other credit would ever let the message end.
            self._grant_parts()

    def receive(self, message: bytes) -> None:
        """A message, or the last part of one."""
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
        """It is over, whoever ended it. Safe to call twice."""
        if self.closed is not None:
            return
        self.closed = reason
        self._parts, self._parts_bytes, self._parts_cost = [], 0, 0
        self._forget(self._number)
        for event in (self._reading, self._draining, self._ended):
            event.set()
        if self.on_closed is not None:
            self.on_closed(reason)

    # --- inside ---------------------------------------------------------------------------------------------------

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
