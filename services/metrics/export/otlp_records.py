"""Encode spans and log lines as the JSON bodies of OTLP exports: https://opentelemetry.io/docs/specs/otlp/. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec

from shared.spans import Span, SpanKind, Value

SPANS_PATH: Final = "/v1/traces"
LOGS_PATH: Final = "/v1/logs"

_KINDS: Final = {SpanKind.INTERNAL: 1, SpanKind.SERVER: 2, SpanKind.CLIENT: 3}
_STATUS_ERROR: Final = 2
_SEVERITIES: Final = {"debug": 5, "info": 9, "warning": 13, "error": 17, "critical": 21}
#: Fields that have their own place in OTLP. Service and node come from the mesh, not from the line.
_PLACED: Final = frozenset({"ts", "level", "event", "service", "node", "trace_id"})


@dataclass(frozen=True, slots=True)
class NodeSpan:
    """A span and its node."""

    service: str
    node: str
    span: Span


@dataclass(frozen=True, slots=True)
class LogLine:
    """A log line and its node."""

    service: str
    node: str
    text: str


def encode_spans(spans: Iterable[NodeSpan], version: str) -> bytes:
    by_node: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in spans:
        by_node.setdefault((one.service, one.node), []).append(_span(one.span))
    return _encode("resourceSpans", "scopeSpans", "spans", by_node, version)


def encode_logs(lines: Iterable[LogLine], version: str) -> bytes:
    """Leave out invalid lines."""
    by_node: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        record = _record(line.text)
        if record is not None:
            by_node.setdefault((line.service, line.node), []).append(record)
    return _encode("resourceLogs", "scopeLogs", "logRecords", by_node, version)


def resource(service: str, node: str, version: str) -> dict[str, Any]:
    named = {"service.namespace": "aimesh", "service.name": service, "service.instance.id": node, "service.version": version}
    return {"attributes": _attributes(named)}


def _encode(parts: str, scopes: str, items: str, by_node: Mapping[tuple[str, str], list[dict[str, Any]]], version: str) -> bytes:
    """Return the body of one export, by the names that OTLP uses for this type of data."""
    scope = {"name": "aimesh", "version": version}
    return msgspec.json.encode(
        {
            parts: [
                {"resource": resource(service, node, version), scopes: [{"scope": scope, items: found}]}
                for (service, node), found in by_node.items()
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
        "attributes": _attributes({**span.attributes, "error.type": span.error} if span.error else span.attributes),
    }
    if span.parent_id:
        shown["parentSpanId"] = span.parent_id
    if span.error:
        shown["status"] = {"code": _STATUS_ERROR, "message": span.error}
    return shown


def _record(text: str) -> dict[str, Any] | None:
    try:
        fields = msgspec.json.decode(text, type=dict[str, Any])
        at = datetime.fromisoformat(str(fields["ts"]))
    except (msgspec.MsgspecError, KeyError, ValueError):
        return None
    level = str(fields.get("level", "info"))
    record: dict[str, Any] = {
        "timeUnixNano": str(round(at.timestamp() * 1000) * 1_000_000),
        "severityNumber": _SEVERITIES.get(level, _SEVERITIES["info"]),
        "severityText": level,
        "body": _value(str(fields.get("event", ""))),
        "attributes": _attributes({name: _plain(item) for name, item in fields.items() if name not in _PLACED and item is not None}),
    }
    if isinstance(trace_id := fields.get("trace_id"), str) and len(trace_id) == 32:
        record["traceId"] = trace_id
    return record


def _plain(item: object) -> Value:
    """Convert structures to JSON text, because log viewers search for words."""
    return item if isinstance(item, (str, int, float, bool)) else msgspec.json.encode(item).decode()


def _attributes(values: Mapping[str, Value]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(each)} for name, each in values.items()]


def _value(item: Value) -> dict[str, Any]:
    if isinstance(item, bool):
        return {"boolValue": item}
    if isinstance(item, int):
        # OTLP encodes 64-bit integers as JSON strings.
        return {"intValue": str(item)}
    return {"doubleValue": item} if isinstance(item, float) else {"stringValue": item}
