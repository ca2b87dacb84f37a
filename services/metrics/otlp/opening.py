"""The two outboxes to one endpoint."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.metrics.otlp import endpoint, log_records, spans
from services.metrics.otlp.log_records import LogLine
from services.metrics.otlp.outbox import Outbox
from services.metrics.otlp.partial import Rejection
from services.metrics.otlp.spans import Told
from shared import node as nodes
from shared.api.gateway import Check
from shared.telemetry.metrics_registry import version


@dataclass(frozen=True, slots=True)
class Outboxes:
    spans: Outbox[Told]
    logs: Outbox[LogLine]

    def checks(self) -> tuple[Check, ...]:
        """Nothing else waits for the endpoint."""
        trouble = "; ".join(dict.fromkeys(filter(None, (self.spans.complaint(), self.logs.complaint()))))
        return (Check("OTLP", ok=not trouble, detail=trouble, needed=False),)


@asynccontextmanager
async def opened(node: nodes.Node, url: str, headers: str) -> AsyncIterator[Outboxes]:
    """Their tasks are the node's."""
    async with endpoint.opened(url, endpoint.read_headers(headers)) as post:

        async def send_spans(told: Sequence[Told]) -> Rejection | None:
            return await post(spans.PATH, spans.encode(told, version()))

        async def send_logs(lines: Sequence[LogLine]) -> Rejection | None:
            return await post(log_records.PATH, log_records.encode(lines, version()))

        metrics = node.metrics
        lost, rejected = (metrics.spans_lost.labels(reason=reason).inc for reason in ("not_taken", "rejected"))
        lost_lines, rejected_lines = (metrics.log_lines_lost.labels(reason=reason).inc for reason in ("not_taken", "rejected"))
        made = Outboxes(Outbox("spans", send_spans, lost, rejected), Outbox("log lines", send_logs, lost_lines, rejected_lines))
        node.tasks.create_task(made.spans.run(), name="OTLP traces")
        node.tasks.create_task(made.logs.run(), name="OTLP logs")
        yield made
