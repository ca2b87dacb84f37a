"""One serving node: its links, its directory, its handlers and its place on the mesh, opened and closed in order."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol

from prometheus_client import Counter, Histogram

from shared import errors, identity, rpc
from shared.api import events
from shared.api import node as node_api
from shared.api.gateway import Check
from shared.api.method import Method, StreamMethod
from shared.directory import Announcement, Directory, Load, ModelOffer
from shared.link import Link, Me
from shared.nats_link import NatsTransport
from shared.node.announcing import Announcer
from shared.node.eventing import Events
from shared.node.lifecycle import background
from shared.node.micro import Micro
from shared.node.settings import NodeSettings
from shared.telemetry import logs
from shared.telemetry.metrics import Metrics, version
from shared.types import SERVICE_NAMES, MeshName, NodeId, Role

#: How long running calls may go on after SIGTERM.
DRAIN_SECONDS = 30.0
#: A service starts before its NATS server in many set-ups; after this long it says so and ends, to be started again.
CONNECT_SECONDS = 30.0
#: A service that does not say how it is within this time is not ready.
CHECK_SECONDS = 2.0

_log = logs.get()


class Service(Protocol):
    """What a program must be to run on a node. Its handlers are marked with ``rpc.serves``."""

    #: Which of the five it is.
    role: ClassVar[Role]

    @classmethod
    def open(cls, settings: Any, node: "Node") -> AbstractAsyncContextManager["Service"]:
        """Yields the running service; leaving closes what it opened. Tasks of its own go to ``node.tasks``."""
        ...

    async def checks(self) -> tuple[Check, ...]:
        """What it needs and whether it is there, within CHECK_SECONDS."""
        ...

    def asgi(self) -> Any | None:
        """Its HTTP application; /healthz, /readyz and /metrics are served before it."""
        ...


@dataclass(frozen=True, slots=True)
class _Offer:
    models: tuple[ModelOffer, ...] = ()
    load: Load = field(default_factory=Load)
    not_ready: str = ""


class Node:
    """A running member of the mesh. Made by ``member``."""

    def __init__(self, me: Me, transport: NatsTransport, tasks: asyncio.TaskGroup, calls: asyncio.TaskGroup) -> None:
        self.role = me.role
        self.id: NodeId = me.node
        self.mesh: MeshName = me.mesh
        self.started_at = datetime.now(UTC)
        self.service_name = SERVICE_NAMES[me.role]
        self.metrics = Metrics(self.service_name)
        #: Owner of the service's background tasks: cancelled after the drain, and one that fails ends the process.
        self.tasks = tasks
        self.transport = transport
        self.directory = Directory(asyncio.get_running_loop().time)
        self.dispatcher = rpc.Dispatcher(calls, self._observe, self._log_bug)
        rng = random.Random()  # noqa: S311 - spreads load
        self.pool = rpc.Pool(self.directory, transport.dial, self.dispatcher, rng)
        self.rpc = rpc.Client(self.pool)
        self.events_of_mesh = Events(transport)
        self.announcer = Announcer(transport, self.directory, self._describe)
        self.micro = Micro(transport, self.dispatcher, self.service_name, version())
        self._offer = _Offer(not_ready="starting")
        self._leaving = False
        self._dropped_events = 0
        self._inbound: set[rpc.Connection] = set()
        self._service: Service | None = None
        #: Methods × statuses, both from closed lists.
        self._counters: dict[tuple[str, str], Counter] = {}
        self._timers: dict[str, Histogram] = {}
        transport.on_link = self._accept
        transport.on_connection = self._on_connection
        transport.nats.on_refused = lambda words: _log.warning("NATS refused", words=words)

    # --- for services ---------------------------------------------------------------------------------------------

    def offer(self, *, models: tuple[ModelOffer, ...] = (), load: Load | None = None, not_ready: str = "") -> None:
        """What announcements say from now on; one leaves at once when it changed."""
        offer = _Offer(models, load or Load(), not_ready)
        if offer != self._offer:
            self._offer = offer
            self.announcer.announce_soon()

    @property
    def drain_started(self) -> asyncio.Event:
        """Set when a shutdown begins; a stream that would never end by itself has to end then."""
        return self.dispatcher.drain_started

    def publish(self, event: events.Event) -> None:
        """Send a domain event; never waits and never fails, because events are hints."""
        self.events_of_mesh.publish(event)

    def events(self) -> AsyncIterator[events.Event]:
        """Every event of the mesh from now on; for the metrics service."""
        return self.events_of_mesh.listen()

    # --- for the program ------------------------------------------------------------------------------------------

    async def serve(self, service: Service) -> None:
        """Take its handlers and answer calls from now on."""
        self._service = service
        self.dispatcher.add(self)
        self.dispatcher.add(service)
        self.micro.start()
        if self._offer.not_ready == "starting":
            self._offer = _Offer()
        self.announcer.announce_soon()

    async def health(self) -> node_api.NodeHealth:
        """Every check of the service and of the mesh."""
        mesh = Check("NATS", self.transport.connected, "" if self.transport.connected else "not connected; it is being tried again")
        if self._service is None:
            return node_api.NodeHealth(ready=False, checks=(mesh, Check("service", False, "starting")))
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                checks = (mesh, *await self._service.checks())
        except TimeoutError:
            checks = (mesh, Check("service", False, f"its checks took longer than {CHECK_SECONDS} s"))
        if self.dispatcher.draining:
            checks = (*checks, Check("drain", False, "shutting down"))
        return node_api.NodeHealth(ready=all(check.ok for check in checks), checks=checks)

    def metrics_text(self) -> str:
        self.metrics.links.labels(state="open").set(len(self.transport.links()))
        dropped = self.events_of_mesh.dropped
        self.metrics.events_dropped.inc(dropped - self._dropped_events)
        self._dropped_events = dropped
        return self.metrics.render()

    async def drain(self, grace_seconds: float = DRAIN_SECONDS) -> None:
        """Take no new calls, let the running ones finish, cut off what is left."""
        self.dispatcher.drain_started.set()
        self.announcer.announce_now()
        for connection in list(self._inbound):
            connection.say_goodbye("shutting down")
        await self.dispatcher.drained(grace_seconds)

    # --- what every node serves -------------------------------------------------------------------------------------

    @rpc.serves(node_api.read_metrics)
    async def read_metrics(self, request: node_api.ReadMetrics, call: rpc.Call) -> node_api.NodeMetrics:
        return node_api.NodeMetrics(self.metrics_text())

    @rpc.serves(node_api.read_health)
    async def read_health(self, request: node_api.ReadHealth, call: rpc.Call) -> node_api.NodeHealth:
        return await self.health()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _describe(self) -> Announcement:
        offer = self._offer
        return Announcement(
            self.role, self.id, version(), self.started_at, offer.models, offer.load,
            self.dispatcher.draining, offer.not_ready, {}, self._leaving,
        )  # fmt: skip

    def _accept(self, link: Link) -> None:
        connection = rpc.Connection(link, self.dispatcher)
        self._inbound.add(connection)
        connection.on_closed = self._inbound.discard

    def _on_connection(self, connected: bool) -> None:
        if connected:
            self.metrics.nats_reconnects.inc()
            self.announcer.ask()
        _log.warning("NATS is back" if connected else "NATS was lost")

    def _observe(self, method: Method[Any, Any] | StreamMethod[Any, Any, Any], status: str, seconds: float) -> None:
        # Looking labels up costs more than counting, and this runs for every call.
        counter = self._counters.get((method.name, status))
        if counter is None:
            name = method.name.partition(".")[2]
            counter = self.metrics.requests.labels(service=self.service_name, method=name, status=status)
            self._counters[method.name, status] = counter
        counter.inc()
        if isinstance(method, StreamMethod):
            return  # whoever streams knows the model and observes with it
        timer = self._timers.get(method.name)
        if timer is None:
            name = method.name.partition(".")[2]
            timer = self.metrics.request_duration.labels(service=self.service_name, method=name, model="")
            self._timers[method.name] = timer
        timer.observe(seconds)

    def _log_bug(self, method: Method[Any, Any] | StreamMethod[Any, Any, Any], error: Exception) -> None:
        _log.exception("a handler broke", method=method.name)


@asynccontextmanager
async def member(settings: NodeSettings, role: Role) -> AsyncIterator[Node]:
    """A node on the mesh. Leaving: last announcement, links closed, server left; the caller has drained before."""
    key = identity.load(settings.node_key_file)
    me = Me(settings.mesh, role, key, f"aimesh/{version()}")
    transport = NatsTransport(me, settings.nats_url, settings.nats_ca_file)
    await transport.connect(deadline_seconds=CONNECT_SECONDS)
    try:
        async with background() as infrastructure, background() as calls, background() as tasks:
            node = Node(me, transport, tasks, calls)
            infrastructure.create_task(transport.run())
            infrastructure.create_task(node.events_of_mesh.run())
            node.announcer.start()
            infrastructure.create_task(node.announcer.run())
            try:
                yield node
            finally:
                node._leaving = True
                node.announcer.announce_now()
    finally:
        await transport.close(errors.LinkLost("this node is stopping", retry_after_seconds=0.2))
