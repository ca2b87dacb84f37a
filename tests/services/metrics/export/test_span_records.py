"""The OTLP body follows the specification, and what a node can put into it is limited."""

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from services.metrics.collection.span_validation import is_sound
from services.metrics.export import otlp_endpoint
from services.metrics.export import span_records as otlp
from services.metrics.export.span_records import NodeSpan
from shared.spans import REQUEST_ID, Span, SpanKind

SPAN = Span("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "", "chat llama3", SpanKind.CLIENT, 10**18, 10**18 + 5, "", {})


def changed(**fields: Any) -> Span:
    return msgspec.structs.replace(SPAN, **fields)


def test_spans_are_grouped_by_node() -> None:
    gateway, worker = NodeSpan("gateway", "aaa", SPAN), NodeSpan("inference", "bbb", changed(span_id="1" * 16))
    body = json.loads(otlp.encode([gateway, worker, replace(gateway, span=changed(span_id="2" * 16))], "1.2.3"))
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
    [found] = json.loads(otlp.encode([NodeSpan("gateway", "aaa", span)], "1"))["resourceSpans"][0]["scopeSpans"][0]["spans"]
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


def test_valid_span_is_accepted() -> None:
    assert is_sound(SPAN, "inference")
    assert is_sound(changed(parent_id="a" * 16, attributes={"gen_ai.usage.output_tokens": 5}), "inference")
    assert is_sound(changed(attributes={REQUEST_ID: "x"}), "gateway")


@pytest.mark.parametrize(
    "fields",
    [
        {"trace_id": "short"},
        {"trace_id": "G" * 32},
        {"span_id": ""},
        {"span_id": "0" * 15 + "\n"},
        {"parent_id": "x"},
        {"name": ""},
        {"name": "n" * 10_000},
        {"error": "e" * 10_000},
        {"start_ns": -1},
        {"start_ns": 10**18 + 6},
        {"end_ns": 2**70},
        {"attributes": {str(number): 1 for number in range(100)}},
        {"attributes": {"a" * 1000: 1}},
        {"attributes": {"a": "b" * 10_000}},
        {"attributes": {"a": 2**70}},
        {"attributes": {"a": float("nan")}},
        {"attributes": {REQUEST_ID: "somebody else's"}},
    ],
    ids=str,
)
def test_invalid_span_is_refused(fields: dict[str, Any]) -> None:
    assert not is_sound(changed(**fields), "inference")


def test_headers_are_parsed_like_opentelemetry() -> None:
    assert otlp_endpoint.read_headers("") == {}
    assert otlp_endpoint.read_headers("Authorization=Bearer a=b, x-scope-orgid = 1 ,") == {
        "authorization": "Bearer a=b",
        "x-scope-orgid": "1",
    }


@pytest.mark.parametrize("text", ["secret-token", "a b=c", "=secret", "ä=secret", "a\nb=c", "a=b\nc"])
def test_invalid_headers_are_refused_without_quoting_them(text: str) -> None:
    with pytest.raises(ValueError, match="header 1") as caught:
        otlp_endpoint.read_headers(text)
    assert "secret" not in str(caught.value)
