"""One serving node: its links, its directory, its handlers and its place on the mesh, opened and closed in order."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Protocol

from prometheus_client import Counter, Histogram

from shared import errors, rpc
from shared.api import events
from shared.api import node as node_api
from shared.api.gateway import Check
from shared.api.method import Method, StreamMethod
from shared.api.metrics import MetricsTextFormat
from shared.discovery.directory import Announcement, Directory, ModelOffer, WorkerLoad
from shared.identity import node_keys
from shared.identity.trust import Trust
from shared.node import membership_file
from shared.node.announcements import Announcer
from shared.node.certificate_renewal import CertificateRenewal
from shared.node.dht_node_cache import DhtNodeCache
from shared.node.domain_events import DomainEvents
from shared.node.host import Host
from shared.node.lifecycle import background
from shared.node.mesh_gauges import MeshGauges
from shared.node.settings import NodeSettings
from shared.node.stock_clients.nats_micro import Micro
from shared.node.stock_clients.stock_rpc_clients import StockRpcClients
from shared.node.swarm_settings import keys_of, nodes_to_begin_with, open_swarm
from shared.node.transports import Transports
from shared.stores import file_lock
from shared.telemetry import log_buffer, logs, tracing
from shared.telemetry.exemplars import Exemplars
from shared.telemetry.metrics_registry import Metrics, version
from shared.transports.link import LocalNode
from shared.transports.nats_link import NatsTransport
from shared.transports.swarm_link import SwarmTransport
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
    load: WorkerLoad = field(default_factory=WorkerLoad)
    not_ready: str = ""


class Node:
    """A running member of the mesh. Made by ``member``."""

    def __init__(
        self, me: LocalNode, ways: "NodeTransports", tasks: asyncio.TaskGroup, calls: asyncio.TaskGroup, traces: tracing.Traces
    ) -> None:
        self.role = me.role
        self.id: NodeId = me.node
        self.mesh: MeshName = me.mesh
        self.started_at = datetime.now(UTC)
        self.service_name = SERVICE_NAMES[me.role]
        self.metrics = Metrics(self.service_name)
        #: Owner of the service's background tasks: cancelled after the drain, and one that fails ends the process.
        self.tasks = tasks
        self.trust = ways.trust
        self.directory = Directory(asyncio.get_running_loop().time)
        self.dispatcher = rpc.Dispatcher(calls, self._observe, self._log_bug)
        self.dispatcher.traces = self.traces = traces
        self.node_transports = Transports(ways.trust, self.directory, ways.nats, ways.swarm, self.dispatcher)
        self.pool = rpc.ConnectionPool(self.directory, self.node_transports.reach, random.Random())  # noqa: S311 - spreads load
        self.rpc = rpc.RpcClient(self.pool)
        self.standing = CertificateRenewal(ways.trust, ways.kept, ways.state_file, self.directory, self.rpc)
        self.standing.changed = self.membership_changed
        self.standing.note = lambda what, why: _log.info(what, why=why)
        self.standing.door = lambda: self.node_transports.find(Role.AUTH)
        self.node_transports.on_number = self.standing.told
        self.events_of_mesh = DomainEvents(me, ways.nats)
        self.announcer = Announcer(me, self.node_transports, self.directory, self._describe)
        self.announcer.on_contested = self._on_shared_key
        self._instance = me.instance
        self.micro = None if ways.nats is None else Micro(ways.nats, self.dispatcher, self.service_name, version())
        self.host = Host(self.metrics, ways.state_file.parent)
        self._gauges = MeshGauges(self.metrics, self.node_transports, ways.trust, self.events_of_mesh, self.host)
        self._offer = _Offer(not_ready="starting")
        self._leaving = False
        self._follows_auth = ways.follows_auth
        #: The certificate that the peers have seen.
        self._shown = b""
        self._service: Service | None = None
        #: Methods × statuses, both from closed lists.
        self._counters: dict[tuple[str, str], Counter] = {}
        self._timers: dict[str, Histogram] = {}
        self._exemplars = Exemplars()
        if ways.nats is not None:
            ways.nats.on_connection = self._on_connection
            ways.nats.on_refused = lambda words: _log.warning("NATS refused", words=words)
        if ways.swarm is not None:
            ways.swarm.on_attached = self._on_attached
            ways.swarm.on_contested = self._on_contested
            outsiders = StockRpcClients(ways.trust, self.dispatcher, ways.outsiders)
            ways.swarm.on_request, ways.swarm.on_requester_gone = outsiders.answer, outsiders.gone
            self.membership_changed()

    # --- for services ---------------------------------------------------------------------------------------------

    def offer(self, *, models: tuple[ModelOffer, ...] = (), load: WorkerLoad | None = None, not_ready: str = "") -> None:
        """What announcements say from now on; one leaves at once when it changed."""
        offer = _Offer(models, load or WorkerLoad(), not_ready)
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

    def membership_changed(self) -> None:
        """Our certificate, the list or the topics are others now: tell the peers, and meet where we should."""
        if self.node_transports.swarm is not None:
            if self._follows_auth:
                kept = self.standing.kept
                self.node_transports.swarm.begin_with(*nodes_to_begin_with(kept.bootstrap, kept.older_bootstrap))
            self.node_transports.swarm.meet(self.standing.meetings())
            if self._shown != self.trust.certificate:
                self._shown = self.trust.certificate
                self.node_transports.swarm.rehello()
        self.announcer.announce_soon()

    # --- for the program ------------------------------------------------------------------------------------------

    async def serve(self, service: Service) -> None:
        """Take its handlers and answer calls from now on."""
        self._service = service
        self.dispatcher.add(self)
        self.dispatcher.add(service)
        if self.micro is not None:
            self.micro.start()
        if self._offer.not_ready == "starting":
            self._offer = _Offer()
        self.announcer.announce_soon()

    async def health(self) -> node_api.NodeHealth:
        """Every check of the service and of the mesh."""
        mesh = self.node_transports.checks()
        # One way to the others is enough to work; what is wrong with the other one is shown all the same, and an old list too.
        attached = any(check.ok for check in mesh)
        mesh = (*mesh, self.standing.check())
        if self._service is None:
            return node_api.NodeHealth(ready=False, checks=(*mesh, Check("service", False, "starting")))
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                checks = await self._service.checks()
        except TimeoutError:
            checks = (Check("service", False, f"its checks took longer than {CHECK_SECONDS} s"),)
        if self.dispatcher.draining:
            checks = (*checks, Check("drain", False, "shutting down"))
        return node_api.NodeHealth(ready=attached and all(check.ok or not check.needed for check in checks), checks=(*mesh, *checks))

    def metrics_text(self, form: MetricsTextFormat = MetricsTextFormat.PROMETHEUS) -> str:
        self._gauges.update()
        return self.metrics.render(form)

    def read_own_metrics(self) -> node_api.NodeMetrics:
        """The same as other nodes are given it, with exemplars."""
        self._gauges.update()
        return self.metrics.read()

    async def drain(self, grace_seconds: float = DRAIN_SECONDS) -> None:
        """Take no new calls, let the running ones finish, cut off what is left."""
        self.dispatcher.drain_started.set()
        self.announcer.announce_now()
        for connection in self.node_transports.connections():
            connection.say_goodbye("shutting down")
        await self.dispatcher.drained(grace_seconds)

    # --- what every node serves -------------------------------------------------------------------------------------

    @rpc.serves(node_api.read_metrics)
    async def read_metrics(self, request: node_api.ReadMetrics, call: rpc.RpcCall) -> node_api.NodeMetrics:
        return self.read_own_metrics()

    @rpc.serves(node_api.read_spans)
    async def read_spans(self, request: node_api.ReadSpans, call: rpc.RpcCall) -> node_api.Spans:
        batch = self.traces.read(request.after, request.wanted)
        return node_api.Spans(batch.spans, batch.next, batch.lost)

    @rpc.serves(node_api.read_logs)
    async def read_logs(self, request: node_api.ReadLogs, call: rpc.RpcCall) -> node_api.LogLines:
        if self.role is Role.WORKER:
            return node_api.LogLines((), 0, 0)
        batch = log_buffer.read(request.after)
        return node_api.LogLines(batch.items, batch.next, batch.lost)

    @rpc.serves(node_api.read_health)
    async def read_health(self, request: node_api.ReadHealth, call: rpc.RpcCall) -> node_api.NodeHealth:
        return await self.health()

    @rpc.serves(node_api.read_revocations)
    async def read_revocations(self, request: node_api.ReadRevocations, call: rpc.RpcCall) -> node_api.Revocations:
        return node_api.Revocations(self.trust.list_body)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _describe(self) -> Announcement:
        offer = self._offer
        return Announcement(
            self.role, self.id, version(), self.started_at, offer.models, offer.load,
            self.dispatcher.draining, offer.not_ready, self._labels(), self._leaving, self.trust.number, self._owner(),
            self.node_transports.faults(),
            self._instance, self.announcer.contests.younger, datetime.now(UTC),
        )  # fmt: skip

    def _labels(self) -> dict[str, str]:
        """Those that the certificate gives us; a node's own word for them would be worth nothing."""
        standing = self.trust.standing()
        return {} if standing is None else dict(standing.labels)

    def _owner(self) -> str:
        standing = self.trust.standing()
        return "" if standing is None else standing.owner

    def _on_connection(self, connected: bool) -> None:
        if connected:
            self.metrics.nats_reconnects.inc()
            self.announcer.ask()
        else:
            self.directory.deafened("nats")
        why = self.node_transports.nats.nats.trouble if self.node_transports.nats is not None else None
        _log.warning("NATS is back" if connected else "NATS was lost", why="" if why is None else why.message)

    def _on_attached(self, attached: bool) -> None:
        if not attached:
            self.directory.deafened("swarm")
        trouble = "" if self.node_transports.swarm is None else self.node_transports.swarm.trouble
        _log.info("Hyperswarm is attached" if attached else "Hyperswarm is not attached", why=trouble)

    def _on_contested(self, node: NodeId) -> None:
        known = self.directory.find(node)
        _log.warning(
            "a node's link is made anew again and again: its network is bad, or two processes show its key, and it may be stolen",
            id=node,
            role=None if known is None else known.role,
            do="stop the second process, or `aicli admin nodes revoke`",
        )
        self.metrics.contested_keys.inc()

    def _on_shared_key(self, node: NodeId) -> None:
        known = self.directory.find(node)
        role = self.role if node == self.id else None if known is None else known.role
        _log.warning("two processes use one node key; the younger one has to stop", id=node, role=role, do="docs/runbooks/contested_key.md")
        self.metrics.contested_keys.inc()

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
        timer.observe(seconds, self._exemplars.of_request())

    def _log_bug(self, method: Method[Any, Any] | StreamMethod[Any, Any, Any], error: Exception) -> None:
        _log.exception("a handler broke", method=method.name)


@dataclass(frozen=True, slots=True)
class NodeTransports:
    """What a node has to reach the others, before it runs."""

    trust: Trust
    nats: NatsTransport | None
    swarm: SwarmTransport | None
    #: What it knew of the mesh when it last ran.
    kept: membership_file.MembershipFile
    state_file: Path
    #: Whether auth says where the DHT is, because the settings don't.
    follows_auth: bool
    #: Keys that may call as clients without a certificate, by the way of stock @hyperswarm/rpc.
    outsiders: tuple[bytes, ...]


def plan_ways(settings: NodeSettings, me: LocalNode) -> NodeTransports:
    """The transports that the settings ask for. Raises BadSettings if that is none."""
    found = membership_file.load(settings.state_file)
    kept = found or membership_file.MembershipFile(settings.mesh, me.role)
    trust = Trust(me.key, me.role)
    if found is not None:
        membership_file.believe(trust, found)
    nats = NatsTransport(me, settings.nats_url, settings.nats_files, trust) if settings.uses_nats else None
    open_ = open_swarm(settings, kept, me.key)
    swarm = None if open_ is None else SwarmTransport(me, trust, open_)
    if nats is None and swarm is None:
        raise errors.BadSettings(
            "NATS_URL=none, and nothing to find the mesh by on Hyperswarm",
            hint="join with `aicli worker --join TICKET`, or set DHT_BOOTSTRAP",
        )
    if nats is None and found is None:
        raise errors.BadSettings(f"this node has not joined a mesh: there is no {settings.state_file}", hint="aicli worker --join TICKET")
    return NodeTransports(
        trust, nats, swarm, kept, settings.state_file, not settings.dht_bootstrap, keys_of("SWARM_CLIENTS", settings.swarm_clients)
    )


@asynccontextmanager
async def member(settings: NodeSettings, role: Role) -> AsyncIterator[Node]:
    """A node on the mesh. Leaving: last announcement, links closed, server left; the caller has drained before.

    Raises BadSettings if another process has its state file, or an older one uses its key."""
    async with file_lock.hold(settings.state_file), _unlocked_member(settings, role) as node:
        yield node


@asynccontextmanager
async def _unlocked_member(settings: NodeSettings, role: Role) -> AsyncIterator[Node]:
    me = LocalNode(settings.mesh, role, node_keys.load(settings.node_key_file), f"aimesh/{version()}")
    ways = plan_ways(settings, me)
    if ways.nats is not None:
        await ways.nats.connect(deadline_seconds=CONNECT_SECONDS)
    try:
        async with background() as infrastructure, background() as calls, background() as tasks:
            node = Node(me, ways, tasks, calls, tracing.Traces(ratio=settings.trace_ratio, is_on=not settings.traces_off))
            for transport in node.node_transports.transports():
                infrastructure.create_task(transport.run())
            infrastructure.create_task(node.events_of_mesh.run())
            node.announcer.start()
            infrastructure.create_task(node.announcer.run())
            infrastructure.create_task(node.standing.run())
            infrastructure.create_task(node.host.run())
            if ways.swarm is not None:
                infrastructure.create_task(DhtNodeCache(ways.swarm, node.standing).run())
            try:
                yield node
            finally:
                # Without a drain before, calls that still arrive would find no task group.
                node.dispatcher.drain_started.set()
                # The older process with our key does not leave.
                if not node.announcer.must_stop.is_set():
                    node._leaving = True
                    node.announcer.announce_now()
    finally:
        why = errors.LinkLost("this node is stopping", retry_after_seconds=0.2)
        if ways.swarm is not None:
            await ways.swarm.close(why)
        if ways.nats is not None:
            await ways.nats.close(why)
