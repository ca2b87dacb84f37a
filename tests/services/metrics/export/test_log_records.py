"""Log lines as OTLP records; invalid lines are dropped."""

import json

import pytest

from services.metrics.export import log_records
from services.metrics.export.log_records import LogLine

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
    body = json.loads(log_records.encode([LogLine("gateway", "UABC", json.dumps(LINE))], "1"))
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
    body = json.loads(log_records.encode(lines, "1"))
    assert [len(part["scopeLogs"][0]["logRecords"]) for part in body["resourceLogs"]] == [2, 1]


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "{}", '{"ts": 5}', '{"ts": "yesterday"}', '{"event": "without a time"}'])
def test_invalid_lines_are_dropped(text: str) -> None:
    assert json.loads(log_records.encode([LogLine("auth", "a", text)], "1")) == {"resourceLogs": []}
