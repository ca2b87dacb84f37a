"""The two outboxes to one endpoint."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.metrics.export.otlp import log_records, otlp_endpoint, span_records
from services.metrics.export.otlp.log_records import LogLine
from services.metrics.export.otlp.otlp_outbox import OtlpOutbox
from services.metrics.export.otlp.partial_success import Rejection
from services.metrics.export.otlp.span_records import NodeSpan
from shared import node as nodes
from shared.api.gateway import Check
from shared.telemetry.metrics_registry import version


@dataclass(frozen=True, slots=True)
class OtlpOutboxes:
    spans: OtlpOutbox[NodeSpan]
    logs: OtlpOutbox[LogLine]

    def checks(self) -> tuple[Check, ...]:
        """Nothing else waits for the endpoint."""
        trouble = "; ".join(dict.fromkeys(filter(None, (self.spans.complaint(), self.logs.complaint()))))
        return (Check("OTLP", ok=not trouble, detail=trouble, needed=False),)


@asynccontextmanager
async def opened(node: nodes.Node, url: str, headers: str) -> AsyncIterator[OtlpOutboxes]:
    """Their tasks are the node's."""
    async with otlp_endpoint.opened(url, otlp_endpoint.read_headers(headers)) as post:

        async def send_spans(told: Sequence[NodeSpan]) -> Rejection | None:
            return await post(span_records.PATH, span_records.encode(told, version()))

        async def send_logs(lines: Sequence[LogLine]) -> Rejection | None:
            return await post(log_records.PATH, log_records.encode(lines, version()))

        metrics = node.metrics
        lost, rejected = (metrics.spans_lost.labels(reason=reason).inc for reason in ("not_taken", "rejected"))
        lost_lines, rejected_lines = (metrics.log_lines_lost.labels(reason=reason).inc for reason in ("not_taken", "rejected"))
        made = OtlpOutboxes(OtlpOutbox("spans", send_spans, lost, rejected), OtlpOutbox("log lines", send_logs, lost_lines, rejected_lines))
        node.tasks.create_task(made.spans.run(), name="OTLP traces")
        node.tasks.create_task(made.logs.run(), name="OTLP logs")
        yield made
