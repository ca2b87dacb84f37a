"""A Hyperswarm: peers that find each other by topic, through any NAT. Owns the sidecar and restarts it when it dies."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path as FilePath
from typing import Any, Final, Self

from pyhyperswarm import connection_table, sidecar_process
from pyhyperswarm.connection_table import ConnectionTable
from pyhyperswarm.flow_control import MAX_WINDOW_BYTES, MIN_GROWTH_BYTES
from pyhyperswarm.peer_connection import PeerAddress, PeerConnection
from pyhyperswarm.peer_recovery import PROBE_OFFLINE_SECONDS, PROBE_ONLINE_SECONDS, Dial, Recovery
from pyhyperswarm.sidecar_process import CALL_SECONDS, Sidecar
from pyhyperswarm.stock_requests import Answers, OnGone, StockRequests
from pyhyperswarm.swarm_errors import SidecarLost, SwarmError

#: Pauses before restarts of the sidecar; they start over after a run of RESTART_CALM_SECONDS.
RESTART_PAUSES: Final = (0.2, 0.4, 0.8, 1.6, 3.2, 5.0)
RESTART_CALM_SECONDS = 30.0
FLUSH_SECONDS: Final = 15.0
TICK_SECONDS: Final = 0.25
PROBE_DEADLINE_SECONDS: Final = 5.0
#: How often to ask the DHT nodes that announce us whether they still do. A restarted one has forgotten everything, and the library
#: would notice only after ten minutes.
MEMORY_SECONDS: Final = 3.0
#: A sidecar that does not answer for this many rounds of this many seconds is replaced. Peers have lost it by then anyway.
HANGS_SECONDS: Final = 2.0
HANGS_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True)
class _Join:
    server: bool
    client: bool


class SwarmFollower:
    """Hears what becomes of a swarm, through all lives of its sidecar. Called on the event loop: must not wait or raise."""

    def started(self, sidecar: Sidecar) -> None: ...

    def lost(self) -> None:
        """The sidecar is gone, and with it all that was open."""

    def opened(self, key: bytes) -> None: ...

    def closed(self, key: bytes) -> None: ...

    def receive(self, event: dict[str, Any]) -> None:
        """Handle an event about copies of blocks."""


@dataclass(kw_only=True, eq=False)
class Swarm:
    """Use as ``async with Swarm(...) as swarm``, then ``join``, and ``async for connection in swarm``.

    Stays usable when the sidecar dies: connections close with "sidecar lost", and topics are joined again.
    """

    #: 32 bytes from which the key pair is derived; None for a random one. Never run two swarms with the same seed.
    seed: bytes | None = None
    #: DHT nodes to start with, at least two, by address or name; None for the public DHT.
    bootstrap: Sequence[PeerAddress] | None = None
    older: Sequence[PeerAddress] = ()
    #: Recently seen nodes of the DHT (``dht_nodes``), with which it can be found when the bootstrap nodes are gone.
    nodes: Sequence[PeerAddress] = ()
    #: Public keys of blind relays, used if there is no other path. One of the two peers must know one.
    relays: Sequence[bytes] = ()
    #: Public keys that may not connect. The sidecar refuses them before they learn anything about us.
    denied: frozenset[bytes] = frozenset()
    #: The address to bind to. A swarm on a loopback address considers itself reachable.
    host: str | None = None
    port: int | None = None
    node: FilePath | None = None
    #: What a peer may send before we have taken it, after ``open_window`` …
    window_bytes: int = 1024 * 1024
    #: … and before, as a stranger.
    first_bytes: int = 8192
    max_pending: int = 256
    on_event: Callable[[connection_table.Event], None] = field(default=lambda event: None)
    #: Answers requests of stock protomux-rpc clients; None refuses them. May raise only RequestRefused.
    on_request: Answers | None = None
    on_requester_gone: OnGone = field(default=lambda channel: None)
    #: ``BlockCopies`` where files are copied from and for peers.
    copies: SwarmFollower = field(default_factory=SwarmFollower)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._seed = secrets.token_bytes(32) if self.seed is None else self.seed
        if len(self._seed) != 32:
            raise ValueError("a seed must have 32 bytes")
        if not self.first_bytes + MIN_GROWTH_BYTES <= self.window_bytes <= MAX_WINDOW_BYTES:
            raise ValueError(f"window_bytes must be at least first_bytes + {MIN_GROWTH_BYTES} and at most {MAX_WINDOW_BYTES}")
        self._public_key: bytes | None = None
        self._command: list[str | FilePath] = []
        self._sidecar: Sidecar | None = None
        self._topics: dict[bytes, _Join] = {}
        self._recovery = Recovery()
        self._restarts = 0
        self._running = asyncio.Event()
        self._stack = AsyncExitStack()
        self._table = ConnectionTable(
            self.clock, window_bytes=self.window_bytes, first_bytes=self.first_bytes, max_pending=self.max_pending
        )
        self._table.on_event = lambda event: self.on_event(event)  # noqa: PLW0108 - it may be replaced
        self._table.on_opened = self._opened
        self._table.on_copy = lambda event: self.copies.receive(event)  # noqa: PLW0108 - it may be replaced
        self._table.on_lost = lambda connection: self._closed(connection, wanted=connection.key not in self.denied)
        self._table.on_ended = lambda connection: self._closed(connection, wanted=False)
        self._table.on_network_change = self._network_changed

    async def __aenter__(self) -> Self:
        """Raises NodeMissing, SwarmError."""
        node = self.node or sidecar_process.find_node()
        self._command = [node, "--no-warnings", sidecar_process.find_sidecar()]
        try:
            tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
            if self.on_request is not None:
                requests = StockRequests(self.on_request, self.on_requester_gone, tasks)
                # Before the start: clients call as soon as the sidecar listens.
                self._table.on_request = requests.receive
                self._stack.callback(requests.cancel)
            await self._start()
            for job in (self._supervise(), self._recover(), self._watch_network(), self._watch_memory(), self._watch_sidecar()):
                self._stack.callback(tasks.create_task(job).cancel)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        self._table.close()
        try:
            # Without the block's error, which the TaskGroup would wrap in a group.
            await self._stack.aclose()
        finally:
            await self._stop()

    @property
    def public_key(self) -> bytes:
        if self._public_key is None:
            raise SwarmError("the swarm is not open; use `async with`")
        return self._public_key

    @property
    def connections(self) -> tuple[PeerConnection, ...]:
        return self._table.connections

    async def join(self, topic: bytes, *, server: bool = True, client: bool = True) -> None:
        """Announce ourselves on a topic (``server``), look for others (``client``), or both. Call it again to change that.

        Returns at once; see ``flush``.
        """
        if len(topic) != 32 or not (server or client):
            raise ValueError("a topic must have 32 bytes and be joined as server, client or both")
        self._topics[topic] = _Join(server, client)
        if client:
            self._recovery.joined(topic, self.clock())
        else:
            self._recovery.left(topic)
        self._send_command("join", topic=topic.hex(), server=server, client=client)

    async def leave(self, topic: bytes) -> None:
        """Connections stay open."""
        if self._topics.pop(topic, None) is not None:
            self._recovery.left(topic)
            self._send_command("leave", topic=topic.hex())

    async def flush(self, *, deadline_seconds: float = FLUSH_SECONDS) -> None:
        """Wait until we are announced and the first lookups are done. Raises SwarmError if the network does not allow it."""
        try:
            async with asyncio.timeout(deadline_seconds):
                await self._running.wait()
        except TimeoutError:
            raise SidecarLost("the sidecar is being restarted") from None
        await self._call("flush", deadline_seconds)

    async def refresh(self, topic: bytes) -> None:
        """Look up a topic again. The swarm does this automatically while a peer is missing."""
        self._send_command("refresh", topic=topic.hex())

    async def deny(self, keys: frozenset[bytes]) -> None:
        """Return once these keys, and no others, are refused: their connections are closed, and peers that are allowed again looked up."""
        before, self.denied = self.denied, keys
        if self._sidecar is not None:
            await self._sidecar.call("firewall", self._firewall())
        if before - keys:
            # Refused peers wait longer and longer between attempts, so we dial them ourselves.
            self._recovery.look_up_all(self.clock())

    async def set_bootstrap(self, bootstrap: Sequence[PeerAddress] | None, older: Sequence[PeerAddress]) -> None:
        """Use other DHT nodes to start with. Known nodes stay known."""
        self.bootstrap, self.older = bootstrap, older
        self._send_command("bootstrap", **self._initial_nodes())

    async def dht_nodes(self) -> tuple[PeerAddress, ...]:
        """Return some DHT nodes that are online now, to be saved for the next start. Raises SidecarLost, SwarmError."""
        return tuple(PeerAddress(node["host"], node["port"]) for node in await self._call("nodes"))

    async def stats(self) -> connection_table.Stats:
        """Raises SidecarLost while the sidecar is being restarted."""
        found = await self._call("stats")
        assert self._sidecar is not None
        return connection_table.Stats(
            rss_bytes=found["rss"],
            pid=self._sidecar.pid,
            connections=len(self.connections),
            lost=self._recovery.lost,
            restarts=self._restarts,
            dht=connection_table.DhtStats(**found["dht"]),
        )

    async def __aiter__(self) -> AsyncIterator[PeerConnection]:
        """Yield connections as they open, until the swarm is closed. A connection that is not accepted within seconds is closed."""
        async for connection in self._table.arrivals():
            yield connection

    def _send_command(self, method: str, **parameters: object) -> None:
        """Without a sidecar nothing is lost: the next one gets the whole state at its start."""
        if self._sidecar is not None:
            self._sidecar.send_command(method, parameters)

    async def _call(self, method: str, deadline_seconds: float = CALL_SECONDS) -> Any:
        if self._sidecar is None:
            raise SidecarLost("the sidecar is being restarted")
        return await self._sidecar.call(method, deadline_seconds=deadline_seconds)

    async def _start(self) -> None:
        sidecar = await Sidecar.start(self._command, self._seed + json.dumps(self._options()).encode(), self._table)
        self._sidecar = sidecar
        self._public_key = sidecar.public_key
        sidecar.send_command("firewall", self._firewall())
        for topic, joined in self._topics.items():
            sidecar.send_command("join", {"topic": topic.hex(), "server": joined.server, "client": joined.client})
        self.copies.started(sidecar)
        self._running.set()

    async def _stop(self) -> None:
        self._running.clear()
        self.copies.lost()
        sidecar, self._sidecar = self._sidecar, None
        if sidecar is not None:
            await sidecar.stop()

    def _options(self) -> dict[str, object]:
        return {
            **self._initial_nodes(),
            "nodes": _parameters_of(self.nodes),
            "relays": [key.hex() for key in self.relays],
            "host": self.host,
            "port": self.port,
            # On loopback, the library's detection of NATs fails for half of the first connections.
            "open": self.host is not None and _is_loopback(self.host),
            "firstBytes": self.first_bytes,
            "servesRequests": self.on_request is not None,
        }

    def _firewall(self) -> dict[str, object]:
        return {"denied": [key.hex() for key in self.denied]}

    def _initial_nodes(self) -> dict[str, object]:
        return {"bootstrap": None if self.bootstrap is None else _parameters_of(self.bootstrap), "older": _parameters_of(self.older)}

    async def _supervise(self) -> None:
        failures = 0
        while True:
            assert self._sidecar is not None
            began_at = self.clock()
            words = await self._sidecar.wait()
            self._sidecar = None
            self._running.clear()
            self._table.sidecar_lost()
            self.copies.lost()
            self.on_event(connection_table.SidecarDied(words))
            if self.clock() - began_at >= RESTART_CALM_SECONDS:
                failures = 0
            while self._sidecar is None:
                await asyncio.sleep(RESTART_PAUSES[min(failures, len(RESTART_PAUSES) - 1)])
                failures += 1
                try:
                    await self._start()
                except SwarmError as error:
                    self.on_event(connection_table.SidecarDied(str(error)))
            self._restarts += 1
            self._recovery.restarted(self.clock())
            self.on_event(connection_table.SidecarRestarted(self._restarts))

    async def _recover(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self._sidecar is None:
                continue
            for step in self._recovery.due(self.clock()):
                if isinstance(step, Dial):
                    self._send_command("dial", key=step.key.hex(), topic=step.topic.hex())
                else:
                    self._send_command("refresh", topic=step.topic.hex())

    async def _watch_network(self) -> None:
        while True:
            await asyncio.sleep(PROBE_ONLINE_SECONDS if self._recovery.online else PROBE_OFFLINE_SECONDS)
            if self._sidecar is None or not self._recovery.has_missing_peers:
                continue
            try:
                online = await self._sidecar.call("isOnline", deadline_seconds=PROBE_DEADLINE_SECONDS)
            except SwarmError:
                continue
            if self._recovery.probed(online):
                self._network_changed()

    async def _watch_memory(self) -> None:
        was_remembered = True
        while True:
            await asyncio.sleep(MEMORY_SECONDS)
            announced = [topic for topic, joined in self._topics.items() if joined.server]
            if self._sidecar is None or not announced:
                continue
            try:
                remembered = await self._sidecar.call("isRemembered", deadline_seconds=PROBE_DEADLINE_SECONDS)
            except SwarmError:
                remembered = False
            if not remembered:
                self._send_command("announce")
            if not (remembered and was_remembered):
                # Once more after the library has announced our key again: it forgets the topics.
                for topic in announced:
                    self._send_command("refresh", topic=topic.hex())
            was_remembered = remembered

    async def _watch_sidecar(self) -> None:
        missed = 0
        while True:
            await asyncio.sleep(HANGS_SECONDS)
            sidecar = self._sidecar
            if sidecar is None:
                missed = 0
                continue
            try:
                await sidecar.call("nodes", deadline_seconds=HANGS_SECONDS)
                missed = 0
            except SwarmError:
                missed += 1
            if missed >= HANGS_ROUNDS:
                missed = 0
                sidecar.kill()

    def _opened(self, connection: PeerConnection) -> None:
        self._recovery.opened(connection.key, connection.topics)
        self.copies.opened(connection.key)

    def _closed(self, connection: PeerConnection, *, wanted: bool) -> None:
        self.copies.closed(connection.key)
        self._recovery.closed(connection.key, self.clock(), wanted=wanted)

    def _network_changed(self) -> None:
        self._send_command("revive")
        self._recovery.retry_all(self.clock())


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _parameters_of(nodes: Sequence[PeerAddress]) -> list[dict[str, object]]:
    return [{"host": node.host, "port": node.port} for node in nodes]
