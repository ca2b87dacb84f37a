"""Encode log lines as OTLP records. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec

from services.metrics.export.otlp_values import attributes, resource, value
from shared.spans import Value

PATH: Final = "/v1/logs"

_SEVERITIES: Final = {"debug": 5, "info": 9, "warning": 13, "error": 17, "critical": 21}
#: Fields that have their own place in OTLP. Service and node come from the mesh, not from the line.
_PLACED: Final = frozenset({"ts", "level", "event", "service", "node", "trace_id"})


@dataclass(frozen=True, slots=True)
class LogLine:
    """A log line and its node."""

    service: str
    node: str
    text: str


def encode(lines: Iterable[LogLine], version: str) -> bytes:
    """Return the body of one export, without invalid lines."""
    by_node: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        record = _record(line.text)
        if record is not None:
            by_node.setdefault((line.service, line.node), []).append(record)
    scope = {"name": "aimesh", "version": version}
    return msgspec.json.encode(
        {
            "resourceLogs": [
                {"resource": resource(service, node, version), "scopeLogs": [{"scope": scope, "logRecords": records}]}
                for (service, node), records in by_node.items()
            ]
        }
    )


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
        "body": value(str(fields.get("event", ""))),
        "attributes": attributes({name: _plain(item) for name, item in fields.items() if name not in _PLACED and item is not None}),
    }
    if isinstance(trace_id := fields.get("trace_id"), str) and len(trace_id) == 32:
        record["traceId"] = trace_id
    return record


def _plain(item: object) -> Value:
    """Convert structures to JSON text, because log viewers search for words."""
    return item if isinstance(item, (str, int, float, bool)) else msgspec.json.encode(item).decode()
