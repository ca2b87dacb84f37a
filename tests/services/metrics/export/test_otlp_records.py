"""OTLP bodies follow the specification; invalid log lines are dropped."""

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from services.metrics.export import otlp_records
from services.metrics.export.otlp_records import LogLine, NodeSpan
from shared.spans import Span, SpanKind

LINE = {
    "ts": "2026-11-21T10:00:00.123Z",
    "level": "warning",
    "service": "gateway",
    "event": "worker lost",
    "node": "UABC",
    "request_id": "0192f0c1-2b3a-7c4d-8e5f-001122334455",
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "worker": "UXYZ",
    "tries": 3,
    "seconds": 0.5,
    "again": True,
    "nothing": None,
    "names": ["a", "b"],
}


def test_encoded_line_follows_the_specification() -> None:
    body = json.loads(otlp_records.encode_logs([LogLine("gateway", "UABC", json.dumps(LINE))], "1"))
    [resource] = body["resourceLogs"]
    assert {each["key"]: each["value"]["stringValue"] for each in resource["resource"]["attributes"]}["service.name"] == "gateway"
    assert resource["scopeLogs"][0]["logRecords"] == [
        {
            "timeUnixNano": "1795255200123000000",
            "severityNumber": 13,
            "severityText": "warning",
            "body": {"stringValue": "worker lost"},
            "traceId": LINE["trace_id"],
            "attributes": [
                {"key": "request_id", "value": {"stringValue": LINE["request_id"]}},
                {"key": "worker", "value": {"stringValue": "UXYZ"}},
                {"key": "tries", "value": {"intValue": "3"}},
                {"key": "seconds", "value": {"doubleValue": 0.5}},
                {"key": "again", "value": {"boolValue": True}},
                {"key": "names", "value": {"stringValue": '["a","b"]'}},
            ],
        }
    ]


def test_lines_are_grouped_by_node() -> None:
    text = json.dumps(LINE)
    lines = [LogLine("gateway", "a", text), LogLine("auth", "b", text), LogLine("gateway", "a", text)]
    body = json.loads(otlp_records.encode_logs(lines, "1"))
    assert [len(part["scopeLogs"][0]["logRecords"]) for part in body["resourceLogs"]] == [2, 1]


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "{}", '{"ts": 5}', '{"ts": "yesterday"}', '{"event": "without a time"}'])
def test_invalid_lines_are_dropped(text: str) -> None:
    assert json.loads(otlp_records.encode_logs([LogLine("auth", "a", text)], "1")) == {"resourceLogs": []}


SPAN = Span("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "", "chat llama3", SpanKind.CLIENT, 10**18, 10**18 + 5, "", {})


def changed(**fields: Any) -> Span:
    return msgspec.structs.replace(SPAN, **fields)


def test_spans_are_grouped_by_node() -> None:
    gateway, worker = NodeSpan("gateway", "aaa", SPAN), NodeSpan("inference", "bbb", changed(span_id="1" * 16))
    body = json.loads(otlp_records.encode_spans([gateway, worker, replace(gateway, span=changed(span_id="2" * 16))], "1.2.3"))
    resources = {
        tuple((each["key"], each["value"]["stringValue"]) for each in part["resource"]["attributes"]): part["scopeSpans"][0]["spans"]
        for part in body["resourceSpans"]
    }
    assert {dict(key)["service.name"]: len(spans) for key, spans in resources.items()} == {"gateway": 2, "inference": 1}
    assert all(dict(key)["service.version"] == "1.2.3" for key in resources)
    assert body["resourceSpans"][0]["scopeSpans"][0]["scope"] == {"name": "aimesh", "version": "1.2.3"}


def test_encoded_span_follows_the_specification() -> None:
    span = changed(
        parent_id="f" * 16,
        error="overloaded",
        attributes={"gen_ai.request.model": "llama3", "tokens": 2**40, "share": 0.5, "cached": True},
    )
    [found] = json.loads(otlp_records.encode_spans([NodeSpan("gateway", "aaa", span)], "1"))["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert found == {
        "traceId": span.trace_id,
        "spanId": span.span_id,
        "parentSpanId": "f" * 16,
        "name": "chat llama3",
        "kind": 3,
        "startTimeUnixNano": "1000000000000000000",
        "endTimeUnixNano": "1000000000000000005",
        "status": {"code": 2, "message": "overloaded"},
        "attributes": [
            {"key": "gen_ai.request.model", "value": {"stringValue": "llama3"}},
            {"key": "tokens", "value": {"intValue": "1099511627776"}},
            {"key": "share", "value": {"doubleValue": 0.5}},
            {"key": "cached", "value": {"boolValue": True}},
            {"key": "error.type", "value": {"stringValue": "overloaded"}},
        ],
    }
