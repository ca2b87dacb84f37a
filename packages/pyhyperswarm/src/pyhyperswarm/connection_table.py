"""The connections of a swarm by number, those waiting to be accepted, and the events and statistics that a swarm reports."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

from pyhyperswarm import sidecar_frames
from pyhyperswarm.flow_control import ReceiveWindow
from pyhyperswarm.peer_connection import Opening, Path, PeerAddress, PeerConnection, Pipe

UNTAKEN_SECONDS: Final = 5.0
REPORT_EVERY_SECONDS: Final = 5.0
_MAX_REPORTED: Final = 1024


@dataclass(frozen=True, slots=True)
class SidecarDied:
    words: str


@dataclass(frozen=True, slots=True)
class SidecarRestarted:
    restarts: int


@dataclass(frozen=True, slots=True)
class PeerFailed:
    """A peer was found but could not be connected to."""

    key: bytes
    topics: tuple[bytes, ...]
    #: From hyperdht: PEER_NOT_FOUND, HOLEPUNCH_DOUBLE_RANDOMIZED_NATS, …; ours: NO_PREFACE, BAD_PREFACE, FLOW_CONTROL.
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class PathChanged:
    """The connection uses another path now, for example direct instead of relayed."""

    connection: PeerConnection


@dataclass(frozen=True, slots=True)
class Banned:
    """The firewall refused a peer that dialed us. Repeated refusals are not all reported."""

    key: bytes


Event = SidecarDied | SidecarRestarted | PeerFailed | PathChanged | Banned


@dataclass(frozen=True, slots=True)
class DhtStats:
    #: Our address as other DHT nodes see it; port None behind a NAT that maps each of them to another port.
    host: str | None
    port: int | None
    firewalled: bool
    #: Behind a symmetric NAT: two such peers need a relay.
    randomized: bool
    nodes: int
    bootstrapped: bool


@dataclass(frozen=True, slots=True)
class Stats:
    rss_bytes: int
    pid: int
    connections: int
    lost: int
    restarts: int
    dht: DhtStats


class ConnectionTable:
    """One per swarm, for all lives of its sidecar. The swarm sets the callbacks."""

    def __init__(self, clock: Callable[[], float], *, window_bytes: int, first_bytes: int, max_pending: int) -> None:
        self._clock = clock
        self._window_bytes = window_bytes
        self._first_bytes = first_bytes
        self._max_pending = max_pending
        self._connections: dict[int, PeerConnection] = {}
        self._pending: deque[tuple[PeerConnection, asyncio.TimerHandle]] = deque()
        self._arrived = asyncio.Event()
        self._is_closing = False
        self._last_reported_at: dict[tuple[bytes, str], float] = {}
        self.on_event: Callable[[Event], None] = lambda event: None
        self.on_opened: Callable[[PeerConnection], None] = lambda connection: None
        #: Called when the peer or the network ended a connection.
        self.on_lost: Callable[[PeerConnection], None] = lambda connection: None
        self.on_ended: Callable[[PeerConnection], None] = lambda connection: None
        self.on_network_change: Callable[[], None] = lambda: None
        self.on_request: Callable[[Pipe, int, bytes], None] = lambda pipe, number, payload: None
        #: Called with the sidecar's events of ``BlockCopies``.
        self.on_copy: Callable[[dict[str, Any]], None] = lambda event: None

    @property
    def connections(self) -> tuple[PeerConnection, ...]:
        return tuple(self._connections.values())

    async def arrivals(self) -> AsyncIterator[PeerConnection]:
        """Yield connections as they open, until ``close``."""
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
            self.on_request(pipe, number, payload)  # these have their own numbers
            return
        connection = self._connections.get(number)
        if connection is None:
            # Anything else for a connection that we have closed is outdated.
            if kind == sidecar_frames.OPEN:
                self._open(pipe, number, json.loads(payload))
            elif kind == sidecar_frames.EVENT and number == 0:
                self._on_table_event(json.loads(payload))
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
            self.on_event(PathChanged(connection))

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
        window = ReceiveWindow(self._first_bytes, self._window_bytes)
        connection = PeerConnection(pipe, number, opening, window, self._forget)
        self._connections[number] = connection
        self.on_opened(connection)
        if len(self._pending) >= self._max_pending:
            connection.close("too many connections are waiting", abort=True)
            return
        timer = asyncio.get_running_loop().call_later(UNTAKEN_SECONDS, connection.close, "the connection was not accepted")
        self._pending.append((connection, timer))
        self._arrived.set()

    def _forget(self, number: int, *, lost: bool = False) -> None:
        connection = self._connections.pop(number, None)
        if connection is not None:
            (self.on_lost if lost else self.on_ended)(connection)

    def _on_table_event(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "copy":
                self.on_copy(event)
            case "network-changed":
                self.on_network_change()
            case "refused":
                self._report_once(bytes.fromhex(event["key"]), "refused", Banned(bytes.fromhex(event["key"])))
            case "dial-failed":
                key, topics = bytes.fromhex(event["key"]), tuple(map(bytes.fromhex, event["topics"]))
                self._report_once(key, event["code"], PeerFailed(key, topics, event["code"], event["text"]))

    def _report_once(self, key: bytes, code: str, event: Event) -> None:
        now = self._clock()
        if now - self._last_reported_at.get((key, code), -REPORT_EVERY_SECONDS) < REPORT_EVERY_SECONDS:
            return
        self._last_reported_at.pop((key, code), None)
        if len(self._last_reported_at) >= _MAX_REPORTED:
            del self._last_reported_at[next(iter(self._last_reported_at))]
        self._last_reported_at[key, code] = now
        self.on_event(event)
