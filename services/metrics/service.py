"""The metrics service: its handlers, its background work, and what it opens and closes."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import ClassVar

from services.metrics import exporter, people
from services.metrics.recorded import Recorded
from services.metrics.settings import MetricsSettings
from services.metrics.survey import Survey
from services.metrics.tally import Tally
from services.metrics.traces import room
from services.metrics.traces.room import Traces
from shared import errors
from shared import node as nodes
from shared.api import metrics as api
from shared.api.gateway import Check
from shared.api.method import Nothing
from shared.frames import wire
from shared.rpc import Call, serves
from shared.rpc.telling import Telling
from shared.telemetry import metrics as telemetry_metrics
from shared.types import Role

#: How exactly a component's `since` is known when nobody asks.
LOOK_EVERY_SECONDS = 5.0
#: A message of the mesh, less what is around the text in it.
MAX_TEXT_BYTES = wire.MAX_MESSAGE_BYTES - 1024


class MetricsService:
    role: ClassVar[Role] = Role.METRICS

    def __init__(self, node: nodes.Node) -> None:
        self._node = node
        self._recorded = Recorded()
        self._tally = Tally(node.metrics)
        self._survey = Survey(node, self._recorded, self._tally)
        self._traces: Traces | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: MetricsSettings, node: nodes.Node) -> AsyncIterator["MetricsService"]:
        """Raises BadSettings if PROMETHEUS_PORT cannot be listened on."""
        service = cls(node)
        telling = Telling(node.rpc)
        node.dispatcher.gate = people.gate(node.rpc, telling)
        async with AsyncExitStack() as stack:
            opened = room.opened(node, service._survey.each, otlp_url=settings.otlp_endpoint, otlp_headers=settings.otlp_headers or "")
            service._traces = await stack.enter_async_context(opened)
            node.dispatcher.add(service._traces)
            if settings.metrics_enabled and settings.prometheus_port:
                await stack.enter_async_context(exporter.listening(settings, service.metrics_text))
            node.tasks.create_task(service._follow_events(), name="events")
            node.tasks.create_task(service._keep_looking(), name="health")
            node.tasks.create_task(telling.run(), name="audit")
            yield service

    async def checks(self) -> tuple[Check, ...]:
        """It needs the mesh, which the node checks itself, and whoever takes its traces."""
        return self._traces.checks() if self._traces is not None else ()

    def asgi(self) -> None:
        """It has no pages; /metrics on its port is `metrics_text`."""

    async def metrics_text(self) -> str:
        """The metrics of the whole mesh; the node serves them at /metrics in place of its own."""
        return await self._survey.metrics.get()

    # --- handlers ---------------------------------------------------------------------------------------------------

    @serves(api.record_metric)
    async def record_metric(self, request: api.RecordMetric, call: Call) -> Nothing:
        self._recorded.record(request.metric_name, request.value, request.labels)
        return Nothing()

    @serves(api.get_metrics)
    async def get_metrics(self, request: api.GetMetrics, call: Call) -> api.MetricsText:
        text = await self.metrics_text()
        if len(text.encode()) > MAX_TEXT_BYTES:
            raise errors.TooLarge(
                f"the metrics of this mesh are over {MAX_TEXT_BYTES} bytes, more than an RPC answer may have",
                hint="read them by HTTP, at /metrics on METRICS_SERVICE_PORT or PROMETHEUS_PORT",
            )
        return api.MetricsText(content_type=telemetry_metrics.CONTENT_TYPE, text=text)

    @serves(api.get_system_health)
    async def get_system_health(self, request: api.GetSystemHealth, call: Call) -> api.SystemHealth:
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
