"""A link: an ordered, authenticated, two-way channel of frames between two nodes, whatever carries it.

A transport (``nats_link``) subclasses ``Link`` and says how a write leaves. The layers above
send frames, set ``on_frames`` and ``on_closed``, and never learn which transport it is beyond ``path``.
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from shared import errors
from shared.frames import wire
from shared.frames.wire import Frame, Hello, Ping, Pong
from shared.identity import node_keys
from shared.types import MeshName, NodeId, Peer, Role

#: Each side sends a PING this often, and takes this much silence for death. Both ends must agree, so both are fixed.
PING_SECONDS = 1.0
SILENCE_SECONDS = 3.0
#: How often a transport calls ``tick``: silence is found out within this, and not within another PING_SECONDS.
TICK_SECONDS = 0.25
#: An opened link that has not carried a HELLO by then is closed: "open" is not "alive".
HELLO_SECONDS = 1.5
#: So many frames leave at once, without waiting for the end of the tick: the peer works on them while we go on.
EAGER_FRAMES = 16
#: Unsent bytes beyond which a producer has to wait.
HIGH_WATER_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class LocalNode:
    """Who this node is on the mesh."""

    mesh: MeshName
    role: Role
    key: node_keys.NodeKey
    #: The program's version, told in HELLO.
    software: str
    #: This process, where several may use the key.
    instance: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def node(self) -> NodeId:
        return self.key.id


class Link:
    """One end of a link. Owned by its transport, which calls ``receive``, ``tick`` and ``close``."""

    def __init__(self, peer: Peer, *, transport: str, path: str, dialled: bool, now: float) -> None:
        self.peer = peer
        #: What carries it: nats or swarm.
        self.transport = transport
        #: How the peer is reached, for people: nats, direct, punched, relayed.
        self.path = path
        self.dialled = dialled
        self.round_trip_seconds: float | None = None
        #: Calls of one side that may run at once; settled by the HELLOs, before the layer above takes the link over.
        self.max_calls = wire.MAX_CALLS_UNSAID
        self.on_frames: Callable[[list[Frame]], None] = _ignore_frames
        self.on_closed: Callable[[errors.AimeshError], None] = _ignore_close
        #: The number of our revocation list, told in every PONG; and what is done with the peer's, when it tells.
        self.revocations: Callable[[], int] = _none_revoked
        self.on_revocations: Callable[[int], None] = _ignore_number
        self.closed: errors.AimeshError | None = None
        #: Closed because nothing came any more. Any other end says that the peer lives, or has told that it leaves.
        self.fell_silent = False
        self._unsent: list[Frame] = []
        self._unsent_bytes = 0
        self._drained = asyncio.Event()
        self._drained.set()
        self._heard_at = now
        self._ping_number = 0
        self._ping_at = now
        #: By a clock of its own: the loop's counts whole milliseconds under uvloop.
        self._pinged_at = 0.0

    # --- for the layers above -----------------------------------------------------------------------------------

    def send(self, frame: Frame) -> None:
        """Queue a frame; never waits. The frames of one loop tick leave as one write, or as a few when there are many.
        Does nothing once closed."""
        if self.closed is not None:
            return
        if not self._unsent:
            self._wake_writer()
        self._unsent.append(frame)
        self._unsent_bytes += wire.size_of(frame)
        if len(self._unsent) >= EAGER_FRAMES:
            self._write_now()
        if self._unsent_bytes > HIGH_WATER_BYTES:
            self._drained.clear()

    @property
    def is_full(self) -> bool:
        return self._unsent_bytes > HIGH_WATER_BYTES

    @property
    def unsent_bytes(self) -> int:
        """About how much waits for the transport to take it."""
        return self._unsent_bytes

    async def drained(self) -> None:
        """Until the transport has taken what was queued. Raises LinkLost if the link dies instead."""
        await self._drained.wait()
        if self.closed is not None:
            raise self.closed

    def close(self, why: errors.AimeshError) -> None:
        """End the link now; calls on it fail with ``why``. Safe to call twice."""
        if self.closed is not None:
            return
        self.closed = why
        self._unsent.clear()
        self._drained.set()
        self._forget(why)
        self.on_closed(why)

    # --- for the transport ----------------------------------------------------------------------------------------

    def agree(self, hello: Hello) -> None:
        """The peer's first HELLO was good."""
        self.max_calls = max(1, min(wire.MAX_CALLS, hello.max_calls))

    def take_writes(self, most_bytes: int = wire.MAX_WRITE_BYTES) -> list[list[Frame]]:
        """What is queued, cut into writes of about ``most_bytes``; a frame is never cut."""
        if self._unsent_bytes <= most_bytes:
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
        self._unsent_bytes = sum(wire.size_of(frame) for frame in self._unsent) if self._unsent else 0
        if self._unsent_bytes <= HIGH_WATER_BYTES:
            self._drained.set()

    def receive(self, frames: list[Frame], now: float) -> None:
        """Frames of one write. PING and PONG end here; the rest goes up."""
        self._heard_at = now
        if not _LIVENESS.isdisjoint(map(type, frames)):
            frames = [frame for frame in frames if not self._is_liveness(frame, now)]
            if not frames:
                return
        self.on_frames(frames)

    def tick(self, now: float) -> None:
        """Once per TICK_SECONDS: find the peer dead, or ping it when that is due."""
        if self.closed is not None:
            return
        silent = now - self._heard_at
        if silent >= SILENCE_SECONDS:
            self.fell_silent = True
            self.close(errors.LinkLost(f"{self.peer.role} {self.peer.node[:8]} has been silent for {silent:.1f} s"))
            return
        if now < self._ping_at:
            return
        # Ticks come a little late, and the next one would be a whole tick too late.
        self._ping_at = now + PING_SECONDS - TICK_SECONDS / 2
        self._ping_number += 1
        self._pinged_at = time.perf_counter()
        self.send(Ping(self._ping_number))

    def _is_liveness(self, frame: Frame, now: float) -> bool:
        if isinstance(frame, Ping):
            if not self.is_full:  # a peer that pings and does not read must not fill our memory with answers
                self.send(Pong(frame.number, self.revocations()))
            return True
        if isinstance(frame, Pong):
            self.on_revocations(frame.revocations)
            if frame.number == self._ping_number:
                self.round_trip_seconds = time.perf_counter() - self._pinged_at
            return True
        return False

    # --- what a transport supplies ----------------------------------------------------------------------------------

    def _wake_writer(self) -> None:
        """Arrange that ``take_writes`` is called after this loop tick."""
        raise NotImplementedError

    def _write_now(self) -> None:
        """Write at once if the transport has room; what it does not take leaves after the tick."""

    def _forget(self, why: errors.AimeshError) -> None:
        """The link is over: tell the peer if it can be told, and drop it from the transport's tables."""
        raise NotImplementedError


_LIVENESS = frozenset({Ping, Pong})


def _ignore_frames(frames: list[Frame]) -> None:
    """Before the layer above has taken the link over."""


def _ignore_close(why: errors.AimeshError) -> None:
    """Before the layer above has taken the link over."""


def _none_revoked() -> int:
    """Before the layer above has a list."""
    return 0


def _ignore_number(number: int) -> None:
    """Before the layer above has taken the link over."""
