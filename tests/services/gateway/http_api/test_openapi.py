"""The OpenAPI document is valid, has every route, and describes real requests and responses."""

import json
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from shared import errors
from shared.access_rules import Audience
from tests.services.gateway import fakes
from tests.services.gateway.fakes import RunningService

#: The OpenAPI Initiative's schema of a document.
META = json.loads(Path(__file__).with_name("openapi-3.1.schema.json").read_text())
MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
#: Path -> bodies that use its parameters.
ASKED: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"messages": MESSAGES},
        {"messages": MESSAGES, "n": 1, "logprobs": True, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "response_format": {"type": "json_object"}},
    ],
    "/v1/completions": [{"prompt": "hi"}, {"prompt": ["a", "b"], "logprobs": 1, "stop": ["x"]}],
    "/v1/responses": [
        {"input": "hi"},
        {
            "input": [{"type": "message", "role": "user", "content": "hi"}],
            "text": {"format": {"type": "json_object"}},
            "tool_choice": "none",
        },
    ],
    "/v1/messages": [
        {"max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]},
        {"max_tokens": 5, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "tool_choice": {"type": "none"}},
    ],
    "/api/inference": [{"prompt": "hi"}, {"messages": MESSAGES, "max_tokens": 3}],
    "/api/infer": [{"payload": "hi"}, {"payload": {"prompt": "hi"}, "model": "smollm2"}],
}


@pytest.fixture
async def document(http: httpx.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = (await http.get("/openapi.json")).json()
    return found


def fits(document: dict[str, Any], schema: dict[str, Any], value: object) -> None:
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(META).validate(document)
    for name, schema in document["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema), name
    identities = [operation["operationId"] for operations in document["paths"].values() for operation in operations.values()]
    assert len(set(identities)) == len(identities)
    assert all(identity.isalnum() for identity in identities)


def test_every_reference_resolves(document: dict[str, Any]) -> None:
    def references(node: object) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [found for value in node.values() for found in references(value)]
        return [found for value in node for found in references(value)] if isinstance(node, list) else []

    for reference in set(references(document)):
        place: Any = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_every_route_is_listed_with_its_credential_body_and_errors(document: dict[str, Any], running_service: RunningService) -> None:
    routes = [route for by_verb in running_service.app()._routes.values() for route in by_verb.values()]
    # The /rpc routes are in docs/reference/rpc.md instead.
    routes = [route for route in routes if not route.path.startswith("/rpc/")]
    documented = {(verb.upper(), path) for path, operations in document["paths"].items() for verb in operations}
    assert documented == {(route.verb, route.path) for route in routes} | {
        ("GET", path) for path in ("/healthz", "/readyz", "/dependencies", "/metrics")
    }
    for route in routes:
        operation = document["paths"][route.path][route.verb.lower()]
        assert bool(operation["security"]) is (route.access.who is Audience.PERSON)
        assert ("requestBody" in operation) is (route.body is not None)
        answers = operation["responses"]
        assert ("202" in answers) is (route.status == 202 or route.pending is not None)
        of_features = (kind for part in fakes.OF_FEATURES for prefix, kind in part.STREAMS.items() if route.path.startswith(prefix))
        stream = next(of_features, "text/event-stream")
        assert (stream in answers[str(route.status)].get("content", {})) is bool(route.events)
        headers = {parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "header"}
        if route.streams or route.runs_a_model:
            assert {"400", "401", "402", "404", "409", "413", "415", "429", "503", "504"} <= set(answers)
            assert headers == {"Idempotency-Key", *(("Last-Event-ID",) if route.streams else ())}
    assert document["paths"]["/v1/models/{model}"]["get"]["parameters"][0]["name"] == "model"


@pytest.mark.parametrize("path", ASKED)
async def test_requests_and_responses_match_the_document(
    http: httpx.AsyncClient, document: dict[str, Any], running_service: RunningService, path: str
) -> None:
    operation = document["paths"][path]["post"]
    for body in ASKED[path]:
        fits(document, operation["requestBody"]["content"]["application/json"]["schema"], body)
        answer = await http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        content = operation["responses"]["200"]["content"]
        fits(document, content["application/json"]["schema"], answer.json())
        streams = {**body, "payload": {"prompt": "hi", "stream": True}} if "payload" in body else {**body, "stream": True}
        answer = await http.post(path, json=streams)
        data = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: {")]
        assert data
        for event in data:
            fits(document, {"anyOf": content["text/event-stream"]["schema"]["x-event-data"]["oneOf"]}, json.loads(event))
    running_service.worker.fails_with = errors.Overloaded("full")
    refused = await http.post(path, json=ASKED[path][0])
    assert str(refused.status_code) in operation["responses"]
    error = document["components"]["responses"][f"Error{refused.status_code}"]
    fits(document, error["content"]["application/json"]["schema"], refused.json())


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/{model}"])
async def test_model_responses_match_the_document(http: httpx.AsyncClient, document: dict[str, Any], path: str) -> None:
    answer = await http.get(path.replace("{model}", "smollm2"))
    fits(document, document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"], answer.json())
