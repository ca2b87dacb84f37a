"""The metrics service: its handlers, its background work, and what it opens and closes."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import ClassVar

from services.metrics import person_access, scrape_endpoint
from services.metrics.alerting.alerting_module import AlertingModule
from services.metrics.alerting.worker_attendance import WorkerAttendance
from services.metrics.collection.event_counters import EventCounters
from services.metrics.collection.log_collector import LogCollector
from services.metrics.collection.mesh_survey import MeshSurvey
from services.metrics.collection.recorded_metrics import RecordedMetricSet
from services.metrics.collection.recording_rpc import RecordingRpc
from services.metrics.export.otlp import otlp_outboxes
from services.metrics.export.otlp.otlp_outboxes import OtlpOutboxes
from services.metrics.history.history_module import HistoryModule
from services.metrics.settings import MetricsSettings
from services.metrics.traces.traces_module import TracesModule
from shared import errors
from shared import node as nodes
from shared.api import metrics as api
from shared.api.gateway import Check
from shared.api.metrics import MetricsTextFormat
from shared.frames import wire
from shared.rpc import RpcCall, serves
from shared.rpc.audit_reporting import AuditReporting
from shared.telemetry import text_formats
from shared.types import Role

#: How exactly a component's `since` is known when nobody asks.
LOOK_EVERY_SECONDS = 5.0
#: A message of the mesh, less what is around the text in it.
MAX_TEXT_BYTES = wire.MAX_MESSAGE_BYTES - 1024


class MetricsService:
    role: ClassVar[Role] = Role.METRICS

    def __init__(self, node: nodes.Node, settings: MetricsSettings) -> None:
        self._node = node
        recorded = RecordedMetricSet(settings.metrics_namespaces)
        self._intake = RecordingRpc(recorded)
        self._tally = EventCounters(node.metrics)
        # Shown as 0 from the start.
        for _ in (node.metrics.spans_lost, node.metrics.log_lines_lost):
            pass
        attendance = WorkerAttendance()
        self._survey = MeshSurvey(node, recorded, self._tally, attendance)
        self._outboxes: OtlpOutboxes | None = None
        self._history = HistoryModule(settings, self.metrics_text)
        self._alarms = AlertingModule(settings, node.id, self.metrics_text, attendance, replicas=self._survey.replicas)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: MetricsSettings, node: nodes.Node) -> AsyncIterator["MetricsService"]:
        """Raises BadSettings if PROMETHEUS_PORT cannot be listened on."""
        service = cls(node, settings)
        telling = AuditReporting(node.rpc)
        node.dispatcher.gate = person_access.gate(node.rpc, telling)
        async with AsyncExitStack() as stack:
            if settings.otlp_endpoint:
                opened = otlp_outboxes.opened(node, settings.otlp_endpoint, settings.otlp_headers or "")
                service._outboxes = await stack.enter_async_context(opened)
            service._start()
            if settings.metrics_enabled and settings.prometheus_port:
                await stack.enter_async_context(scrape_endpoint.listening(settings, service.metrics_text))
            node.tasks.create_task(telling.run(), name="audit")
            yield service

    def _start(self) -> None:
        """What it does by itself; the tasks are the node's."""
        node, boxes, traces = self._node, self._outboxes, TracesModule()
        node.dispatcher.add(self._intake)
        node.dispatcher.add(traces)
        node.dispatcher.add(self._history)
        node.tasks.create_task(self._history.run(), name="history")
        node.dispatcher.add(self._alarms.watch)
        node.tasks.create_task(self._alarms.run(), name="alerts")
        node.tasks.create_task(self._follow_events(), name="events")
        node.tasks.create_task(self._keep_looking(), name="health")
        node.tasks.create_task(traces.collect(node, self._survey.each, None if boxes is None else boxes.spans), name="traces")
        if boxes is not None:
            node.tasks.create_task(LogCollector(node, self._survey.each, boxes.logs).run(), name="logs")

    async def checks(self) -> tuple[Check, ...]:
        """It needs the mesh, which the node checks itself; and can do without PostgreSQL and whoever takes its traces, logs and alerts."""
        exported = self._outboxes.checks() if self._outboxes is not None else ()
        return (*await self._history.checks(), self._intake.check(), *exported, *await self._alarms.checks())

    def asgi(self) -> None:
        """It has no pages; /metrics on its port is `metrics_text`."""

    async def metrics_text(self, form: MetricsTextFormat = MetricsTextFormat.PROMETHEUS) -> str:
        """The metrics of the whole mesh; the node serves them at /metrics in place of its own."""
        return (await self._survey.metrics.get()).text(form)

    # --- handlers ---------------------------------------------------------------------------------------------------

    @serves(api.get_metrics)
    async def get_metrics(self, request: api.GetMetrics, call: RpcCall) -> api.MetricsText:
        text = await self.metrics_text(request.format)
        if len(text.encode()) > MAX_TEXT_BYTES:
            raise errors.TooLarge(
                f"the metrics of this mesh are over {MAX_TEXT_BYTES} bytes, more than an RPC answer may have",
                hint="read them by HTTP, at /metrics on METRICS_SERVICE_PORT or PROMETHEUS_PORT",
            )
        return api.MetricsText(content_type=text_formats.CONTENT_TYPES[request.format], text=text)

    @serves(api.get_system_health)
    async def get_system_health(self, request: api.GetSystemHealth, call: RpcCall) -> api.SystemHealth:
        return await self._survey.health.get()

    # --- in the background --------------------------------------------------------------------------------------------

    async def _follow_events(self) -> None:
        async for event in self._node.events():
            self._tally.count(event, time.monotonic())

    async def _keep_looking(self) -> None:
        """So that `since` is right although nobody asked."""
        while True:
            await asyncio.sleep(LOOK_EVERY_SECONDS)
            await self._survey.health.get()
