"""The connections of a swarm: which number is which, who waits to be taken, and what the sidecar's events mean."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

from shared.transports.hyperswarm import sidecar_frames, swarm_events
from shared.transports.hyperswarm.flow_control import ReceiveWindow
from shared.transports.hyperswarm.peer_connection import Opening, Path, PeerAddress, PeerConnection, Pipe

#: A connection that nobody takes costs the peer's patience and our memory.
UNTAKEN_SECONDS: Final = 5.0
#: The same failure of the same peer is told once in this time.
TELL_EVERY_SECONDS: Final = 5.0
_MAX_TOLD: Final = 1024


@dataclass(frozen=True, slots=True)
class ConnectionTerms:
    """What holds for every connection."""

    window_bytes: int
    first_bytes: int
    max_pending: int


class ConnectionTable:
    """One for a swarm, over all lives of its sidecar. The swarm sets the callbacks."""

    def __init__(self, terms: ConnectionTerms, clock: Callable[[], float]) -> None:
        self._terms = terms
        self._clock = clock
        self._connections: dict[int, PeerConnection] = {}
        self._pending: deque[tuple[PeerConnection, asyncio.TimerHandle]] = deque()
        self._arrived = asyncio.Event()
        self._is_closing = False
        self._told: dict[tuple[bytes, str], float] = {}
        self.on_event: Callable[[swarm_events.Event], None] = _ignore
        self.on_opened: Callable[[PeerConnection], None] = _ignore
        #: The peer, or the network, ended it.
        self.on_lost: Callable[[PeerConnection], None] = _ignore
        #: We ended it.
        self.on_ended: Callable[[PeerConnection], None] = _ignore
        self.on_network_change: Callable[[], None] = lambda: None
        self.on_request: Callable[[Pipe, int, bytes], None] = lambda pipe, number, payload: None

    @property
    def connections(self) -> tuple[PeerConnection, ...]:
        return tuple(self._connections.values())

    async def arrivals(self) -> AsyncIterator[PeerConnection]:
        """Connections as they open, until ``close``."""
        while True:
            while self._pending:
                connection, timer = self._pending.popleft()
                timer.cancel()
                if connection.closed is None:
                    yield connection
            if self._is_closing:
                return
            self._arrived.clear()
            await self._arrived.wait()

    def close(self) -> None:
        self._is_closing = True
        for connection in self.connections:
            connection.close("the swarm was closed")
        for _, timer in self._pending:
            timer.cancel()
        self._arrived.set()

    def sidecar_lost(self) -> None:
        for connection in self.connections:
            connection.end("sidecar lost")

    def on_frame(self, pipe: Pipe, kind: int, number: int, payload: bytes) -> None:
        if kind == sidecar_frames.REQUEST:
            self.on_request(pipe, number, payload)  # numbered by themselves
            return
        connection = self._connections.get(number)
        if connection is None:
            # What still comes for a connection that we have closed means nothing any more.
            if kind == sidecar_frames.OPEN:
                self._open(pipe, number, json.loads(payload))
            elif kind == sidecar_frames.EVENT and number == 0:
                self._tell(json.loads(payload))
        elif kind == sidecar_frames.DATA:
            connection.receive(payload)
        elif kind == sidecar_frames.PART:
            connection.receive_part(payload)
        elif kind == sidecar_frames.CREDIT:
            connection.receive_credit(sidecar_frames.number(payload))
        elif kind == sidecar_frames.CLOSE:
            self._forget(number, lost=True)
            connection.end(payload.decode(errors="replace"))
        elif kind == sidecar_frames.EVENT:
            route = json.loads(payload)
            connection.path, connection.remote = Path(route["path"]), PeerAddress(route["host"], route["port"])
            self.on_event(swarm_events.PathChanged(connection))

    # --- inside ---------------------------------------------------------------------------------------------------

    def _open(self, pipe: Pipe, number: int, facts: dict[str, Any]) -> None:
        opening = Opening(
            key=bytes.fromhex(facts["key"]),
            initiator=facts["initiator"],
            path=Path(facts["path"]),
            remote=PeerAddress(facts["host"], facts["port"]),
            topics=tuple(map(bytes.fromhex, facts["topics"])),
            channel=bytes.fromhex(facts["channel"]),
            credit=facts["allowance"],
        )
        window = ReceiveWindow(self._terms.first_bytes, self._terms.window_bytes)
        connection = PeerConnection(pipe, number, opening, window, self._forget)
        self._connections[number] = connection
        self.on_opened(connection)
        if len(self._pending) >= self._terms.max_pending:
            connection.close("too many connections wait to be taken", abort=True)
            return
        timer = asyncio.get_running_loop().call_later(UNTAKEN_SECONDS, connection.close, "nobody took the connection")
        self._pending.append((connection, timer))
        self._arrived.set()

    def _forget(self, number: int, *, lost: bool = False) -> None:
        connection = self._connections.pop(number, None)
        if connection is not None:
            (self.on_lost if lost else self.on_ended)(connection)

    def _tell(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "network-changed":
                self.on_network_change()
            case "refused":
                self._tell_once(bytes.fromhex(event["key"]), "refused", swarm_events.Banned(bytes.fromhex(event["key"])))
            case "dial-failed":
                key, topics = bytes.fromhex(event["key"]), tuple(map(bytes.fromhex, event["topics"]))
                self._tell_once(key, event["code"], swarm_events.PeerFailed(key, topics, event["code"], event["text"]))

    def _tell_once(self, key: bytes, code: str, event: swarm_events.Event) -> None:
        now = self._clock()
        if now - self._told.get((key, code), -TELL_EVERY_SECONDS) < TELL_EVERY_SECONDS:
            return
        self._told.pop((key, code), None)
        if len(self._told) >= _MAX_TOLD:
            del self._told[next(iter(self._told))]
        self._told[key, code] = now
        self.on_event(event)


def _ignore(anything: object) -> None:
    """Until the swarm has set a callback."""
