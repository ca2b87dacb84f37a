"""Collect metrics and health from every live node. Deadlines are short, so that a silent node costs only its own part."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence, Set
from dataclasses import replace
from datetime import UTC, datetime
from typing import Generic, TypeVar

import msgspec

from services.metrics.collection import health, health_signals
from services.metrics.collection.event_counters import EventCounters
from services.metrics.collection.recorded_metrics import RecordedMetricSet
from services.metrics.collection.worker_attendance import WorkerAttendance
from services.metrics.export import openmetrics, prometheus_merge
from services.metrics.history import samples
from shared import errors
from shared import node as nodes
from shared.api import node as node_api
from shared.api.gateway import Check
from shared.api.metrics import ComponentHealth, MetricsTextFormat, NodeView, SystemHealth
from shared.protocol import directory
from shared.telemetry import instruments
from shared.telemetry.instrument import node_label
from shared.types import SERVICE_NAMES, NodeId, Role

NODE_DEADLINE_SECONDS = 2.0
#: Concurrent scrapers share one collection per second.
KEPT_SECONDS = 1.0
#: Limits the burst of concurrent calls in a large mesh.
MAX_CALLS_AT_ONCE = 64

#: The types of our own metrics take precedence over what nodes declare.
_KNOWN = {one.name: str(one.kind) for one in instruments.ALL}


class MeshMetrics:
    """One collection. Each format is rendered on first use."""

    def __init__(self, merged: prometheus_merge.Merged) -> None:
        self._merged = merged
        self._texts: dict[MetricsTextFormat, str] = {}

    def text(self, form: MetricsTextFormat) -> str:
        if form not in self._texts:
            match form:
                case MetricsTextFormat.PROMETHEUS:
                    self._texts[form] = prometheus_merge.render(self._merged)
                case MetricsTextFormat.OPENMETRICS:
                    self._texts[form] = openmetrics.render(self._merged, _KNOWN)
        return self._texts[form]

    def text_of(self, families: Set[str]) -> str:
        """Render only these families, which is cheap."""
        return prometheus_merge.render(
            prometheus_merge.Merged(tuple(family for family in self._merged.families if family.name in families), 0)
        )


T = TypeVar("T")


class CachedResult(Generic[T]):
    """Caches the result of ``make`` for KEPT_SECONDS. Concurrent callers share one call."""

    def __init__(self, make: Callable[[], Awaitable[T]], clock: Callable[[], float] = time.monotonic) -> None:
        self._make = make
        self._clock = clock
        self._lock = asyncio.Lock()
        self._made: tuple[float, T] | None = None

    async def get(self) -> T:
        async with self._lock:
            if self._made is None or self._clock() - self._made[0] >= KEPT_SECONDS:
                result = await self._make()
                self._made = (self._clock(), result)
            return self._made[1]


class MeshSurvey:
    """The metrics and the health of the mesh, as its nodes report them."""

    def __init__(self, node: nodes.Node, recorded: RecordedMetricSet, event_counters: EventCounters, attendance: WorkerAttendance) -> None:
        self._node = node
        self._attendance = attendance
        self._recorded = recorded
        self._event_counters = event_counters
        self._call_limit = asyncio.Semaphore(MAX_CALLS_AT_ONCE)
        self._before: dict[str, ComponentHealth] = {}
        self._merger = prometheus_merge.Merger(_KNOWN)
        self._signals = health_signals.HealthSignalReader()
        #: The last collection; None before the first.
        self.latest: MeshMetrics | None = None
        self.metrics = CachedResult(self._collect_metrics)
        self.health = CachedResult(self._decide_health)

    async def _collect_metrics(self) -> MeshMetrics:
        others = await self.each(self._read_metrics)
        self._show_own()
        own = _source(self._node.read_own_metrics(), Role.METRICS, self._node.id, trusted=True)
        answers = [source for source in others if source is not None]
        merged = self._merger.merge([own, *answers, *self._recorded.sources()])
        self._node.metrics.scrape_dropped_series.set(merged.dropped)
        self.latest = found = MeshMetrics(merged)
        self._signals.take(samples.read_samples(found.text_of(health_signals.FAMILIES), health_signals.SERIES), datetime.now(UTC))
        return found

    async def _read_metrics(self, entry: directory.DirectoryEntry) -> prometheus_merge.MetricSource | None:
        try:
            async with self._call_limit:
                answer = await self._node.rpc.call(
                    node_api.read_metrics, node_api.ReadMetrics(), to=entry.node, deadline_seconds=NODE_DEADLINE_SECONDS
                )
        except errors.AimeshError as error:
            self._node.metrics.scrape_failures.labels(service=SERVICE_NAMES[entry.role], reason=errors.code_of(error)).inc()
            return None
        return _source(answer, entry.role, entry.node)

    def _show_own(self) -> None:
        metrics = self._node.metrics
        self._event_counters.show_active_users(time.monotonic())
        metrics.custom_series.set(len(self._recorded))
        metrics.node_up.clear()
        metrics.node_up.labels(**_labels(Role.METRICS, self._node.id)).set(1)
        for entry in (*self._known(), *self._node.directory.entries(Role.METRICS)):
            # Leave out nodes that were meant to go or were never admitted.
            if entry.alive or self._fact(entry).was_lost:
                metrics.node_up.labels(**_labels(entry.role, entry.node)).set(entry.alive)

    async def _decide_health(self) -> SystemHealth:
        living = await self.each(self._read_health)
        gone = [self._fact(entry) for entry in self._known() if not entry.alive]
        now = datetime.now(UTC)
        signals = self._signals.signals(now)
        doubts = health.doubts(signals.catches, self._recorded.refusals.complaints(now))
        wrong_clocks = self._wrong_clocks()
        facts = [
            replace(fact, doubts=doubts.get(fact.label, ()), wrong_clock=wrong_clocks.get(fact.label, ""))
            for fact in (await self._own_fact(), *living, *gone)
        ]
        self._show_servers(health.servers_up(facts))
        decided = health.decide(facts, now, self._node.started_at, self._before, signals)
        self._before = {health.key(component): component for component in decided.components}
        return msgspec.structs.replace(decided, nodes=self._view())

    def _wrong_clocks(self) -> Mapping[str, str]:
        """By node label."""
        found = directory.find_wrong_clocks(self._node.directory.entries(), self._node.id)
        return {node_label(node): why for node, why in found.items()}

    def _show_servers(self, up: Mapping[str, bool]) -> None:
        self._node.metrics.server_up.clear()
        for server, reached in up.items():
            self._node.metrics.server_up.labels(server=server).set(reached)

    def _view(self) -> tuple[NodeView, ...]:
        own = NodeView(self._node.id, SERVICE_NAMES[Role.METRICS], "self", None, alive=True, since=self._node.started_at, why_not="")
        return (own, *(self._view_of(entry) for entry in self._known()))

    def _view_of(self, entry: directory.DirectoryEntry) -> NodeView:
        seconds = self._node.node_transports.round_trip_seconds(entry.node)
        milliseconds = None if seconds is None else round(seconds * 1000, 3)
        return NodeView(entry.node, SERVICE_NAMES[entry.role], entry.path, milliseconds, entry.alive, entry.since, entry.why_not)

    async def _read_health(self, entry: directory.DirectoryEntry) -> health.NodeFact:
        try:
            async with self._call_limit:
                answer = await self._node.rpc.call(
                    node_api.read_health, node_api.ReadHealth(), to=entry.node, deadline_seconds=NODE_DEADLINE_SECONDS
                )
        except errors.AimeshError as error:
            return self._fact(entry, no_answer=error.message)
        return self._fact(entry, checks=answer.checks)

    async def _own_fact(self) -> health.NodeFact:
        own = await self._node.health()
        return health.NodeFact(
            role=Role.METRICS,
            label=node_label(self._node.id),
            alive=True,
            since=self._node.started_at,
            checks=own.checks,
            path="self",
        )

    def _fact(self, entry: directory.DirectoryEntry, *, checks: tuple[Check, ...] = (), no_answer: str = "") -> health.NodeFact:
        return health.NodeFact(
            role=entry.role,
            label=node_label(entry.node),
            alive=entry.alive,
            since=entry.since,
            why_not=entry.why_not,
            checks=checks,
            no_answer=no_answer,
            path=entry.path,
            left_cleanly=entry.announcement.draining or self._node.node_transports.is_revoked(entry.node),
        )

    def replicas(self) -> list[NodeId]:
        """Return the live replicas that may lead, sorted by id: those with a database, if one has it."""
        others = [one.announcement for one in self._node.directory.entries(Role.METRICS) if one.alive and not one.announcement.leaving]
        settings = {self._node.id: self._node.shared_settings, **{one.node: one.settings for one in others}}
        return sorted(node for node in settings if "DATABASE_URL" in settings[node]) or sorted(settings)

    def _known(self) -> list[directory.DirectoryEntry]:
        """Return the nodes to ask, and the missing workers. Metrics services may not call each other."""
        known = {one.node: one for one in self._node.directory.entries() if one.role in SERVICE_NAMES and one.role is not Role.METRICS}
        self._attendance.look(known.values(), self._node.node_transports.is_revoked, datetime.now(UTC))
        # Workers that went before this process started, which the directory does not know, or only by key.
        unseen = {node: entry for node, entry in self._attendance.missed().items() if node not in known or not known[node].path}
        return [*{**known, **unseen}.values()]

    async def each(self, call: Callable[[directory.DirectoryEntry], Coroutine[object, object, T]]) -> Sequence[T]:
        """Ask all live nodes concurrently. ``call`` must not raise."""
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(call(entry)) for entry in self._known() if entry.alive]
        return [task.result() for task in calls]


def _source(read: node_api.NodeMetrics, role: Role, node: NodeId, *, trusted: bool = False) -> prometheus_merge.MetricSource:
    return prometheus_merge.MetricSource(read.text, _labels(role, node), trusted=trusted, exemplars=read.exemplars)


def _labels(role: Role, node: NodeId) -> dict[str, str]:
    return {"service": SERVICE_NAMES[role], "node": node_label(node)}
