"""The HTTP API, with a fake mesh and store."""

import asyncio
import gzip
import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from services.gateway.facts import tiers
from services.gateway.facts.tiers import LimitRules
from services.gateway.http_api import http_app
from services.gateway.http_api.http_app import HttpRoute
from services.gateway.http_api.http_call import MAX_BODY_BYTES, HttpCall
from services.gateway.limits.quotas import Quotas
from shared import errors
from shared.access_rules import Audience
from shared.api import auth
from shared.api.generation import MAX_PROMPT_BYTES
from shared.node import http_server
from shared.node.settings import NodeSettings
from shared.types import ModelName, RequestId, Role, Tier, UserRole
from tests.cases import case
from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY, TOKEN, USER, RunningService
from tests.services.gateway.http_answers import BEARER, CHAT, events, problem
from tests.services.gateway.thinking import Thinks

# --- bodies ---------------------------------------------------------------------------------------------------------------

BAD_BODIES = [
    b"", b"{", b"[]", b"null", b"5", b'"x"', b'{"messages": NaN}', b'{"temperature": 1e999}', b'{"temperature": NaN, "messages": []}',
    b'{"prompt": "\xff\xfe"}', b'{"prompt": "\\ud800"}', b"\x00" * 100, b"[" * 100_000,
    b'{"a":' * 100_000, b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
]  # fmt: skip


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/api/inference", "/api/infer"]
)
async def test_a_body_that_is_not_the_expected_json_is_a_400(http: httpx.AsyncClient, path: str) -> None:
    for body in BAD_BODIES:
        with case(body[:24]):
            problem(await http.post(path, content=body, headers={"content-type": "application/json"}), 400, "bad_request")


async def test_a_prompt_of_20_megabytes_is_refused_without_reading_it(running_service: RunningService) -> None:
    app, read = running_service.app(), 0
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 65_536
        return {"type": "http.request", "body": b"x" * 65_536, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", BEARER["authorization"].encode()), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
    await app({**scope, "headers": [*headers, (b"content-length", b"20000000")]}, receive, send)
    assert (sent[0]["status"], read) == (413, 0)
    sent.clear()
    await app(scope, receive, send)
    assert sent[0]["status"] == 413
    assert read <= 17 * MAX_BODY_BYTES + 65_536, "16 MiB of images in base64"
    sent.clear()
    read = 0
    await app({**scope, "path": "/v1/embeddings"}, receive, send)
    assert sent[0]["status"] == 413
    assert read <= MAX_BODY_BYTES + 65_536


async def test_a_prompt_that_fits_a_body_but_not_a_frame_is_refused(http: httpx.AsyncClient) -> None:
    problem(await http.post("/api/inference", json={"prompt": "x" * (MAX_PROMPT_BYTES + 1)}), 400, "context_length_exceeded")


@pytest.mark.parametrize(
    "headers", [{"content-type": "text/plain"}, {"content-type": ""}, {"content-type": "application/x-www-form-urlencoded"}]
)
async def test_other_media_types_are_a_415(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    problem(await http.post("/v1/chat/completions", content=json.dumps(CHAT), headers=headers), 415, "unsupported_media_type")


async def test_a_compressed_body_is_a_415(http: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    body = gzip.compress(b"0" * 10_000_000)
    problem(await http.post("/v1/chat/completions", content=body, headers=headers), 415, "unsupported_media_type")


# --- credentials ----------------------------------------------------------------------------------------------------------

NEED_CREDENTIAL = [
    ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/v1/responses"), ("POST", "/v1/embeddings"),
    ("POST", "/v1/messages"), ("POST", "/v1/messages/count_tokens"), ("POST", "/v1/responses/input_tokens"),
    *((verb, "/v1/responses/{response}") for verb in ("DELETE", "POST")),
    ("POST", "/v1/moderations"), ("POST", "/v1/tokenize"), ("POST", "/v1/detokenize"),
    ("POST", "/v1/apply-template"), ("POST", "/v1/rerank"), ("POST", "/infill"),
    ("GET", "/v1/models"), ("GET", "/v1/models/{model}"), ("POST", "/api/inference"), ("POST", "/api/infer"),
    ("DELETE", "/api/inference"), ("POST", "/api/auth/api-keys"), ("GET", "/api/usage"), ("GET", "/api/quota"),
    ("GET", "/api/auth/api-keys"), ("DELETE", "/api/auth/api-keys/{key}"), ("POST", "/api/auth/confirm"), ("GET", "/api/requests"),
    ("POST", "/api/feedback"), *(route for part in fakes.OF_FEATURES for route in part.NEED_CREDENTIAL),
]  # fmt: skip


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer nonsense"}, {"authorization": "Basic abc"}, {"x-api-key": KEY[:-1]}, {"authorization": "Bearer"}],
)
async def test_an_invalid_credential_is_a_401_before_the_body_is_read(running_service: RunningService, headers: dict[str, str]) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(running_service.app()), base_url="http://gateway") as http:
        for verb, path in NEED_CREDENTIAL:
            with case((verb, path)):
                answer = await http.request(verb, path, content=b"{", headers=headers)
                assert answer.status_code == 401
                if verb != "HEAD":
                    problem(answer, 401, "not_authenticated")
                assert answer.headers["www-authenticate"] == "Bearer"
                assert not running_service.rpc.called


async def test_the_tests_route_table_is_the_gateways(running_service: RunningService) -> None:
    routes = [route for by_verb in running_service.app()._routes.values() for route in by_verb.values()]
    people = {(route.verb, route.path) for route in routes if route.access.who is Audience.PERSON}
    # The /rpc routes are generated from the contract; test_rpc_routes.py covers them.
    assert {(verb, path) for verb, path in people if not path.startswith("/rpc/")} == set(NEED_CREDENTIAL)


def test_a_route_without_an_access_rule_prevents_the_start() -> None:
    async def handler(_call: HttpCall) -> None: ...

    with pytest.raises(ValueError, match="say who may use it"):
        HttpRoute(verb="GET", path="/x", handler=handler, method="x", summary="x")


@pytest.mark.parametrize("path", ["//v1/models", "/v1/models/", "/V1/models", "/v1/%6dodels", "/v1/models;x", "/v1/../v1/models", "/admin"])
async def test_other_spellings_of_a_path_are_not_found(running_service: RunningService, path: str) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    await running_service.app()({"type": "http", "method": "GET", "path": path, "headers": []}, receive, send)
    assert sent[0]["status"] == 404


async def test_the_root_answers_without_a_credential(running_service: RunningService) -> None:
    """Claude Code looks with HEAD whether the server answers."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(running_service.app()), base_url="http://gateway") as http:
        head, found = await http.head("/"), await http.get("/")
        assert (head.status_code, head.content, found.status_code) == (200, b"", 200)
        problem(await http.post("/"), 405, "method_not_allowed")


async def test_wrong_verb_and_unknown_path(http: httpx.AsyncClient) -> None:
    problem(await http.get("/v1/chat/completions"), 405, "method_not_allowed")
    problem(await http.get("/nothing"), 404, "not_found")


@pytest.mark.parametrize(
    ("path", "meant", "base_url"),
    [
        ("/v1/v1/chat/completions", "/v1/chat/completions", ""), ("/v1/v1/messages", "/v1/messages", ""),
        ("/chat/completions", "/v1/chat/completions", "/v1"), ("/messages", "/v1/messages", "/v1"),
        ("/responses", "/v1/responses", "/v1"), ("/models", "/v1/models", "/v1"), ("/models/smollm2", "/v1/models/smollm2", "/v1"),
        ("/v1/chat/completions/", "/v1/chat/completions", "/v1"), ("/v1/models/", "/v1/models", "/v1"),
        ("//v1/responses", "/v1/responses", ""), ("/v1//responses", "/v1/responses", "/v1"), ("//responses", "/v1/responses", "/v1"),
        ("/v1/chat/completions/chat/completions", "/v1/chat/completions", "/v1"), ("/v1/infill", "/infill", ""),
    ],
)  # fmt: skip
async def test_a_wrong_base_url_gets_the_right_one(http: httpx.AsyncClient, path: str, meant: str, base_url: str) -> None:
    address = f"http://gateway{path}"
    for answer in (await http.post(address, json={}), await http.get(address)):
        assert answer.status_code == 404
        assert answer.json()["error"]["message"] == (
            f"no route matches {path!r}, but {meant} exists: "
            f"set the base URL of your client to http://gateway{base_url}, without a slash at the end"
        )


async def test_the_base_url_has_the_address_that_the_client_uses(http: httpx.AsyncClient) -> None:
    for headers, origin in (
        ({"Host": "ai.example.org"}, "http://ai.example.org"), ({"X-Forwarded-Host": "ai.example.org:3000"}, "http://ai.example.org:3000"),
        ({"Host": "x" * 5000}, "http://" + "x" * 253),
    ):  # fmt: skip
        answer = await http.post("/messages", json={}, headers=headers)
        assert f" to {origin}/v1," in answer.json()["error"]["message"]


async def test_a_path_that_is_no_route_gets_no_base_url(http: httpx.AsyncClient) -> None:
    for path in ("/v1", "/v1/", "/v1/completion", "/v1/engines/x", "/" * 5000, "/x" * 3000):
        assert problem(await http.get(f"http://gateway{path}"), 404, "not_found")["message"] == f"no route matches {path[:200]!r}"


async def test_an_unknown_path_may_be_of_a_feature_that_another_gateway_has(running_service: RunningService) -> None:
    lacking = ["hello"]
    transport = httpx.ASGITransport(running_service.app(list_lacking=lambda: lacking))
    async with httpx.AsyncClient(transport=transport, headers={"authorization": f"Bearer {KEY}"}) as http:
        refused = problem(await http.get("http://gateway/v1/hellos"), 503, "unavailable")
        assert refused["message"] == "this gateway lacks hello, which others have"
        assert (await http.get("http://gateway/v1/models")).status_code == 200
        lacking.clear()
        problem(await http.get("http://gateway/v1/hellos"), 404, "not_found")


async def test_a_limited_request_is_a_429(running_service: RunningService, http: httpx.AsyncClient) -> None:
    for _ in range(99):
        limits = running_service.quotas.limits(fakes.OWNER, ModelName("smollm2"))
        await running_service.quotas.spend(limits, RequestId(uuid4()), tier=fakes.OWNER.tier, tokens=1, seconds=1)
    assert (await http.post("/api/inference", json={"prompt": "hi"})).status_code == 200
    answer = await http.post("/api/inference", json={"prompt": "hi"})
    problem(answer, 429, "rate_limited")
    assert 3600 <= int(answer.headers["retry-after"]) <= 3660
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"


# --- /api -----------------------------------------------------------------------------------------------------------------


async def test_inference(running_service: RunningService) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(running_service.app()), base_url="http://gateway") as http:
        answer = await http.post("/api/inference", json={"prompt": "Write a poem", "model": "llama3"}, headers={"x-api-key": KEY})
    body = answer.json()
    assert body["response"] == "Hello world!"
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert (body["model"], body["request_id"]) == ("llama3", str(running_service.store.only_row.id))


async def test_inference_stream(http: httpx.AsyncClient) -> None:
    *texts, last, done = events(await http.post("/api/inference", json={"prompt": "hi", "stream": True}))
    assert ([event["text"] for event in texts], done) == (["Hello", " world", "!"], "[DONE]")
    assert last["usage"]["total_tokens"] == 10
    assert "response" not in last


@pytest.mark.parametrize(
    "body",
    [
        {"model": "smollm2", "payload": {"prompt": "hi", "max_tokens": 9}},
        {"model": "smollm2", "payload": {"prompt": "hi", "maxTokens": 9}},
        {"payload": {"messages": [{"role": "user", "content": "hi"}], "maxTokens": 9}},
    ],
)
async def test_infer_takes_both_spellings(http: httpx.AsyncClient, running_service: RunningService, body: dict[str, object]) -> None:
    assert (await http.post("/api/infer", json=body)).status_code == 200
    assert running_service.worker.received[0].model_config.max_tokens == 9


async def test_thoughts_and_calls_are_in_the_answer_and_in_its_events(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.add_worker(1, worker := Thinks(), "smollm2")
    body = {"prompt": "x", "reasoningEffort": "low", "tools": [{"type": "function", "function": {"name": "look_up"}}]}
    whole = (await http.post("/api/inference", json=body)).json()
    assert worker.received[-1].model_config.reasoning_effort == "low"
    assert (whole["reasoning"], whole["response"], whole["usage"]["reasoning_tokens"]) == ("Let me think.", "I look.", 2)
    assert [call["function"]["arguments"] for call in whole["tool_calls"]] == ['{"a":1}', "{}"]
    blocks = (await http.post("/api/inference", json={**body, "stream": True})).text.strip().split("\n\n")
    events = [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]
    pieces = [(json.loads(event["data"]), "id" in event) for event in events[:-2]]
    assert "".join(piece.get("reasoning", "") for piece, _ in pieces) == "Let me think."
    # Each call is complete, and each event has an id to resume after.
    assert [call for piece, _ in pieces for call in piece.get("tool_calls", ())] == whole["tool_calls"]
    assert all(has_id for _, has_id in pieces)


async def test_infer_takes_a_prompt_alone(http: httpx.AsyncClient) -> None:
    assert (await http.post("/api/infer", json={"payload": "hi"})).json()["response"] == "Hello world!"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "x", "maxTokens": 1, "max_tokens": 2}, "max_tokens"), ({"prompt": "x", "n_discard": -1}, "n_discard"),
        ({"prompt": ""}, "prompt"), ({}, "prompt"), ({"prompt": 5}, "prompt"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "y"}]}, "prompt"),
        ({"prompt": "x", "topP": 7}, "top_p"), ({"prompt": "x", "reasoningEffort": "ultra"}, "reasoning_effort"),
        ({"prompt": "x", "chatTemplateKwargs": {"a": "x" * 4089}}, "chat_template_kwargs"),
    ],
)  # fmt: skip
async def test_a_wrong_field_is_a_400_that_names_it(http: httpx.AsyncClient, body: dict[str, object], param: str) -> None:
    assert problem(await http.post("/api/inference", json=body), 400, "bad_request")["param"] == param


async def test_register_login_and_key(running_service: RunningService) -> None:
    user = auth.User(USER, "ada", "ada@example.com", UserRole.USER, Tier.FREE, True, fakes.announcement(1).started_at)
    key = auth.ApiKey(fakes.KEY_ID, USER, "My CLI Key", "aip_live_xxx…1234", True, user.created_at)

    async def register(request: auth.RegisterUser) -> auth.User:
        assert request.user_data.email == "ada@example.com"
        return user

    async def login(request: auth.LoginUser) -> auth.LoginSession:
        return auth.LoginSession(TOKEN, 600, "opaque", user)

    async def generate(request: auth.GenerateApiKey) -> auth.CreatedApiKey:
        assert request.name == "My CLI Key"
        return auth.CreatedApiKey(KEY, key)

    running_service.rpc.answers |= {"auth.registerUser": register, "auth.loginUser": login, "auth.generateApiKey": generate}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(running_service.app()), base_url="http://gateway") as http:
        answer = await http.post("/api/auth/register", json={"username": "ada", "email": "ada@example.com", "password": "secure_password"})
        assert (answer.status_code, answer.json()["id"]) == (201, str(USER))
        token = (await http.post("/api/auth/login", json={"email": "ada@example.com", "password": "x"})).json()["access_token"]
        answer = await http.post("/api/auth/api-keys", json={"name": "My CLI Key"}, headers={"authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()["api_key"]) == (201, KEY)
        assert running_service.rpc.credentials[-1] == TOKEN
        problem(await http.post("/api/auth/register", json={"username": "x"}), 400, "bad_request")


async def test_an_error_of_auth_keeps_its_status(running_service: RunningService, http: httpx.AsyncClient) -> None:
    async def taken(_request: object) -> None:
        raise errors.AlreadyExists("the name is taken")

    running_service.rpc.answers["auth.registerUser"] = taken
    problem(await http.post("/api/auth/register", json={"username": "a", "email": "b", "password": "c"}), 409, "already_exists")
    del running_service.rpc.answers["auth.registerUser"]
    problem(await http.post("/api/auth/register", json={"username": "a", "email": "b", "password": "c"}), 503, "not_reachable")


async def test_usage_and_quota(http: httpx.AsyncClient) -> None:
    await http.post("/api/inference", json={"prompt": "hi"})
    assert (await http.get("/api/usage")).json()["tokens_used"] == 10
    quota = (await http.get("/api/quota")).json()
    assert (quota["limit_per_hour"], quota["used_this_hour"], quota["remaining"]) == (100, 1, 99)


# --- faults ---------------------------------------------------------------------------------------------------------------


async def test_a_failure_in_the_stream_is_its_last_event(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.worker.fails_with, running_service.worker.fails_after = errors.LinkLost("the worker died"), 2
    found = events(await http.post("/v1/chat/completions", json={**CHAT, "stream": True}))
    assert found[-1]["error"]["code"] == "worker_lost"
    assert "[DONE]" not in found


async def test_a_failure_before_the_first_token_has_a_status(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.worker.fails_with = errors.DeadlineExceeded("late")
    problem(await http.post("/v1/chat/completions", json={**CHAT, "stream": True}), 504, "deadline_exceeded")


async def test_a_bug_is_a_500_without_details(running_service: RunningService) -> None:
    async def broken(_request: object) -> None:
        raise ZeroDivisionError("secret detail")

    running_service.rpc.answers["auth.loginUser"] = broken
    async with httpx.AsyncClient(transport=httpx.ASGITransport(running_service.app()), base_url="http://gateway") as http:
        answer = await http.post("/api/auth/login", json={"username": "a", "password": "b"})
    problem(answer, 500, "internal")
    assert "secret detail" not in answer.text


async def test_an_error_code_of_a_newer_peer_is_not_a_500(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.worker.fails_with = errors.RemoteError(errors.Problem("new_thing", "something new", fault=errors.Fault.PEER))
    problem(await http.post("/v1/chat/completions", json=CHAT), 503, "new_thing")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_disconnects_cancels_the_generation(running_service: RunningService, stream: bool) -> None:
    running_service.worker.hangs_after = 1
    disconnected = asyncio.Event()
    body = [{"type": "http.request", "body": json.dumps({**CHAT, "stream": stream}).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if body:
            return body.pop()
        await disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None: ...

    headers = [(b"authorization", BEARER["authorization"].encode()), (b"content-type", b"application/json")]
    serving = asyncio.create_task(
        running_service.app()({"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}, receive, send)
    )
    await running_service.worker.is_hanging.wait()
    disconnected.set()
    await serving
    assert running_service.worker.left_early == 1
    async with asyncio.timeout(30):
        while not running_service.store.rows:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert (running_service.store.only_row.status, running_service.store.only_row.completion_tokens) == ("cancelled", 1)


# --- routes ---------------------------------------------------------------------------------------------------------------


async def test_openapi_describes_every_route(http: httpx.AsyncClient, running_service: RunningService) -> None:
    document = (await http.get("/openapi.json")).json()
    for verb, path in [*NEED_CREDENTIAL, ("POST", "/api/auth/register"), ("POST", "/api/auth/login")]:
        operation = document["paths"][path][verb.lower()]
        assert operation["summary"]
        assert bool(operation["security"]) is ((verb, path) in NEED_CREDENTIAL)
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert reference in document["components"]["schemas"]


async def test_the_reference_is_one_page_without_scripts_or_other_hosts(http: httpx.AsyncClient) -> None:
    answer = await http.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "/v1/chat/completions" in answer.text
    assert "<script" not in answer.text
    assert "http://" not in answer.text
    assert "https://" not in answer.text


async def test_a_callers_trace_is_continued(running_service: RunningService, http: httpx.AsyncClient) -> None:
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    answer = await http.get("/v1/models", headers={"traceparent": trace})
    assert UUID(answer.headers["x-request-id"]).version == 7
    assert {one.trace_id for one in running_service.metrics.read().exemplars.values()} == {"a" * 32}
    assert (await http.get("/v1/models", headers={"traceparent": "nonsense"})).status_code == 200


async def test_requests_are_counted(http: httpx.AsyncClient, running_service: RunningService) -> None:
    await http.post("/api/inference", json={"prompt": "hi"})
    await http.get("/nothing")
    text = running_service.metrics.render()
    assert 'ai_platform_requests_total{method="processInferenceRequest",service="gateway",status="success"} 1.0' in text
    assert 'ai_platform_requests_total{method="unknown",service="gateway",status="not_found"} 1.0' in text
    assert 'ai_platform_inflight_requests{service="gateway"} 0.0' in text
    assert running_service.directory.usable(Role.WORKER)


async def test_too_many_requests_of_one_caller_are_refused_before_their_bodies_are_read(running_service: RunningService) -> None:
    at_once = 2
    rules = LimitRules({Tier.FREE: replace(tiers.NO_LIMITS, concurrency=at_once)})
    running_service.quotas = Quotas(running_service.counters, lambda: rules, running_service.metrics)
    app, reading = running_service.app(), asyncio.Semaphore(0)

    async def never_sent() -> Any:
        reading.release()
        await asyncio.Event().wait()

    async def ask() -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json"), (b"authorization", f"Bearer {KEY}".encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        await app(scope, never_sent, send)
        return sent

    async with asyncio.TaskGroup() as tasks:
        crowd = [tasks.create_task(ask()) for _ in range(at_once + http_app.SLACK)]
        for _ in crowd:
            await reading.acquire()
        answer = await ask()
        assert answer[0]["status"] == 429
        assert b"already in progress" in answer[1]["body"]
        assert reading.locked()
        # Other callers aren't affected, and the waiting ones are still connected.
        assert not any(task.done() for task in crowd)
        for task in crowd:
            task.cancel()


@pytest.mark.parametrize("words", [0, 2])
async def test_requests_that_outlast_the_drain_are_told_to_retry(
    running_service: RunningService, caplog: pytest.LogCaptureFixture, words: int
) -> None:
    running_service.worker.hangs_after = words
    with socket.create_server(("127.0.0.1", 0)) as sock:
        server = http_server.HttpServer(running_service.app(), sock, NodeSettings(node_key_file=Path("/nowhere"), drain_seconds=0))
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(30):
            tasks.create_task(server.run())
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{sock.getsockname()[1]}", headers=BEARER) as http:
                asking = tasks.create_task(http.post("/v1/chat/completions", json={**CHAT, "stream": True}))
                await running_service.worker.is_hanging.wait()
                server.stop()
                answer = await asking
    if words:
        *_, last = events(answer)
        assert last["error"]["code"] == "draining"
    else:
        problem(answer, 503, "draining")
    assert "ASGI" not in caplog.text
    assert "Traceback" not in caplog.text
