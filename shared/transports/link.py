"""A link: an ordered, authenticated, two-way channel of frames between two nodes, on any transport.

A transport (``nats_link``, ``swarm_link``) subclasses ``Link`` and writes to the network. The layers above send frames and set
``on_frames`` and ``on_closed``; they do not depend on the transport.
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from shared import errors
from shared.identity import node_keys
from shared.protocol import wire
from shared.protocol.wire import Frame, Hello, Ping, Pong
from shared.types import MeshName, NodeId, Peer, Role

#: Each side pings this often, and treats this much silence as a dead peer. Fixed, because both ends must agree.
PING_SECONDS = 1.0
SILENCE_SECONDS = 3.0
#: How often a transport calls ``tick``, so that silence is noticed without waiting for the next PING.
TICK_SECONDS = 0.25
#: A link that has not carried a HELLO by then is closed.
HELLO_SECONDS = 1.5
#: This many frames are written at once, before the end of the tick, so that the peer can start on them.
EAGER_FRAMES = 16
HIGH_WATER_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class LocalNode:
    """This node's identity on the mesh."""

    mesh: MeshName
    role: Role
    key: node_keys.NodeKey
    software: str
    #: This process, since several may use the key.
    instance: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def node(self) -> NodeId:
        return self.key.id


class Link:
    """One end of a link. Owned by its transport, which calls ``receive``, ``tick`` and ``close``."""

    def __init__(self, peer: Peer, *, transport: str, path: str, dialled: bool, now: float) -> None:
        self.peer = peer
        self.transport = transport
        #: How the peer is reached: nats, direct, punched or relayed.
        self.path = path
        self.dialled = dialled
        self.round_trip_seconds: float | None = None
        #: Concurrent calls per side. Set by the HELLOs, before the layer above gets the link.
        self.max_calls = wire.MAX_CALLS
        self.on_frames: Callable[[list[Frame]], None] = lambda frames: None
        self.on_closed: Callable[[errors.AimeshError], None] = lambda why: None
        #: Returns the number of our revocation list, for every PONG; and receives the peer's number.
        self.revocations: Callable[[], int] = lambda: 0
        self.on_revocations: Callable[[int], None] = lambda number: None
        self.closed: errors.AimeshError | None = None
        #: Closed because of silence. Any other end means that the peer is alive or has left on purpose.
        self.fell_silent = False
        self._unsent: list[Frame] = []
        self.unsent_bytes = 0
        self._drained = asyncio.Event()
        self._drained.set()
        #: Called when all that was queued is written.
        self.on_written: Callable[[], None] = lambda: None
        self._received_at = now
        self._ping_number = 0
        self._ping_at = now
        #: On its own clock, because uvloop's counts whole milliseconds.
        self._pinged_at = 0.0

    def send(self, frame: Frame) -> None:
        """Queue a frame without waiting. The frames of one loop tick are written together, or in a few writes if there are many. Does
        nothing once closed."""
        if self.closed is not None:
            return
        if not self._unsent:
            self._wake_writer()
        self._unsent.append(frame)
        self.unsent_bytes += wire.size_of(frame)
        if len(self._unsent) >= EAGER_FRAMES:
            self._write_now()
        if self.unsent_bytes > HIGH_WATER_BYTES:
            self._drained.clear()

    @property
    def is_full(self) -> bool:
        return self.unsent_bytes > HIGH_WATER_BYTES

    async def drained(self) -> None:
        """Wait until the transport has taken what was queued. Raises LinkLost if the link is lost instead."""
        await self._drained.wait()
        if self.closed is not None:
            raise self.closed

    def close(self, why: errors.AimeshError) -> None:
        """Close the link now. Calls on it fail with ``why``. Safe to call twice."""
        if self.closed is not None:
            return
        self.closed = why
        self._unsent.clear()
        self._drained.set()
        self._forget(why)
        self.on_closed(why)

    def agree(self, hello: Hello) -> None:
        """Apply the peer's first valid HELLO."""
        self.max_calls = max(1, min(wire.MAX_CALLS, hello.max_calls))

    def take_writes(self, most_bytes: int = wire.MAX_WRITE_BYTES) -> list[list[Frame]]:
        """Return what is queued, split into writes of about ``most_bytes``. Frames are never split."""
        if self.unsent_bytes <= most_bytes:
            frames, self._unsent = self._unsent, []
            return [frames] if frames else []
        writes: list[list[Frame]] = []
        size = most_bytes
        for frame in self._unsent:
            size += wire.size_of(frame)
            if size > most_bytes:
                writes.append([])
                size = wire.size_of(frame)
            writes[-1].append(frame)
        self._unsent = []
        return writes

    def wrote_all(self) -> None:
        self.unsent_bytes = sum(wire.size_of(frame) for frame in self._unsent) if self._unsent else 0
        if self.unsent_bytes <= HIGH_WATER_BYTES:
            self._drained.set()
        if not self.unsent_bytes:
            self.on_written()

    def receive(self, frames: list[Frame], now: float) -> None:
        """Handle the frames of one write. PING and PONG end here; the rest goes to the layer above."""
        self._received_at = now
        if not _LIVENESS.isdisjoint(map(type, frames)):
            frames = [frame for frame in frames if not self._is_liveness(frame, now)]
            if not frames:
                return
        self.on_frames(frames)

    def tick(self, now: float, transport_silent_seconds: float = 0.0) -> None:
        """Close the link of a dead peer, or send a PING when it is due. Called once per TICK_SECONDS. ``transport_silent_seconds``: for how
        long nothing has come from anyone."""
        if self.closed is not None:
            return
        silent = now - self._received_at
        if silent >= SILENCE_SECONDS:
            self.fell_silent = True
            # A PONG is up to PING_SECONDS older than the last byte from a server that froze.
            is_transport = transport_silent_seconds >= SILENCE_SECONDS - PING_SECONDS - TICK_SECONDS
            kind, who = (errors.TransportLost, "the NATS server") if is_transport else (errors.LinkLost, "")
            who = who or f"{self.peer.role} {self.peer.node[:8]}"
            self.close(kind(f"{who} has been silent for {silent:.1f} s"))
            return
        if now < self._ping_at:
            return
        # Ticks are slightly late, so without this margin the PING would wait for one more tick.
        self._ping_at = now + PING_SECONDS - TICK_SECONDS / 2
        self._ping_number += 1
        self._pinged_at = time.perf_counter()
        self.send(Ping(self._ping_number))

    def _is_liveness(self, frame: Frame, now: float) -> bool:
        if isinstance(frame, Ping):
            if not self.is_full:  # a peer that pings but does not read must not fill our memory
                self.send(Pong(frame.number, self.revocations()))
            return True
        if isinstance(frame, Pong):
            self.on_revocations(frame.revocations)
            if frame.number == self._ping_number:
                self.round_trip_seconds = time.perf_counter() - self._pinged_at
            return True
        return False

    def _wake_writer(self) -> None:
        """Arrange that ``take_writes`` is called after this loop tick."""
        raise NotImplementedError

    def _write_now(self) -> None:
        """Write at once if the transport has room. The rest is written after the tick."""

    def _forget(self, why: errors.AimeshError) -> None:
        """Tell the peer, if possible, and remove the link from the transport's tables."""
        raise NotImplementedError


_LIVENESS = frozenset({Ping, Pong})
