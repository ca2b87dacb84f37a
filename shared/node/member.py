"""A serving node: opens and closes its links, directory, handlers and membership in order."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pyhyperswarm.block_copies import BlockCopies

from shared import config, config_releases, errors, features, rpc
from shared.api import membership
from shared.api import node as node_api
from shared.api.gateway import Check
from shared.api.method import Method, StreamMethod
from shared.api.metrics import MetricsTextFormat
from shared.background import tasks as background_tasks
from shared.background.tasks import FailingTasks
from shared.identity import node_keys, private_file
from shared.identity.trust import Trust
from shared.node import enrollment, membership_file
from shared.node.announcements import Announcer
from shared.node.certificate_renewal import CertificateRenewal, save_dht_nodes
from shared.node.domain_events import DomainEvents
from shared.node.host_metrics import Host
from shared.node.lifecycle import background
from shared.node.mesh_gauges import MeshGauges
from shared.node.settings import NodeSettings
from shared.node.stock_clients.nats_micro import Micro
from shared.node.stock_clients.stock_rpc_clients import StockRpcClients
from shared.node.swarm_settings import initial_nodes, keys_of, open_swarm
from shared.node.transports import Transports
from shared.protocol import replica_check
from shared.protocol.directory import STARTING, Announcement, ConfigReading, Directory, ModelOffer, ModelPull, WorkerLoad
from shared.protocol.replica_check import ReplicaCheck
from shared.stores import file_lock
from shared.telemetry import log_buffer, logs, tracing
from shared.telemetry.metrics_registry import Exemplars, Metrics
from shared.telemetry.readiness import Dependency, LoopLag, OwnCheck, Readiness
from shared.telemetry.version import version
from shared.transports.link import LocalNode
from shared.transports.nats_link import NatsTransport
from shared.transports.swarm_transport import SwarmTransport
from shared.types import SERVICE_NAMES, MeshName, ModelName, NodeId, Role

#: Services often start before their NATS server. After this they exit and are restarted.
CONNECT_SECONDS = 30.0
#: Of a node that starts without it, on Hyperswarm.
CONNECT_BESIDE_SECONDS = 5.0
#: A service that has not answered by then is not ready.
CHECK_SECONDS = 2.0
_LAG_LOOK_SECONDS = 1.0
#: Nodes answer the question who is there within ``announcements.SETTLE_SECONDS`` and a round trip.
_REPLICA_LOOK_SECONDS, _REPLICA_LOOKS = 0.05, 8

_log = logs.get()


class Service(Protocol):
    """A program that runs on a node. Its handlers are marked with ``rpc.serves``."""

    role: ClassVar[Role]

    @classmethod
    def open(cls, settings: Any, node: "Node") -> AbstractAsyncContextManager["Service"]:
        """Yields the running service. Leaving closes what it opened. Its background tasks go to ``node.tasks``."""
        ...

    async def checks(self) -> tuple[Check, ...]:
        """Return the state of everything it depends on, within CHECK_SECONDS; an OwnCheck for what no other replica shares."""
        ...

    def asgi(self) -> Any | None:
        """Return its HTTP application, which is served after /healthz, /readyz, /dependencies and /metrics."""
        ...


@dataclass(frozen=True, slots=True)
class _Offer:
    models: tuple[ModelOffer, ...] = ()
    load: WorkerLoad = field(default_factory=WorkerLoad)
    not_ready: str = ""
    pulls: tuple[ModelPull, ...] = ()
    warning: str = ""
    assigned: tuple[ModelName, ...] = ()
    refused: tuple[ModelName, ...] = ()
    notice: str = ""


class Node:
    """A running member of the mesh, created by ``member``."""

    #: See ``announce_config``.
    _config: ConfigReading | None = ConfigReading(config_releases.READS)
    #: See ``announce_models``.
    _models_revision: int | None = None

    def __init__(
        self, me: LocalNode, plan: "TransportPlan", tasks: asyncio.TaskGroup, calls: asyncio.TaskGroup, traces: tracing.Traces
    ) -> None:
        #: Names of background tasks that died; the process is ending, or must be restarted.
        # Tasks that ended the process, and background tasks that fail and start again.
        self.dead_tasks, self.failing = list[str](), FailingTasks(lambda task: self.metrics.background_failures.labels(task).inc())
        self._readiness = Readiness()
        self._loop_lag = LoopLag()
        self.role = me.role
        self.id: NodeId = me.node
        self.mesh: MeshName = me.mesh
        self.started_at = datetime.now(UTC)
        self.service_name = SERVICE_NAMES[me.role]
        self.metrics = Metrics(self.service_name)
        #: The service's background tasks: canceled after the drain. A task that fails ends the process.
        self.tasks = tasks
        self.trust = plan.trust
        self.directory = Directory(asyncio.get_running_loop().time)
        self.dispatcher = rpc.Dispatcher(calls, self._observe, self._log_bug)
        self.dispatcher.traces = self.traces = traces
        #: Set when a shutdown begins. Endless streams must end then.
        self.drain_started = self.dispatcher.drain_started
        self.node_transports = Transports(plan.trust, self.directory, plan.nats, plan.swarm, self.dispatcher)
        self.pool = rpc.ConnectionPool(self.directory, self.node_transports.reach, random.Random())  # noqa: S311 - spreads load
        self.rpc = rpc.RpcClient(self.pool)
        self.renewal = CertificateRenewal(plan.trust, plan.membership, plan.state_file, self.directory, self.rpc)
        self.renewal.changed = self.membership_changed
        self.renewal.note = lambda what, why: _log.info(what, why=why)
        self.renewal.as_newcomer = plan.renew_over_nats
        self.renewal.find_auth = lambda: self.node_transports.find(Role.AUTH)
        self.node_transports.on_number = self.renewal.record_list_number
        self.events_of_mesh = DomainEvents(me, plan.nats)
        self.publish = self.events_of_mesh.publish
        self.events = self.events_of_mesh.listen
        self.announcer = Announcer(me, self.node_transports, self.directory, self._describe)
        self.announcer.on_contested = self._on_shared_key
        self._instance = me.instance
        self.micro = None if plan.nats is None else Micro(plan.nats, self.dispatcher, self.service_name, version())
        self.host = Host(self.metrics, plan.state_file.parent)
        self._gauges = MeshGauges(self.metrics, self.node_transports, plan.trust, self.events_of_mesh)
        self._offer = _Offer(not_ready=STARTING)
        self._replicas = ReplicaCheck(me.role)
        #: The second is what the last announcement says of why it leaves; empty if there is nothing to say.
        self._leaving, self.leave_reason = False, ""
        self._follows_auth = plan.follows_auth
        self._shown = b""
        self._service: Service | None = None
        self.copies = plan.copies
        self._exemplars = Exemplars()
        if plan.nats is not None:
            plan.nats.on_connection = self._on_connection
            plan.nats.on_refused = lambda words: _log.warning("NATS refused", words=words)
        if plan.swarm is not None:
            plan.swarm.on_attached, plan.swarm.on_contested = self._on_attached, self._on_contested
            stock_clients = StockRpcClients(plan.trust, self.dispatcher, plan.stock_clients)
            plan.swarm.on_request, plan.swarm.on_requester_gone = stock_clients.answer, stock_clients.gone
            self.membership_changed()

    def offer(
        self,
        *,
        models: tuple[ModelOffer, ...] = (),
        load: WorkerLoad | None = None,
        not_ready: str = "",
        pulls: tuple[ModelPull, ...] = (),
        warning: str = "",
        assigned: tuple[ModelName, ...] = (),
        refused: tuple[ModelName, ...] = (),
        notice: str = "",
    ) -> None:
        """Change what announcements say, and announce a change at once. For the last four see ``Announcement``."""
        offer = _Offer(models, load or WorkerLoad(), not_ready, pulls, warning, assigned, refused, notice)
        if offer != self._offer:
            self._offer = offer
            self.announcer.announce_soon()

    def announce_config(self, reading: ConfigReading) -> None:
        """Say which configuration this gateway uses, at once if it is another."""
        if reading != self._config:
            self._config = reading
            self.announcer.announce_soon()

    def announce_models(self, revision: int) -> None:
        """Announce which revision of the models' versions this gateway uses from now on."""
        self._models_revision = revision
        self.announcer.announce_soon()

    def membership_changed(self) -> None:
        """Tell the peers that our certificate, list or topics changed, and join the right topics."""
        if self.node_transports.swarm is not None:
            if self._follows_auth:
                membership = self.renewal.membership
                self.node_transports.swarm.set_initial_nodes(*initial_nodes(membership.bootstrap, membership.older_bootstrap))
            self.node_transports.swarm.meet(self.renewal.meetings())
            if self._shown != self.trust.certificate:
                self._shown = self.trust.certificate
                self.node_transports.swarm.rehello()
        if self.node_transports.nats is not None:
            self.node_transports.nats.renew_login()
        self.announcer.announce_soon()

    async def free_place(self) -> None:
        """Tell auth that this node, which joined with a ticket, stops. Without an answer its place is free in a minute."""
        with contextlib.suppress(errors.AimeshError, TimeoutError):
            async with asyncio.timeout(CHECK_SECONDS):
                await self.rpc.call(membership.leave_node, membership.LeaveNode(), deadline_seconds=CHECK_SECONDS)

    async def serve(self, service: Service) -> None:
        """Register the service's handlers and answer calls from now on. Raises Unavailable, and BadSettings for an incomplete replica."""
        self._service = service
        self.dispatcher.add(self)
        self.dispatcher.add(service)
        if self.node_transports.nats is not None and self.role is Role.AUTH:
            # Only now, because auth answers the NATS server's question about its own login.
            await self.node_transports.nats.connect(deadline_seconds=CONNECT_SECONDS)
            self.announcer.ask()
            await self.check_replicas()
        if self.micro is not None:
            await self.micro.start()
        if self._offer.not_ready == STARTING:
            self._offer = _Offer()
        self.announcer.announce_soon()

    @property
    def shared_settings(self) -> tuple[str, ...]:
        """Return the names of the settings of this process that every replica needs; see ``config.Variable.on_all_replicas``."""
        return self._replicas.present

    async def check_replicas(self) -> None:
        """Raises BadSettings if another replica has a setting that this one lacks. Call once the node is connected."""
        for _ in range(_REPLICA_LOOKS if self._replicas.absent else 0):
            await asyncio.sleep(_REPLICA_LOOK_SECONDS)
            entries = self.directory.entries(replica_check.COMPARED_WITH[self.role])
            self._replicas.refuse_incomplete(entry.announcement for entry in entries if entry.alive)

    async def health(self) -> node_api.NodeHealth:
        """Run all checks of the service and the mesh, and decide whether the node is ready for traffic: see ``readiness``."""
        transports = self.node_transports.checks()
        checks = (self.renewal.check(), *await self._service_checks(), *self._own_checks())
        ready = self._readiness.decide(transports, checks, datetime.now(UTC))
        return node_api.NodeHealth(ready=ready, checks=(*transports, *checks))

    async def dependencies(self) -> tuple[Dependency, ...]:
        """Run all checks, and return their history."""
        await self.health()
        return self._readiness.dependencies

    async def _service_checks(self) -> tuple[Check, ...]:
        if self._service is None:
            return (Check("service", False, "starting"),)
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                return await self._service.checks()
        except TimeoutError:
            return (Check("service", False, f"its checks took longer than {CHECK_SECONDS} s"),)

    def _own_checks(self) -> tuple[Check, ...]:
        """Return what is wrong with this process alone, and whether a worker is in the mesh."""
        refusal = self.node_transports.refusal()
        joined = () if self.role is not Role.WORKER else (self._check_joined(),)
        troubles = (
            OwnCheck("certificate", refusal is None, "" if refusal is None else f"{refusal.message}; {refusal.hint}"),
            OwnCheck("node key", not self.announcer.must_stop.is_set(), "an older process uses it; see docs/runbooks/contested_key.md"),
            OwnCheck("drain", not self.dispatcher.draining, "shutting down"),
            self._loop_lag.check(time.monotonic()),
        )
        return (*joined, *(check for check in troubles if not check.ok))

    def _check_joined(self) -> Check:
        """Return whether any service has accepted this worker. Over Hyperswarm, only links show that."""
        nats = self.node_transports.nats
        known = self.directory.entries()
        if (nats is not None and nats.connected) or any(entry.alive for entry in known):
            return Check("mesh", ok=True)
        refused = [f"{entry.role} {entry.node[:9]}…: {entry.why_gone}" for entry in known if entry.refused]
        return Check("mesh", False, f"no service of the mesh has accepted this worker{''.join(f'; {why}' for why in refused[:1])}")

    async def _measure_lag(self) -> None:
        while True:
            due = time.monotonic() + _LAG_LOOK_SECONDS
            await asyncio.sleep(_LAG_LOOK_SECONDS)
            self._loop_lag.note(time.monotonic() - due, time.monotonic())

    def metrics_text(self, form: MetricsTextFormat = MetricsTextFormat.PROMETHEUS) -> str:
        self._update_metrics()
        return self.metrics.render(form)

    def read_own_metrics(self) -> node_api.NodeMetrics:
        """Return the metrics as other nodes get them, with exemplars."""
        self._update_metrics()
        return self.metrics.read()

    def _update_metrics(self) -> None:
        self.host.update()
        self._gauges.update()

    async def drain(self, grace_seconds: float) -> None:
        """Accept no new calls, wait for the running ones, and cancel what is left."""
        self.dispatcher.drain_started.set()
        self.announcer.announce_now()
        for connection in self.node_transports.connections():
            connection.send_goodbye("shutting down")
        await self.dispatcher.drained(grace_seconds)

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

    def _describe(self) -> Announcement:
        offer = self._offer
        return Announcement(
            self.role, self.id, version(), self.started_at, offer.models, offer.load,
            self.dispatcher.draining, offer.not_ready, self._labels(), self._leaving, self.trust.number, self._owner(),
            self.node_transports.faults(),
            self._instance, self.announcer.duplicate_keys.younger, datetime.now(UTC), offer.pulls, self.shared_settings,
            offer.warning, offer.assigned, offer.refused,
            self._config if self.role is Role.GATEWAY else None, self.leave_reason if self._leaving else "", self._models_revision,
            tuple(features.known()), self.node_transports.is_over_web, offer.notice,
        )  # fmt: skip

    def _labels(self) -> dict[str, str]:
        """Return the certificate's labels; peers would believe no others."""
        standing = self.trust.standing()
        return {} if standing is None else dict(standing.labels)

    def _owner(self) -> str:
        standing = self.trust.standing()
        return "" if standing is None else standing.owner

    def _on_connection(self, connected: bool) -> None:
        self.node_transports.note_connection()
        if connected:
            self.metrics.nats_reconnects.inc()
            self.announcer.ask()
        why = self.node_transports.nats.nats.trouble if self.node_transports.nats is not None else None
        _log.warning("NATS is back" if connected else "NATS was lost", why="" if why is None else why.message)

    def _on_attached(self, attached: bool) -> None:
        if not attached:
            self.directory.transport_lost("swarm")
        trouble = "" if self.node_transports.swarm is None else self.node_transports.swarm.trouble
        _log.info("Hyperswarm is attached" if attached else "Hyperswarm is not attached", why=trouble)

    def _on_contested(self, node: NodeId) -> None:
        known = self.directory.find(node)
        _log.warning(
            "a node's link is replaced again and again: its network is bad, or two processes use its key, which may be stolen",
            id=node,
            role=None if known is None else known.role,
            do="stop the second process, or run `aicli admin nodes revoke`",
        )
        self.metrics.contested_keys.inc()

    def _on_shared_key(self, node: NodeId) -> None:
        known = self.directory.find(node)
        role = self.role if node == self.id else None if known is None else known.role
        _log.warning("two processes use one node key; the younger one must stop", id=node, role=role, do="docs/runbooks/contested_key.md")
        self.metrics.contested_keys.inc()

    def _observe(self, method: Method[Any, Any] | StreamMethod[Any, Any, Any], status: str, seconds: float) -> None:
        name = method.name.partition(".")[2]
        self.metrics.requests.labels(self.service_name, name, status).inc()
        if not isinstance(method, StreamMethod):  # streaming services know the model and observe with it
            self.metrics.request_duration.labels(self.service_name, name, "").observe(seconds, self._exemplars.of_request())

    def _log_bug(self, method: Method[Any, Any] | StreamMethod[Any, Any, Any], error: Exception) -> None:
        _log.exception("bug in a handler", method=method.name)


@dataclass(frozen=True, slots=True)
class TransportPlan:
    """How a node reaches the others."""

    trust: Trust
    nats: NatsTransport | None
    swarm: SwarmTransport | None
    #: Of blocks of files, by the swarm.
    copies: BlockCopies
    membership: membership_file.MembershipFile
    state_file: Path
    #: Auth decides which DHT nodes to use, because the settings do not.
    follows_auth: bool
    #: Keys that may call as clients with stock @hyperswarm/rpc, without a certificate.
    stock_clients: tuple[bytes, ...]
    #: None without NATS.
    renew_over_nats: Callable[[membership_file.MembershipFile], Awaitable[membership_file.MembershipFile]] | None


def plan_transports(settings: NodeSettings, me: LocalNode) -> TransportPlan:
    """Create the transports that the settings ask for. Raises BadSettings if there is none."""
    saved = membership_file.load(settings.state_file)
    found = None if saved is None else membership_file.for_key(saved, me.node)
    membership = found or membership_file.MembershipFile(settings.mesh, me.role)
    trust = Trust(me.key, me.role)
    if found is not None:
        membership_file.load_into(trust, found)
    nats = NatsTransport(me, settings.nats_url, settings.nats_files, trust) if settings.uses_nats else None
    open_ = open_swarm(settings, membership, me.key)
    copies = BlockCopies()
    swarm = None if open_ is None else SwarmTransport(me, trust, open_, copies=copies)
    if nats is None and swarm is None:
        raise errors.BadSettings(
            "NATS_URL=none, but there is no Hyperswarm configuration either",
            hint="join with `aicli worker --join TICKET`, or set DHT_BOOTSTRAP",
        )
    if found != saved:
        if nats is None:
            raise errors.BadSettings(f"{settings.state_file} belongs to another key", hint="aicli worker --join TICKET")
        _log.warning("the saved certificate belongs to another key", file=str(settings.state_file))
    if nats is None and found is None:
        raise errors.BadSettings(f"this node has not joined a mesh: there is no {settings.state_file}", hint="aicli worker --join TICKET")
    return TransportPlan(
        trust=trust,
        nats=nats,
        swarm=swarm,
        copies=copies,
        membership=membership,
        state_file=settings.state_file,
        follows_auth=not settings.dht_bootstrap,
        stock_clients=keys_of("SWARM_CLIENTS", settings.swarm_clients),
        renew_over_nats=None if nats is None else lambda membership: enrollment.renew_over_nats(membership, me.key, settings),
    )


async def _with_certificate(plan: "TransportPlan", settings: NodeSettings, me: LocalNode) -> "TransportPlan":
    """Return the plan with a valid certificate, if this node needs another one before NATS accepts it. Raises what ``enroll`` raises."""
    if plan.trust.has_certificate(time.time()):
        return plan
    if plan.trust.certificate:
        try:
            # Its own swarm doesn't run yet.
            found = await enrollment.renew_over_nats(plan.membership, me.key, settings, beside=plan.membership.beside)
        except errors.AimeshError as error:
            _log.warning("certificate not renewed", why=error.message)
            if settings.join_ticket_file is None:
                return plan  # NATS may accept the key alone
            found = await enrollment.join_over_nats(me, settings.join_ticket_file, settings)
    elif settings.join_ticket_file is not None:
        found = await enrollment.join_over_nats(me, settings.join_ticket_file, settings)
    else:
        return plan
    membership_file.save(plan.state_file, found)
    membership_file.load_into(plan.trust, found)
    return replace(plan, membership=found)


@asynccontextmanager
async def member(settings: NodeSettings, role: Role) -> AsyncIterator[Node]:
    """Join the mesh as a node. Leaving announces that, and closes the links and transports; the caller must drain before.

    Raises BadSettings if another process uses its state file, or an older one its key.
    """
    async with file_lock.hold(settings.state_file), _unlocked_member(settings, role) as node:
        yield node


def _replica_check(settings: NodeSettings, role: Role) -> ReplicaCheck:
    present, absent = config.names_for_replicas(settings)
    if settings.replica_check == "off" or role not in replica_check.COMPARED_WITH:
        return ReplicaCheck(role, present)
    if role is Role.WEB:
        # It is compared with gateways, and needs no Hyperswarm to reach them.
        absent = tuple(name for name in absent if name != "DHT_BOOTSTRAP")
    return ReplicaCheck(role, present, absent)


def _ensure_key(settings: NodeSettings, role: Role) -> None:
    """Raises BadSettings if there is no key, and nothing that would make a new one a member."""
    if settings.makes_own_key:
        private_file.create(settings.node_key_file, node_keys.new_seed)
    elif role in replica_check.COMPARED_WITH and not settings.node_key_file.exists():
        maker = "MESH_CA_KEY_FILE" if role is Role.AUTH else "JOIN_TICKET_FILE"
        raise errors.BadSettings(
            f"there is no node key {settings.node_key_file}, and no {maker} to make one with", hint=replica_check.hint(role)
        )


@asynccontextmanager
async def _unlocked_member(settings: NodeSettings, role: Role) -> AsyncIterator[Node]:
    _ensure_key(settings, role)
    me = LocalNode(settings.mesh, role, node_keys.load(settings.node_key_file), f"aimesh/{version()}")
    plan = plan_transports(settings, me)
    if plan.nats is not None and role is not Role.AUTH:
        plan = await _with_certificate(plan, settings, me)
        assert plan.nats is not None
        is_needed = not plan.membership.beside
        await plan.nats.connect(deadline_seconds=CONNECT_SECONDS if is_needed else CONNECT_BESIDE_SECONDS, is_needed=is_needed)
    try:
        dead_tasks: list[str] = []
        async with background(dead_tasks) as infrastructure, background() as calls, background(dead_tasks) as tasks:
            node = Node(me, plan, tasks, calls, tracing.Traces(ratio=settings.trace_ratio, is_on=not settings.traces_off))
            node._replicas = _replica_check(settings, role)
            for transport in node.node_transports.transports():
                infrastructure.create_task(transport.run())
            node.dead_tasks = dead_tasks
            background_tasks.failing.set(node.failing)
            keep = background_tasks.keep
            infrastructure.create_task(keep("events", node.events_of_mesh.run))
            infrastructure.create_task(keep("event loop", node._measure_lag))
            node.announcer.start()
            infrastructure.create_task(node.announcer.run())
            infrastructure.create_task(keep("certificate renewal", node.renewal.run))
            infrastructure.create_task(keep("machine readings", node.host.run))
            if plan.swarm is not None:
                infrastructure.create_task(keep("DHT nodes", partial(save_dht_nodes, plan.swarm, node.renewal)))
            try:
                yield node
            finally:
                # Without a drain before, late calls would find no task group.
                node.dispatcher.drain_started.set()
                if settings.join_ticket_file is not None or plan.membership.nats:
                    await node.free_place()
                # The older process with our key is still there.
                if not node.announcer.must_stop.is_set():
                    node._leaving = True
                    node.announcer.announce_now()
    finally:
        why = errors.LinkLost("this node is stopping", retry_after_seconds=0.2)
        if plan.swarm is not None:
            await plan.swarm.close(why)
        if plan.nats is not None:
            await plan.nats.close(why)
