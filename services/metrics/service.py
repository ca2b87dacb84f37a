"""Run the metrics service: its handlers and background tasks."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Set
from contextlib import AsyncExitStack, asynccontextmanager
from typing import ClassVar

from services.metrics.alerting.alerting_module import AlertingModule
from services.metrics.collection.attendance_duty import AttendanceDuty
from services.metrics.collection.event_counters import EventCounters
from services.metrics.collection.log_and_trace_collectors import LogCollector, TraceCollector
from services.metrics.collection.mesh_survey import MeshSurvey
from services.metrics.collection.recorded_metrics import RecordedMetricSet
from services.metrics.collection.recording_rpc import RecordingRpc
from services.metrics.collection.worker_attendance import WorkerAttendance
from services.metrics.export import otlp_outbox
from services.metrics.export.otlp_outbox import OtlpOutboxes
from services.metrics.features import Features, Site
from services.metrics.history.history_module import HistoryModule
from services.metrics.leader import Leader
from services.metrics.settings import MetricsSettings
from shared import errors
from shared import node as nodes
from shared.api import auth
from shared.api import metrics as api
from shared.api.auth import Principal
from shared.api.events import Event
from shared.api.gateway import Check
from shared.api.metrics import MetricsTextFormat
from shared.background.deferred_memory import DeferredMemory
from shared.background.item_kinds import ItemKind
from shared.background.items import BackgroundItems
from shared.background.tasks import keep
from shared.node import http_server
from shared.node.lifecycle import background
from shared.protocol import wire
from shared.rpc import RpcCall, RpcClient, serves
from shared.rpc.audit_reporting import AuditReporting
from shared.rpc.authorization import Authorizer, CallerIdentity, Identify
from shared.telemetry import text_formats
from shared.telemetry.database_metrics import DatabaseMetrics
from shared.types import Credential, Role

IDENTIFY_SECONDS = 2.0
#: How often health is checked without requests, which limits the precision of a component's `since`.
LOOK_EVERY_SECONDS = 5.0
#: The maximum message size, less the envelope.
MAX_TEXT_BYTES = wire.MAX_MESSAGE_BYTES - 1024

MetricsTextReader = Callable[[MetricsTextFormat], Awaitable[str]]


class MetricsService:
    role: ClassVar[Role] = Role.METRICS

    def __init__(self, node: nodes.Node, settings: MetricsSettings) -> None:
        self._node = node
        self._items = BackgroundItems(DeferredMemory(), node.metrics)
        recorded = RecordedMetricSet(settings.metrics_namespaces)
        self._recording = RecordingRpc(recorded)
        self._event_counters = EventCounters(node.metrics)
        # Register these counters, so that they are exported as 0 from the start.
        for _ in (node.metrics.spans_lost, node.metrics.log_lines_lost):
            pass
        attendance = WorkerAttendance()
        self._survey = MeshSurvey(node, recorded, self._event_counters, attendance)
        self._outboxes: OtlpOutboxes | None = None
        self._history = HistoryModule(settings, self.metrics_text, DatabaseMetrics(node.metrics))
        self._audit = AuditReporting(node.rpc)
        site = Site(
            settings=settings,
            node=node,
            latest=lambda: self._survey.latest,
            identify=_identify_by(node.rpc),
            audit_reporting=self._audit,
        )
        self._features = Features(site)
        has_database = settings.database_url is not None
        self._alerting = AlertingModule(self._features.channels, self._families, has_database=has_database)
        own = [self._alerting] if self._features.alerts is None else []
        self._leader = Leader(
            node.id,
            self._survey.replicas,
            [AttendanceDuty(attendance), *own, *self._features.leader_duties],
            items=self._items,
            url=settings.database_url,
            migrate=settings.migrate == "on",
        )
        self._alerting.on_change = self._leader.changed.set

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: MetricsSettings, node: nodes.Node) -> AsyncIterator["MetricsService"]:
        """Raises BadSettings if PROMETHEUS_PORT is taken, a feature's settings are bad, or the schema is too old with MIGRATE=off."""
        service = cls(node, settings)
        await service._history.check_schema(settings.database_url)
        node.dispatcher.gate = _person_gate(node.rpc, service._audit)
        async with AsyncExitStack() as stack:
            if settings.otlp_endpoint:
                opened = otlp_outbox.opened(node, settings.otlp_endpoint, settings.otlp_headers or "")
                service._outboxes = await stack.enter_async_context(opened)
            service._start()
            if settings.metrics_enabled and settings.prometheus_port:
                await stack.enter_async_context(_scraping(settings, service.metrics_text))
            node.tasks.create_task(keep("audit", service._audit.run))
            yield service

    def _start(self) -> None:
        node, boxes = self._node, self._outboxes
        traces = TraceCollector(node, self._survey.each, None if boxes is None else boxes.spans)
        node.dispatcher.add(self._recording)
        node.dispatcher.add(traces)
        node.dispatcher.add(self._history)
        node.tasks.create_task(keep("history", self._history.run))
        node.tasks.create_task(keep("leader", self._leader.run))
        node.dispatcher.add(self._features.alerts or self._alerting)
        node.tasks.create_task(keep("alerts", self._alerting.run))
        for part in self._features.served:
            node.dispatcher.add(part)
        for task in self._features.tasks():
            node.tasks.create_task(task)
        node.tasks.create_task(keep("events", self._follow_events))
        node.tasks.create_task(keep("health", self._keep_looking))
        node.tasks.create_task(keep("traces", traces.run))
        if boxes is not None:
            node.tasks.create_task(keep("logs", LogCollector(node, self._survey.each, boxes.logs).run))

    async def checks(self) -> tuple[Check, ...]:
        exported = self._outboxes.checks() if self._outboxes is not None else ()
        leading = (*self._leader.checks(), *(self._features.alerts or self._alerting).checks(), *self._features.checks())
        return (*await self._history.checks(), self._recording.check(), *exported, *leading)

    def asgi(self) -> http_server.App | None:
        """Return what features serve. The node itself serves /metrics."""
        return self._features.asgi()

    async def metrics_text(self, form: MetricsTextFormat = MetricsTextFormat.PROMETHEUS) -> str:
        """Return the metrics of the whole mesh, which this node serves at /metrics."""
        return (await self._survey.metrics.get()).text(form)

    async def _families(self, names: Set[str]) -> str:
        """Return the text of these families for the whole mesh."""
        return (await self._survey.metrics.get()).text_of(names)

    @serves(api.get_metrics)
    async def get_metrics(self, request: api.GetMetrics, call: RpcCall) -> api.MetricsText:
        text = await self.metrics_text(request.format)
        if len(text.encode()) > MAX_TEXT_BYTES:
            raise errors.TooLarge(
                f"the metrics of this mesh exceed {MAX_TEXT_BYTES} bytes, the limit of an RPC response",
                hint="read them over HTTP, at /metrics on METRICS_SERVICE_PORT or PROMETHEUS_PORT",
            )
        return api.MetricsText(content_type=text_formats.CONTENT_TYPES[request.format], text=text)

    @serves(api.get_system_health)
    async def get_system_health(self, request: api.GetSystemHealth, call: RpcCall) -> api.SystemHealth:
        return await self._survey.health.get()

    async def _follow_events(self) -> None:
        async for event in self._node.events():
            await self._items.attempt(ItemKind.EVENT, type(event).__name__, self._count(event))

    async def _count(self, event: Event) -> None:
        self._event_counters.count(event, time.monotonic())

    async def _keep_looking(self) -> None:
        """Keep `since` accurate without requests."""
        while True:
            await asyncio.sleep(LOOK_EVERY_SECONDS)
            await self._survey.health.get()


def _person_gate(rpc: RpcClient, audit: AuditReporting) -> Authorizer:
    """Return the gate for methods that people call. The audit log records refusals."""

    def refused(method: str, _visitor: CallerIdentity, principal: Principal | None, error: errors.AimeshError) -> None:
        audit.report_refusal(method, principal, "", error)

    return Authorizer(_identify_by(rpc), refused)


def _identify_by(rpc: RpcClient) -> Identify:
    """Return what asks auth who a caller is."""

    async def identify(credential: Credential | None) -> Principal:
        if credential is None:
            raise errors.NotAuthenticated("this call needs a credential", hint="send an API key or an access token with it")
        return await rpc.call(auth.identify, auth.Identify(credential), deadline_seconds=IDENTIFY_SECONDS)

    return identify


@asynccontextmanager
async def _scraping(settings: MetricsSettings, text: MetricsTextReader) -> AsyncIterator[None]:
    """Serve `GET /metrics` on PROMETHEUS_PORT until the block ends, over TLS if the service does. Raises BadSettings if it is taken."""
    bound = http_server.listen(settings.host, settings.prometheus_port, "PROMETHEUS_PORT")
    try:
        async with background() as tasks:
            tasks.create_task(http_server.HttpServer(_scrape_app(text), bound, settings).run(), name="PROMETHEUS_PORT")
            yield
    finally:
        bound.close()


def _scrape_app(text: MetricsTextReader) -> http_server.App:
    async def answer(scope: http_server.Scope, receive: http_server.Receive, send: http_server.Send) -> None:
        if scope["type"] != "http":
            return
        content_type = "text/plain; charset=utf-8"
        if scope["path"] != "/metrics":
            status, body = 404, "the metrics are at /metrics\n"
        elif scope["method"] not in {"GET", "HEAD"}:
            status, body = 405, "/metrics answers GET\n"
        else:
            form = text_formats.choose(scope["headers"])
            status, body, content_type = 200, await text(form), text_formats.CONTENT_TYPES[form]
        await http_server.respond(send, status, body.encode(), content_type, {b"allow": b"GET, HEAD"} if status == 405 else None)

    return answer
