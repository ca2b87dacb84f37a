"""POST /rpc/{service}.{method}: which methods it serves, and how requests, answers, streams and errors look."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest

from services.gateway.http_api import rpc_routes
from services.gateway.http_api.http_app import SIGN_IN_BODY_BYTES
from services.gateway.http_api.http_call import MAX_BODY_BYTES
from shared import access_table, errors
from shared.access_rules import Audience
from shared.api import audit, auth, gateway
from shared.api.gateway import InferenceChunk, InferenceResult
from shared.api.generation import Usage
from shared.api.method import Nothing
from shared.rpc import Handler, RpcCall, StreamCall
from shared.types import FinishReason, ModelName, RequestId, Role
from tests.cases import case
from tests.integration import access_requests
from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY, TOKEN, USER, RunningService, node_id
from tests.services.gateway.http_answers import BEARER, problem

REQUEST_ID = RequestId(UUID(int=7))
RESULT = InferenceResult(REQUEST_ID, ModelName("echo"), FinishReason.STOP, Usage(1, 3), 5, 1)
ACT = audit.AuditedAct(datetime(2026, 1, 1, tzinfo=UTC), "key.create", None, None)
INFER = "/rpc/gateway.processInferenceRequest"


@pytest.fixture
async def http(running_service: RunningService) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(running_service.app(), client=("192.0.2.7", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=BEARER) as client:
        yield client


def sent_events(answer: httpx.Response) -> list[dict[str, str]]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [dict(line.split(": ", 1) for line in event.split("\n")) for event in answer.text.split("\n\n") if event]


# --- methods --------------------------------------------------------------------------------------------------------------


def test_every_method_for_clients_is_served_but_those_about_the_calling_node() -> None:
    for_clients = {name for name, method in access_requests.methods().items() if Role.CLIENT in method.callers}
    about_nodes = {"auth.renewCertificate", "auth.leaveNode", "node.readRevocations"}
    assert {method.name for method in rpc_routes.methods()} == for_clients - about_nodes


def test_the_gateway_may_forward_every_method_of_another_service() -> None:
    others = [method for method in rpc_routes.methods() if method.served_by is not Role.GATEWAY]
    assert [method.name for method in others if Role.GATEWAY not in method.callers] == []


async def test_without_a_credential_nothing_is_read_or_forwarded(running_service: RunningService) -> None:
    transport = httpx.ASGITransport(running_service.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        for method in rpc_routes.methods():
            rule = access_table.METHODS[method.name]
            if rule.who is Audience.PERSON and Role.CLIENT not in rule.unless:
                with case(method.name):
                    problem(await client.post(f"/rpc/{method.name}", content=b"{"), 401, "not_authenticated")
        assert not running_service.rpc.called


async def test_unknown_and_node_only_methods(http: httpx.AsyncClient) -> None:
    for name in ("auth.nothing", "nothing", "auth.getAccount/", "Auth.getAccount", "auth.getAccount.x", "%61uth.getAccounts"):
        with case(name):
            problem(await http.post(f"/rpc/{name}", json={}), 404, "unknown_method")
    for name in ("inference.embed", "auth.recordActs", "auth.renewCertificate", "node.readRevocations", "auth.identify"):
        with case(name):
            problem(await http.post(f"/rpc/{name}", json={}), 403, "wrong_role")
    problem(await http.get("/rpc/auth.getAccount"), 405, "method_not_allowed")


# --- requests -------------------------------------------------------------------------------------------------------------


async def test_a_call_is_forwarded_with_the_callers_credential(http: httpx.AsyncClient, running_service: RunningService) -> None:
    received: list[auth.ListApiKeys] = []

    async def answer(request: auth.ListApiKeys) -> auth.ApiKeys:
        received.append(request)
        return auth.ApiKeys(())

    running_service.rpc.answers["auth.listApiKeys"] = answer
    done = await http.post(f"/rpc/auth.listApiKeys?to={node_id(5)}&deadline_ms=500", json={"userId": str(USER)})
    assert (done.status_code, done.json()) == (200, {"keys": []})
    assert received == [auth.ListApiKeys(USER)]
    assert (running_service.rpc.credentials[-1], running_service.rpc.asked_nodes[-1]) == (KEY, node_id(5))
    by_header = await http.post("/rpc/auth.listApiKeys", json={}, headers={"authorization": "", "x-api-key": KEY})
    assert by_header.status_code == 401  # two headers: the first one counts everywhere


async def test_the_gateways_own_methods_run_here(http: httpx.AsyncClient, running_service: RunningService) -> None:
    calls: list[RpcCall] = []

    async def answer(_request: gateway.ListNodes, call: RpcCall) -> gateway.NodeRows:
        calls.append(call)
        return gateway.NodeRows(())

    running_service.own["gateway.listNodes"] = Handler(gateway.list_nodes, answer)
    assert (await http.post("/rpc/gateway.listNodes", content=b"", headers={"content-type": "application/json"})).json() == {"nodes": []}
    (call,) = calls
    assert (call.principal.username, call.caller_role, call.credential) == ("ada", Role.CLIENT, KEY)
    assert 9 < call.remaining_seconds() <= 10
    wrong = problem(await http.post(f"/rpc/gateway.listNodes?to={node_id(5)}", json={}), 400, "bad_request")
    assert (wrong["param"], wrong["message"]) == ("to", "to is not this gateway; omit it for methods of the gateway")
    assert len(calls) == 1


async def test_an_own_method_is_answered_after_the_recovery_log_or_says_so(
    http: httpx.AsyncClient, running_service: RunningService
) -> None:
    async def answer(_request: gateway.CancelInference, _call: RpcCall) -> Nothing:
        return Nothing()

    async def finish(reply: Nothing) -> Nothing:
        return msgspec.structs.replace(reply, logged=False)

    running_service.own["gateway.cancelInference"] = Handler(gateway.cancel_inference, answer)
    running_service.finish = finish
    answered = await http.post("/rpc/gateway.cancelInference", json={"idempotencyKey": "k" * 8})
    assert (answered.status_code, answered.json()) == (200, {"logged": False})


async def test_the_table_decides_who_may_call(http: httpx.AsyncClient, running_service: RunningService) -> None:
    refused = problem(await http.post("/rpc/auth.listUsers", json={}), 403, "not_allowed")
    assert refused["message"] == "ada is no administrator"
    # Metrics would accept a call from the gateway without a user.
    problem(await http.post("/rpc/metrics.getSystemHealth", json={}), 403, "not_allowed")
    assert set(running_service.rpc.called) == {"auth.validateApiKey"}


@pytest.mark.parametrize(
    ("method", "body", "param", "message"),
    [
        ("auth.generateApiKey", {"name": 3}, "name", "is invalid: expected `str`, got `int`"),
        ("auth.generateApiKey", {"limits": {"concurrency": "x"}}, "limits.concurrency", "must be a whole number from 1 to 2147483647"),
        ("auth.generateApiKey", {"user_id": str(USER)}, "user_id", "is not a supported field"),
        ("auth.generateApiKey", {"limits": {"perHour": 1}}, "limits.perHour", "is not a supported field"),
        ("auth.changeProfile", {"username": "x", "mail": "y"}, "mail", "is not a supported field"),
        ("gateway.setPrice", {}, "price", "is missing"),
    ],
)  # fmt: skip
async def test_a_wrong_field_is_named(running_service: RunningService, method: str, body: Any, param: str, message: str) -> None:
    app = running_service.app()
    running_service.rpc.answers["auth.identify"] = _administrator
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://g", headers=_token()) as http:
        found = problem(await http.post(f"/rpc/{method}", json=body), 400, "bad_request")
    assert (found["param"], found["message"]) == (param, f"{param} {message}")


def _token() -> dict[str, str]:
    return {"authorization": f"Bearer {TOKEN}"}


async def _administrator(_request: auth.Identify) -> auth.Principal:
    return auth.Principal(USER, "root", fakes.UserRole.ADMIN, fakes.Tier.PRO)


async def test_bodies_over_the_limit_and_bad_queries(http: httpx.AsyncClient) -> None:
    large = {"name": "x" * MAX_BODY_BYTES}
    problem(await http.post("/rpc/auth.generateApiKey", json=large), 413, "too_large")
    for query, param in (("to=1&to=2", "to"), ("deadline_ms=0", "deadline_ms"), ("deadline_ms=x", "deadline_ms"), ("x=1", "x")):
        with case(query):
            assert problem(await http.post(f"/rpc/auth.listApiKeys?{query}", json={}), 400, "bad_request")["param"] == param
    problem(await http.post("/rpc/auth.listApiKeys", content=b"{}", headers={"content-type": "text/plain"}), 415, "unsupported_media_type")
    for body in (b"[]", b"{", b"null", b'{"a":' * 50_000):
        with case(body[:9]):
            problem(
                await http.post("/rpc/auth.listApiKeys", content=body, headers={"content-type": "application/json"}), 400, "bad_request"
            )


async def test_a_second_credential_in_the_body_must_be_the_same(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.own["gateway.processInferenceRequest"] = Handler(gateway.process_inference_request, _never)
    body = {"request": {"prompt": "hi"}, "auth": {"apiKey": TOKEN}}
    assert "two different credentials" in problem(await http.post(INFER, json=body), 400, "bad_request")["message"]


async def _never(_request: Any, _call: RpcCall) -> Nothing:
    raise AssertionError("it must be refused")


async def test_a_sign_in_shows_the_real_address_and_has_small_bodies(http: httpx.AsyncClient, running_service: RunningService) -> None:
    received: list[Any] = []

    async def answer(request: Any) -> Any:
        received.append(request)
        raise errors.NotAuthenticated("wrong")

    running_service.rpc.answers |= {"auth.loginUser": answer, "auth.requestPasswordReset": answer, "auth.registerUser": answer}
    forged = {"address": "203.0.113.9", "agent": "forged"}
    login = {"credentials": {"password": "p", "username": "u"}, "client": forged}
    headers = {"user-agent": "laptop"}
    problem(await http.post("/rpc/auth.loginUser", json=login, headers=headers), 401, "not_authenticated")
    await http.post("/rpc/auth.requestPasswordReset", json={"name": "u", "client": forged}, headers=headers)
    data = {"username": "u", "email": "a@b.c", "password": "p"}
    await http.post("/rpc/auth.registerUser", json={"userData": data, "client": forged}, headers=headers)
    assert [request.client for request in received] == [auth.ClientFacts("192.0.2.7", "laptop")] * 3
    problem(await http.post("/rpc/auth.loginUser", json=login | {"x": "y" * SIGN_IN_BODY_BYTES}), 413, "too_large")


async def test_a_caller_without_a_credential_cannot_keep_a_sign_in_place(http: httpx.AsyncClient, running_service: RunningService) -> None:
    deadlines: list[float] = []

    async def answer(_request: gateway.GetServiceHealth, call: RpcCall) -> gateway.ServiceHealth:
        deadlines.append(call.remaining_seconds())
        return gateway.ServiceHealth("healthy", (), 0, (), 0)

    running_service.own["gateway.getServiceHealth"] = Handler(gateway.get_service_health, answer)
    assert (await http.post("/rpc/gateway.getServiceHealth?deadline_ms=86400000", json={})).status_code == 200
    assert deadlines[0] <= 10


async def test_models_are_listed_without_a_credential_as_on_the_mesh(running_service: RunningService) -> None:
    async def answer(_request: gateway.ListModels, call: RpcCall) -> gateway.ServedModels:
        assert call.found is None
        return gateway.ServedModels(())

    running_service.own["gateway.listModels"] = Handler(gateway.list_models, answer)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(running_service.app()), base_url="http://gateway") as http:
        assert (await http.post("/rpc/gateway.listModels", json={})).json() == {"models": []}
        problem(await http.post("/rpc/gateway.listModels", json={}, headers={"authorization": "Bearer x"}), 401, "not_authenticated")


async def test_a_handler_that_takes_too_long(http: httpx.AsyncClient, running_service: RunningService) -> None:
    async def answer(_request: gateway.ListNodes, _call: RpcCall) -> gateway.NodeRows:
        await asyncio.Event().wait()
        raise AssertionError

    running_service.own["gateway.listNodes"] = Handler(gateway.list_nodes, answer)
    late = problem(await http.post("/rpc/gateway.listNodes?deadline_ms=20", json={}), 504, "deadline_exceeded")
    assert late["message"] == "gateway.listNodes ran out of time"


# --- streams --------------------------------------------------------------------------------------------------------------


async def test_a_stream_of_another_service(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.rpc.answers["auth.validateApiKey"] = _administrator

    async def rows(_request: audit.ExportAudit) -> AsyncIterator[Any]:
        yield audit.AuditRow("house", 1, ACT, "root", "00")
        yield audit.AuditRow("house", 2, ACT, "root", "01")
        yield Nothing()

    running_service.rpc.streams["auth.exportAudit"] = rows
    first, second, end = sent_events(await http.post("/rpc/auth.exportAudit", json={}))
    assert [json.loads(event["data"])["sequence"] for event in (first, second)] == [1, 2]
    assert end == {"event": "end", "data": "{}"}
    assert running_service.rpc.credentials[-1] == KEY


async def test_an_answer_has_event_ids_and_resumes_after_the_last_one(http: httpx.AsyncClient, running_service: RunningService) -> None:
    received: list[gateway.ProcessInferenceRequest] = []

    async def answer(request: gateway.ProcessInferenceRequest, stream: StreamCall[InferenceChunk]) -> InferenceResult:
        received.append(request)
        after = 0 if request.rest is None else request.rest.after
        await stream.send(InferenceChunk("", waiting="loading the model"))
        for number in range(after + 1, 4):
            await stream.send(InferenceChunk(f"w{number} ", sequence=number, request_id=REQUEST_ID if number == after + 1 else None))
        return RESULT

    running_service.own["gateway.processInferenceRequest"] = Handler(gateway.process_inference_request, answer)
    headers = {"idempotency-key": "k"}
    events = sent_events(await http.post(INFER, json={"request": {"prompt": "hi"}}, headers=headers))
    assert [event.get("id") for event in events] == [None, *(f"{REQUEST_ID.hex}-{number}" for number in (1, 2, 3)), None]
    assert (events[-1]["event"], json.loads(events[-1]["data"])["finishReason"]) == ("end", "stop")
    again = sent_events(await http.post(INFER, json={"request": {"prompt": "hi"}}, headers=headers | {"last-event-id": events[2]["id"]}))
    assert [json.loads(event["data"])["text"] for event in again[1:-1]] == ["w3 "]
    assert [(request.idempotency_key, request.rest) for request in received] == [("k", None), ("k", gateway.Rest(2))]
    assert received[0].request == gateway.InferenceRequest(prompt="hi")


async def test_a_failed_stream_ends_with_the_error_object(http: httpx.AsyncClient, running_service: RunningService) -> None:
    async def answer(request: gateway.ProcessInferenceRequest, stream: StreamCall[InferenceChunk]) -> InferenceResult:
        if request.request.prompt == "now":
            raise errors.UnknownModel("there is no such model", hint="see the list")
        await stream.send(InferenceChunk("one", sequence=1, request_id=REQUEST_ID))
        raise errors.WorkerLost("the worker is gone")

    running_service.own["gateway.processInferenceRequest"] = Handler(gateway.process_inference_request, answer)
    problem(await http.post(INFER, json={"request": {"prompt": "now"}}), 404, "unknown_model")
    *_, last = sent_events(await http.post(INFER, json={"request": {"prompt": "later"}}))
    assert (last["event"], json.loads(last["data"])["error"]["code"]) == ("error", "worker_lost")
