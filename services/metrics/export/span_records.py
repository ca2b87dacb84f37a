"""Encode spans as OTLP records. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from services.metrics.export.otlp_values import attributes, resource
from shared.spans import Span, SpanKind

PATH: Final = "/v1/traces"

_KINDS: Final = {SpanKind.INTERNAL: 1, SpanKind.SERVER: 2, SpanKind.CLIENT: 3}
_STATUS_ERROR: Final = 2


@dataclass(frozen=True, slots=True)
class NodeSpan:
    """A span and its node."""

    service: str
    node: str
    span: Span


def encode(spans: Iterable[NodeSpan], version: str) -> bytes:
    """Return the body of one export."""
    by_node: dict[tuple[str, str], list[Span]] = {}
    for one in spans:
        by_node.setdefault((one.service, one.node), []).append(one.span)
    scope = {"name": "aimesh", "version": version}
    return msgspec.json.encode(
        {
            "resourceSpans": [
                {"resource": resource(service, node, version), "scopeSpans": [{"scope": scope, "spans": [_span(span) for span in spans]}]}
                for (service, node), spans in by_node.items()
            ]
        }
    )


def _span(span: Span) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "name": span.name,
        "kind": _KINDS[span.kind],
        # OTLP encodes 64-bit integers as JSON strings.
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": attributes({**span.attributes, "error.type": span.error} if span.error else span.attributes),
    }
    if span.parent_id:
        shown["parentSpanId"] = span.parent_id
    if span.error:
        shown["status"] = {"code": _STATUS_ERROR, "message": span.error}
    return shown
