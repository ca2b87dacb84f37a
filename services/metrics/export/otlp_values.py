"""Encode OTLP values and resources as JSON. Pure."""

from collections.abc import Mapping
from typing import Any

from shared.spans import Value


def resource(service: str, node: str, version: str) -> dict[str, Any]:
    named = {"service.namespace": "aimesh", "service.name": service, "service.instance.id": node, "service.version": version}
    return {"attributes": attributes(named)}


def attributes(values: Mapping[str, Value]) -> list[dict[str, Any]]:
    return [{"key": name, "value": value(each)} for name, each in values.items()]


def value(item: Value) -> dict[str, Any]:
    if isinstance(item, bool):
        return {"boolValue": item}
    if isinstance(item, int):
        # OTLP encodes 64-bit integers as JSON strings.
        return {"intValue": str(item)}
    return {"doubleValue": item} if isinstance(item, float) else {"stringValue": item}
