"""Invalid input: each case gets its documented status, an OpenAI error object and a next step, and never a 5xx."""

import contextlib
import gzip
import json
import socket
from collections.abc import AsyncIterator

import httpx
import pytest

from shared import errors
from shared.api import auth, gateway
from shared.api.gateway import InferenceRequest
from shared.api.generation import ChatMessage
from shared.types import Credential
from tests.integration import asking
from tests.people import ApiClient, Person
from tests.stacks import RunningStack

PATHS = ("/v1/chat/completions", "/api/inference", "/api/infer")
JSON = {"content-type": "application/json", "x-aimesh-strict": "1"}

_NOT_A_NUMBER = ('"1"', "true", "[]", "{}", "NaN", "Infinity", "-Infinity", "1e999", "-1", "1e300", "9" * 400)
#: Parameter -> JSON values that the gateway must refuse.
WRONG: dict[str, tuple[str, ...]] = {
    "temperature": (*_NOT_A_NUMBER, "2.0001", "-0.0001"),
    "top_p": (*_NOT_A_NUMBER, "0", "1.0001"),
    "top_k": (*_NOT_A_NUMBER, "1.5", "1001"),
    "max_tokens": (*_NOT_A_NUMBER, "0", "1.5", "9223372036854775808"),
    "seed": (*_NOT_A_NUMBER, "1.5", str(2**63), str(2**64)),
    "stop": ("1", "true", "{}", '[""]', "[1]", "[null]", '["a","b","c","d","e"]', json.dumps("x" * 65)),
    "reasoning_effort": ("1", "[]", '"LOW"', '""'),
    "parallel_tool_calls": ("1", '"no"', "[]"),
    "chat_template_kwargs": ("1", "[]", '"{}"', json.dumps({"a": "x" * 4089}), '{"a": NaN}'),
    "stream": ("1", '"true"', "[]", "NaN"),
    "model": ("1", "true", "[]", '""', json.dumps("m" * 201)),
    "no_such_parameter": ("1", "null"),
}


def _body(path: str, field: str, value: str) -> str:
    """Return JSON with one field that our encoders would never write."""
    mine = {"model": '"echo"', field: value}
    if path == "/api/infer":
        payload = {"prompt": '"hi"', **({} if field == "model" else {field: value})}
        return f'{{"model": {mine["model"]}, "payload": {_object(payload)}}}'
    prompt = {"messages": '[{"role": "user", "content": "hi"}]'} if path.startswith("/v1") else {"prompt": '"hi"'}
    return _object({**prompt, **mine})


def _object(fields: dict[str, str]) -> str:
    return "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}"


@pytest.fixture
async def http(stack: RunningStack, api_client: ApiClient) -> AsyncIterator[httpx.AsyncClient]:
    """As the admin: no limit counts these requests, and no case has to register a user."""
    async with stack.http(stack.api_key) as client:
        yield client


@pytest.mark.parametrize("path", PATHS)
async def test_a_wrong_parameter_is_a_400(http: httpx.AsyncClient, path: str) -> None:
    for field, values in WRONG.items():
        for value in values:
            answer = await http.post(path, content=_body(path, field, value), headers=JSON)
            error = asking.problem(answer, 400, "bad_request")
            # A body that isn't JSON at all (NaN) has no field to name.
            assert field in error["message"] or "JSON" in error["message"], (field, value, error)


async def test_the_same_bodies_without_the_wrong_parameter_are_good(http: httpx.AsyncClient) -> None:
    for path in PATHS:
        assert (await http.post(path, content=_body(path, "temperature", "null"), headers=JSON)).status_code == 200


PROMPTS: dict[str, tuple[bytes, int, str]] = {
    "empty": (b'""', 400, "bad_request"),
    "spaces": (b'" \\n\\t "', 400, "bad_request"),
    "null": (b"null", 400, "bad_request"),
    "a number": (b"5", 400, "bad_request"),
    "a list": (b'["hi"]', 400, "bad_request"),
    "not UTF-8": (b'"\xff\xfe\xfa"', 400, "bad_request"),
    "a lone surrogate": (b'"\\ud800"', 400, "bad_request"),
    "10 MB": (b'"' + b"x" * 10_000_000 + b'"', 400, "context_length_exceeded"),
    "just over the limit": (b'"' + b"x" * (4 * 1024 * 1024 + 1) + b'"', 400, "context_length_exceeded"),
    "a body of 18 MB": (b'"' + b"x" * 18_000_000 + b'"', 413, "context_length_exceeded"),
}


@pytest.mark.parametrize("path", PATHS)
async def test_a_bad_prompt(http: httpx.AsyncClient, path: str) -> None:
    frames = {
        "/v1/chat/completions": b'{"model": "echo", "messages": [{"role": "user", "content": %b}]}',
        "/api/inference": b'{"model": "echo", "prompt": %b}',
        "/api/infer": b'{"model": "echo", "payload": {"prompt": %b}}',
    }
    for name, (prompt, status, code) in PROMPTS.items():
        answer = await http.post(path, content=frames[path] % prompt, headers=JSON)
        asking.problem(answer, status, code)
        assert answer.headers["content-type"] == "application/json", name


BODIES: dict[str, bytes] = {
    "nothing": b"",
    "half an object": b'{"prompt": "hi"',
    "a list": b"[]",
    "a string": b'"hi"',
    "null": b"null",
    "zeros": b"\x00" * 64,
    "many brackets": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep in a field": b'{"model": "echo", "prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "UTF-16": '{"prompt": "hi"}'.encode("utf-16"),
}


@pytest.mark.parametrize("path", PATHS)
async def test_a_body_that_is_not_the_expected_object(http: httpx.AsyncClient, path: str) -> None:
    for body in BODIES.values():
        asking.problem(await http.post(path, content=body, headers=JSON), 400, "bad_request")


@pytest.mark.parametrize("path", ["/api/auth/register", "/api/auth/login"])
async def test_a_sign_in_that_is_not_the_expected_object(http: httpx.AsyncClient, path: str) -> None:
    """These routes take only short bodies."""
    for body in BODIES.values():
        refusal = (413, "too_large") if len(body) > 8192 else (400, "bad_request")
        asking.problem(await http.post(path, content=body, headers=JSON), *refusal)


#: verb, path, headers -> status and code.
WRONG_PLACE_OR_FORM: list[tuple[str, str, dict[str, str], int, str]] = [
    ("POST", "/v1/chat/completions", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
    ("POST", "/v1/chat/completions", {"content-type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
    ("POST", "/v1/chat/completions", {**JSON, "content-encoding": "gzip"}, 415, "unsupported_media_type"),
    ("GET", "/v1/chat/completions", {}, 405, "method_not_allowed"),
    ("DELETE", "/v1/models", {}, 405, "method_not_allowed"),
    ("PUT", "/api/inference", JSON, 405, "method_not_allowed"),
    ("POST", "/v1/edits", JSON, 404, "not_found"),
    ("GET", "/api/" + "x" * 4000, {}, 404, "not_found"),
]


@pytest.mark.parametrize("service", ["gateway", "web"])
async def test_the_wrong_place_or_form(stack: RunningStack, service: str) -> None:
    good = json.dumps(asking.chat_body("hi")).encode()
    async with stack.http(stack.api_key, service=service) as http:
        for verb, path, headers, status, code in WRONG_PLACE_OR_FORM:
            content = gzip.compress(good) if headers.get("content-encoding") else good
            answer = await http.request(verb, path, headers=headers, content=content if verb in {"POST", "PUT"} else None)
            asking.problem(answer, status, code)
        answer = await http.get("/api/%00")
        assert (answer.status_code, answer.text) == (400, "the request target must not contain the character U+0000")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Basic YWRtaW46YWRtaW4="},
        {"authorization": "Bearer aip_live_short"},
        {"authorization": "Bearer " + "A" * 8000},
        {"authorization": "Bearer aip_live_' OR 1=1 --"},
        {"x-api-key": "aip_live_" + "0" * 49},
        {"x-api-key": ""},
        {"authorization": "Bearer a.b.c"},
    ],
)
async def test_a_malformed_credential_is_a_401_that_nobody_else_is_asked_about(stack: RunningStack, headers: dict[str, str]) -> None:
    async def asked() -> float:
        """Return how many credentials auth was asked about; the health checks of metrics don't count."""
        return sum(
            [
                await stack.metric("auth", "ai_platform_requests_total", method=method)
                for method in ("validateApiKey", "identify", "loginUser")
            ]
        )

    before = await asked()
    async with stack.http() as http:
        for path in PATHS:
            asking.problem(await http.post(path, json=asking.chat_body("hi"), headers=headers), 401, "not_authenticated")
    # The gateway asks auth about a well-formed token, which never reaches PostgreSQL either, because its signature is wrong.
    assert await asked() - before == (len(PATHS) if headers.get("authorization") == "Bearer a.b.c" else 0)


async def test_a_request_line_or_header_that_is_no_http_is_refused_and_the_gateway_lives(stack: RunningStack) -> None:
    place = ("127.0.0.1", int(stack.environment["GATEWAY_SERVICE_PORT"]))
    for noise in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"x" * 200_000, b"\r\n" * 1000):
        # The gateway may close the connection in the middle of it.
        with socket.create_connection(place, timeout=5) as raw, contextlib.suppress(OSError):
            raw.sendall(noise)
            raw.shutdown(socket.SHUT_WR)
    async with stack.http() as http:
        assert (await http.get("/healthz")).status_code == 200


# --- accounts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "status", "code"),
    [
        ({"password": "short"}, 400, "bad_request"),
        ({"password": "password"}, 400, "bad_request"),
        ({"password": ""}, 400, "bad_request"),
        ({"password": 12345678}, 400, "bad_request"),
        ({"username": ""}, 400, "bad_request"),
        ({"username": "x" * 5000}, 400, "bad_request"),
        ({"username": "a\x00b"}, 400, "bad_request"),
        ({"username": "'; DROP TABLE users; --"}, 400, "bad_request"),
        ({"username": "<script>alert(1)</script>"}, 400, "bad_request"),
        ({"username": "admin"}, 409, "already_exists"),
        ({"email": "nowhere"}, 400, "bad_request"),
        ({"role": "admin"}, 400, "bad_request"),
        ({"is_active": True}, 400, "bad_request"),
    ],
)
async def test_a_registration_that_cannot_be(stack: RunningStack, changed: dict[str, object], status: int, code: str) -> None:
    body = {"username": "somebody-new", "email": "somebody@example.org", "password": "a long enough one"}
    async with stack.http() as http:
        asking.problem(await http.post("/api/auth/register", json={**body, **changed}), status, code)


async def test_a_key_name_with_sql_and_html_is_only_a_name(stack: RunningStack, ann: Person) -> None:
    name = "'); DROP TABLE api_keys; --<b>x</b>"
    async with stack.http(ann.access_token) as http:
        made = await http.post("/api/auth/api-keys", json={"name": name})
    assert made.status_code in {201, 400}, made.text
    async with stack.database("auth") as database:
        assert await database.fetchval("SELECT count(*) FROM api_keys WHERE user_id = $1", ann.id) >= 1


# --- the same over RPC -----------------------------------------------------------------------------------------------


async def _refused_over_rpc(
    api_client: ApiClient, key: str, request: InferenceRequest, credential: Credential | None = None
) -> errors.AimeshError:
    asked = gateway.ProcessInferenceRequest(request, gateway.Auth(key))  # type: ignore[arg-type]
    called = gateway.process_inference_request
    try:
        async with api_client.mesh.rpc.stream(called, asked, deadline_seconds=10, credential=credential) as answer:
            async for _ in answer:
                pass
    except errors.AimeshError as error:
        return error
    raise AssertionError(f"it was answered: {request}")


_OVER_RPC: dict[str, tuple[object, ...]] = {
    "temperature": ("1", True, float("nan"), float("inf"), float("-inf"), -1, 3, 1e300),
    "top_p": ("1", float("nan"), 0, 1.5, -1),
    "top_k": ("1", 1.5, -1, 1001, float("nan")),
    "max_tokens": ("1", 0, -1, 2**63, 1.5),
    "seed": ("1", -1, 2**63, 1.5),
    "stop": ("x", 5, ("",), (5,), ("a", "b", "c", "d", "e"), ("x" * 65,)),
    "model": (5, "", "m" * 201),
    "prompt": ("", "  ", 5, None),
    "messages": (
        (ChatMessage("user", "both"),),
        (ChatMessage("robot", "x"),),
        (ChatMessage("user", " "),),
        "text",
    ),
}


async def test_a_wrong_parameter_over_rpc_is_a_bad_request_too(stack: RunningStack, api_client: ApiClient) -> None:
    for field, values in _OVER_RPC.items():
        for value in values:
            fields: dict[str, object] = {"prompt": "hi", "model": "echo", field: value}
            error = await _refused_over_rpc(api_client, stack.api_key, InferenceRequest(**fields))  # type: ignore[arg-type]
            assert errors.code_of(error) == "bad_request", (field, value, error)


async def test_a_prompt_over_rpc_that_is_too_large(stack: RunningStack, api_client: ApiClient) -> None:
    for size, code in ((5_000_000, "context_length_exceeded"), (18_000_000, "too_large")):
        request = InferenceRequest(prompt="x" * size, model=asking.ECHO)
        # The credential of a long request is checked before its body is read.
        error = await _refused_over_rpc(api_client, stack.api_key, request, stack.api_key)
        assert errors.code_of(error) == code, error


async def test_malformed_keys_over_rpc(stack: RunningStack, api_client: ApiClient) -> None:
    before = await stack.metric("auth", "ai_platform_requests_total", method="validateApiKey")
    for key in ("", "aip_live_short", "aip_live_" + "0" * 49, "x" * 100_000, "aip_live_' OR 1=1 --"):
        error = await _refused_over_rpc(api_client, key, InferenceRequest(prompt="hi", model=asking.ECHO))
        assert errors.code_of(error) == "not_authenticated", (key[:20], error)
    assert await stack.metric("auth", "ai_platform_requests_total", method="validateApiKey") == before


async def test_login_over_rpc_with_nonsense(api_client: ApiClient) -> None:
    for credentials in (
        auth.Credentials("x" * 100_000, "ann"),
        auth.Credentials("password", "a\x00b"),
        auth.Credentials("password", None),
        auth.Credentials("password", "ann", "ann@example.org"),
    ):
        with pytest.raises((errors.BadRequest, errors.NotAuthenticated)):
            await api_client.mesh.rpc.call(auth.login_user, auth.LoginUser(credentials))


async def test_after_all_of_it_no_service_has_crashed_or_logged_a_bug(stack: RunningStack) -> None:
    programs = await stack.programs()
    assert {row.name: row.crashes for row in programs.values() if row.crashes} == {}
    for name in programs:
        assert "Traceback" not in stack.log(name), name
