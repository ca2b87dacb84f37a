"""Keys with limits on methods, models and networks, over HTTP and over RPC, and the messages of refusals."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from shared import client_address, errors
from shared.api import auth, gateway, ledger, usage_report
from shared.api.auth import Principal
from shared.api.gateway import InferenceRequest, ProcessInferenceRequest
from shared.node import http_server
from shared.node.settings import NodeSettings
from shared.rpc.authorization import Authorizer
from shared.types import Credential, ModelName, Role, UserRole
from tests.cases import case
from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY, OWNER, FakeWorker, RunningService
from tests.services.gateway.http_answers import BEARER, CHAT, problem

SMOLLM2, QWEN = ModelName("smollm2"), ModelName("qwen")


@pytest.fixture
async def running_service() -> AsyncIterator[RunningService]:
    async with fakes.running_service() as service:
        service.add_worker(2, FakeWorker(), "qwen")
        yield service


def bind(running_service: RunningService, **bounds: Any) -> Principal:
    """Limit the key from now on."""
    principal = msgspec.structs.replace(OWNER, **bounds)

    async def validate(_request: auth.ValidateApiKey) -> Principal:
        return principal

    running_service.rpc.answers[auth.validate_api_key.name] = validate
    return principal


@asynccontextmanager
async def client(running_service: RunningService, address: str = "192.0.2.7") -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(running_service.app(), client=(address, 50_000))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=BEARER) as http:
        yield http


# --- models ---------------------------------------------------------------------------------------------------------------

#: Path -> a body for this model.
BODIES: dict[str, Callable[[str], dict[str, Any]]] = {
    "/v1/chat/completions": lambda model: {**CHAT, "model": model},
    "/v1/completions": lambda model: {"prompt": "hi", "model": model},
    "/v1/responses": lambda model: {"input": "hi", "model": model},
    "/v1/messages": lambda model: {**CHAT, "max_tokens": 5, "model": model},
    "/v1/embeddings": lambda model: {"input": "hi", "model": model},
    "/api/inference": lambda model: {"prompt": "hi", "model": model},
    "/api/infer": lambda model: {"payload": "hi", "model": model},
}


async def test_numbers_beyond_64_bits_are_refused_wherever_they_are(running_service: RunningService) -> None:
    large, keyed = 10**30, {"Idempotency-Key": "k"}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"maximum": large}}}}}
    cases = [
        (path, body("smollm2") | {"temperature": large}, "temperature") for path, body in BODIES.items() if not path.endswith("embeddings")
    ]
    cases += [
        ("/v1/embeddings", {"input": "hi", "model": "smollm2", "dimensions": -large}, "dimensions"),
        ("/v1/chat/completions", {**CHAT, "max_tokens": large}, "max_tokens"),
        ("/v1/chat/completions", {**CHAT, "tools": [tool]}, "tools.0.function.parameters.properties.x.maximum"),
        ("/api/inference", {"prompt": "hi", "seed": large}, "seed"),
    ]
    async with client(running_service) as http:
        for path, body, field in cases:
            answer = await http.post(path, json=body, headers=keyed)
            assert (answer.status_code, answer.json()["error"].get("param", field)) == (400, field), (path, body, answer.text)
        assert (
            await http.post("/v1/chat/completions", json={**CHAT, "messages": [{"role": "user", "content": "9" * 30}]})
        ).status_code == 200


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_outside_the_keys_scope_is_refused_before_a_worker_is_called(
    running_service: RunningService, path: str, *, stream: bool
) -> None:
    bind(running_service, models=(SMOLLM2,))
    can_stream = path not in {"/v1/embeddings", "/api/infer"}
    body = BODIES[path]("qwen") | ({"stream": True} if stream and can_stream else {})
    async with client(running_service) as http:
        error = problem(await http.post(path, json=body), 403, "not_allowed")
    assert error["message"] == "this key may not use qwen"
    assert "smollm2" in error["hint"]
    assert running_service.worker.received == []
    assert running_service.books.reserved == [], "nothing is reserved for it"


@pytest.mark.parametrize("path", [path for path in BODIES if path != "/v1/embeddings"])
@pytest.mark.parametrize("name", ["smollm2", "llama3"], ids=["by its name", "by another name of it"])
async def test_a_model_within_the_keys_scope_answers(running_service: RunningService, path: str, name: str) -> None:
    bind(running_service, models=(SMOLLM2,))
    async with client(running_service) as http:
        assert (await http.post(path, json=BODIES[path](name))).status_code == 200


@pytest.mark.parametrize("name", ["smollm2", "llama3"], ids=["by its name", "by another name of it"])
async def test_a_key_for_an_alias_covers_the_model(running_service: RunningService, name: str) -> None:
    bind(running_service, models=(ModelName("llama3"),))
    async with client(running_service) as http:
        assert (await http.post("/v1/chat/completions", json={**CHAT, "model": name})).status_code == 200
        error = problem(await http.post("/v1/chat/completions", json={**CHAT, "model": "qwen"}), 403, "not_allowed")
    assert "it may use llama3" in error["hint"]


async def test_the_default_model_is_no_way_around_a_keys_models(running_service: RunningService) -> None:
    bind(running_service, models=(SMOLLM2,))
    async with client(running_service) as http:
        # The first served model by name: qwen.
        error = problem(await http.post("/api/inference", json={"prompt": "hi"}), 403, "not_allowed")
        assert "qwen" in error["message"]


async def test_a_key_for_an_unserved_model_gets_an_error_with_the_model_it_requested(running_service: RunningService) -> None:
    bind(running_service, models=(ModelName("gone"),))
    async with client(running_service) as http:
        problem(await http.post("/api/inference", json={"prompt": "hi", "model": "gone"}), 404, "unknown_model")
        problem(await http.post("/api/inference", json={"prompt": "hi", "model": "qwen"}), 403, "not_allowed")


async def test_a_keys_models_apply_over_rpc_too(running_service: RunningService) -> None:
    caller = bind(running_service, models=(SMOLLM2,))
    with pytest.raises(errors.NotAllowed, match="this key may not use qwen"):
        async with running_service.pulled.answer(caller, InferenceRequest(prompt="hi", model=QWEN), seconds=5):
            raise AssertionError("it ran")
    async with running_service.pulled.answer(caller, InferenceRequest(prompt="hi", model=SMOLLM2), seconds=5) as answer:
        assert [chunk.text async for _, chunk in answer]


# --- scopes ---------------------------------------------------------------------------------------------------------------

#: Scope -> the routes of ``ASKED`` that it allows.
OPENS = {
    "inference:execute": {"POST /api/inference", "GET /v1/models", "POST /api/feedback"},
    "model:read": {"GET /v1/models"},
    "usage:read": {"GET /api/usage", "GET /api/requests"},
    "key:write": {"GET /api/auth/api-keys"},
    "account:write": set(),
    "node:own": set(),
}
ASKED: dict[str, dict[str, Any] | None] = {
    "POST /api/inference": {"prompt": "hi", "model": "smollm2"},
    "POST /api/feedback": {"request_id": "00000000-0000-0000-0000-000000000001", "rating": 1},
    "GET /v1/models": None,
    "GET /api/usage": None,
    "GET /api/requests": None,
    "GET /api/auth/api-keys": None,
}


@pytest.mark.parametrize("scope", OPENS)
async def test_a_key_with_one_scope_may_use_what_the_scope_allows(running_service: RunningService, scope: str) -> None:
    bind(running_service, scopes=(scope,), role=UserRole.DEVELOPER)

    async def no_keys(_request: auth.ListApiKeys) -> auth.ApiKeys:
        return auth.ApiKeys(())

    running_service.rpc.answers[auth.list_api_keys.name] = no_keys
    async with client(running_service) as http:
        for route, body in ASKED.items():
            with case(route):
                answer = await http.request(*route.split(" "), json=body) if body else await http.request(*route.split(" "))
                if route in OPENS[scope]:
                    assert answer.status_code != 403, answer.text
                else:
                    error = problem(answer, 403, "not_allowed")
                    assert error["message"].startswith("the key 'laptop' lacks the scope ")


async def test_a_user_with_the_right_but_not_the_scope_is_told_to_use_another_key(running_service: RunningService) -> None:
    bind(running_service, scopes=("usage:read",))
    async with client(running_service) as http:
        error = problem(await http.post("/api/inference", json={"prompt": "hi"}), 403, "not_allowed")
    assert (error["message"], error["hint"]) == (
        "the key 'laptop' lacks the scope inference:execute",
        "use a key with this scope, or log in",
    )


async def test_a_key_without_scopes_may_use_nothing(running_service: RunningService) -> None:
    bind(running_service, scopes=())
    async with client(running_service) as http:
        for route, body in ASKED.items():
            verb, path = route.split(" ")
            problem(await http.request(verb, path, json=body), 403, "not_allowed")


@dataclass(frozen=True)
class OverLink:
    """A call with the fields that a gate reads."""

    credential: Credential | None = KEY
    caller_role: Role = Role.CLIENT


def gate(running_service: RunningService) -> tuple[Authorizer, list[tuple[str, Principal | None, str]]]:
    refused: list[tuple[str, Principal | None, str]] = []
    return Authorizer(
        running_service.callers.identify, lambda method, _visitor, who, error: refused.append((method, who, error.message))
    ), refused


@pytest.mark.parametrize(
    ("bounds", "method", "request_", "message"),
    [
        pytest.param(
            {"scopes": ("usage:read",)},
            gateway.process_inference_request,
            ProcessInferenceRequest(InferenceRequest(prompt="hi")),
            "the key 'laptop' lacks the scope inference:execute",
            id="a scope that the key lacks",
        ),
        pytest.param(
            {"scopes": ("*",)},
            ledger.verify_ledger,
            ledger.VerifyLedger(),
            "ada is no administrator",
            id="all scopes of a user aren't an administrator's",
        ),
        pytest.param(
            {"role": UserRole.ADMIN, "scopes": ("inference:execute", "usage:read")},
            ledger.verify_ledger,
            ledger.VerifyLedger(),
            "the key 'laptop' lacks the scope *",
            id="an administrator's live key can't administer",
        ),
        pytest.param(
            {"networks": ("0.0.0.0/0", "::/0")},
            usage_report.list_requests,
            usage_report.ListRequests(),
            "this key is bound to networks, but this connection shows no address",
            id="even where every network is allowed",
        ),
    ],
)
async def test_a_refused_key_gets_the_reason_over_rpc(
    running_service: RunningService, bounds: dict[str, Any], method: Any, request_: msgspec.Struct, message: str
) -> None:
    caller = bind(running_service, **bounds)
    access_gate, refused = gate(running_service)
    with pytest.raises(errors.NotAllowed) as caught:
        await access_gate.admit(method, request_, OverLink())
    assert caught.value.message == message
    assert caught.value.hint
    assert refused == [(method.name, caller, message)], "the refusal is in the audit log"


async def test_the_limits_of_a_key_inside_the_request_apply_too(running_service: RunningService) -> None:
    bind(running_service, scopes=("usage:read",))
    access_gate, _ = gate(running_service)
    request = ProcessInferenceRequest(InferenceRequest(prompt="hi"), gateway.Auth(KEY))
    with pytest.raises(errors.NotAllowed):
        await access_gate.admit(gateway.process_inference_request, request, OverLink(None))


# --- networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("networks", "address", "is_let_in"),
    [
        pytest.param(("192.0.2.0/24",), "192.0.2.255", True, id="inside the network"),
        pytest.param(("192.0.2.0/24",), "192.0.3.0", False, id="outside the network"),
        pytest.param(("198.51.100.7/32", "192.0.2.0/24"), "192.0.2.1", True, id="in one of them"),
        pytest.param(("192.0.2.7",), "192.0.2.7", True, id="a single address"),
        pytest.param(("192.0.2.7",), "192.0.2.8", False, id="the next address"),
        pytest.param(("192.0.2.0/24",), "::ffff:192.0.2.1", True, id="IPv4-mapped IPv6 address"),
        pytest.param(("192.0.2.0/24",), "::ffff:192.0.3.1", False, id="IPv4-mapped IPv6 address outside"),
        pytest.param(("::/0",), "192.0.2.1", False, id="all of IPv6 doesn't include IPv4"),
        pytest.param(("::/0",), "::ffff:192.0.2.1", False, id="all of IPv6 doesn't include IPv4-mapped"),
        pytest.param(("0.0.0.0/0",), "2001:db8::1", False, id="all of IPv4 doesn't include IPv6"),
        pytest.param(("2001:db8::/32",), "2001:db8:ffff::1", True, id="IPv6"),
        pytest.param(("2001:db8::/32",), "2001:db9::1", False, id="IPv6 outside"),
        pytest.param(("fe80::/10",), "fe80::1%eth0", True, id="with a zone index"),
        pytest.param(("0.0.0.0/0", "::/0"), "not an address", False, id="not an address"),
        pytest.param(("0.0.0.0/0", "::/0"), "", False, id="an empty address"),
        pytest.param((), "not an address", True, id="a key without networks is valid everywhere"),
    ],
)
async def test_which_networks_a_key_may_be_used_from(
    running_service: RunningService, networks: tuple[str, ...], address: str, *, is_let_in: bool
) -> None:
    bind(running_service, networks=networks)
    async with client(running_service, address) as http:
        answer = await http.get("/v1/models")
    if is_let_in:
        assert answer.status_code == 200, answer.text
        return
    error = problem(answer, 403, "not_allowed")
    assert "this key" in error["message"]
    assert "networks" in error["hint"] or "HTTP API" in error["hint"]


async def test_an_overlong_address_is_truncated_in_the_error(running_service: RunningService) -> None:
    bind(running_service, networks=("192.0.2.0/24",))
    async with client(running_service, "x" * 10_000) as http:
        assert len(problem(await http.get("/v1/models"), 403, "not_allowed")["message"]) < 200


@asynccontextmanager
async def served(
    running_service: RunningService, hop_secret: str | None = None, **settings: Any
) -> AsyncIterator[Callable[..., Awaitable[httpx.Response]]]:
    """Run the gateway's own server; yield a function that calls it from any local address."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        server = http_server.HttpServer(
            client_address.ClientAddress(running_service.app(), hop_secret),
            sock,
            NodeSettings(node_key_file=Path("/nowhere"), **settings),
        )

        async def ask(source: str, headers: list[tuple[str, str]]) -> httpx.Response:
            transport = httpx.AsyncHTTPTransport(local_address=source)
            async with httpx.AsyncClient(base_url=url, transport=transport) as http:
                return await http.get("/v1/models", headers=[*BEARER.items(), *headers])

        async with asyncio.TaskGroup() as tasks, asyncio.timeout(30):
            tasks.create_task(server.run())
            yield ask
            server.stop()


PROXY, STRANGER = "127.0.0.1", "127.0.0.77"
FORWARDED, HOP = "X-Forwarded-For", client_address.SECRET.decode()


@pytest.mark.parametrize(
    ("source", "claims", "is_let_in"),
    [
        pytest.param(PROXY, ["192.0.2.7"], True, id="a trusted proxy"),
        pytest.param(PROXY, ["198.51.100.7"], False, id="a trusted proxy, outside the network"),
        pytest.param(STRANGER, ["192.0.2.7"], False, id="an untrusted proxy"),
        pytest.param(PROXY, ["192.0.2.7, 198.51.100.7"], False, id="a part that the client sent is ignored"),
        pytest.param(PROXY, ["192.0.2.7", "198.51.100.7"], False, id="a header that the client sent is ignored"),
        pytest.param(PROXY, ["198.51.100.7, 192.0.2.7"], True, id="the last part is the proxy's"),
        pytest.param(PROXY, ["::ffff:192.0.2.7"], True, id="an IPv4-mapped IPv6 address"),
        pytest.param(PROXY, ["nonsense"], False, id="nonsense"),
        pytest.param(PROXY, [], False, id="no header: the proxy's own address counts"),
    ],
)
async def test_which_proxies_are_trusted_for_the_client_address(
    running_service: RunningService, source: str, claims: list[str], *, is_let_in: bool
) -> None:
    bind(running_service, networks=("192.0.2.0/24",))
    async with served(running_service, trusted_proxies=(PROXY,)) as ask:
        answer = await ask(source, [(FORWARDED, claim) for claim in claims])
    assert answer.status_code == (200 if is_let_in else 403), answer.text


@pytest.mark.parametrize("source", ["127.0.0.1", STRANGER])
async def test_without_trusted_proxies_no_proxy_is_trusted_not_even_loopback(running_service: RunningService, source: str) -> None:
    bind(running_service, networks=("192.0.2.0/24",))
    async with served(running_service) as ask:
        problem(await ask(source, [(FORWARDED, "192.0.2.7")]), 403, "not_allowed")


HOP_SECRET = "s" * 32


@pytest.mark.parametrize(
    ("headers", "is_let_in"),
    [
        pytest.param([(FORWARDED, "192.0.2.7"), (HOP, HOP_SECRET)], True, id="web is trusted from any address"),
        pytest.param([(FORWARDED, "198.51.100.7"), (HOP, HOP_SECRET)], False, id="web is trusted, outside the network"),
        pytest.param([(FORWARDED, "192.0.2.7"), (HOP, "t" * 32)], False, id="a wrong secret"),
        pytest.param([(FORWARDED, "192.0.2.7"), (HOP, "")], False, id="an empty secret"),
        pytest.param([(FORWARDED, "192.0.2.7"), (HOP, HOP_SECRET), (HOP, "t" * 32)], False, id="two secrets"),
        pytest.param([(FORWARDED, "192.0.2.7, 192.0.2.7"), (HOP, HOP_SECRET)], False, id="web sends only one address"),
        pytest.param([(HOP, HOP_SECRET)], False, id="no address: web's own counts"),
    ],
)
async def test_web_authenticates_its_hop_with_a_secret(
    running_service: RunningService, headers: list[tuple[str, str]], *, is_let_in: bool
) -> None:
    bind(running_service, networks=("192.0.2.0/24",))
    async with served(running_service, HOP_SECRET) as ask:
        answer = await ask(STRANGER, headers)
    assert answer.status_code == (200 if is_let_in else 403), answer.text


async def test_a_gateway_without_the_secret_trusts_no_hop(running_service: RunningService) -> None:
    bind(running_service, networks=("192.0.2.0/24",))
    async with served(running_service) as ask:
        problem(await ask(STRANGER, [(FORWARDED, "192.0.2.7"), (HOP, "")]), 403, "not_allowed")


@pytest.mark.parametrize("source", [PROXY, STRANGER])
async def test_other_headers_do_not_change_the_client_address(running_service: RunningService, source: str) -> None:
    bind(running_service, networks=("192.0.2.0/24",))
    names = ("X-Real-IP", "Forwarded", "True-Client-IP", "CF-Connecting-IP", "X-Client-IP")
    async with served(running_service) as ask:
        problem(await ask(source, [(name, "for=192.0.2.7" if name == "Forwarded" else "192.0.2.7") for name in names]), 403, "not_allowed")


@pytest.mark.parametrize(("trusted", "is_let_in"), [(("127.0.0.64/26",), True), ((STRANGER,), True), (("127.0.0.128/26",), False)])
async def test_a_trusted_proxy_from_the_settings_is_used(
    running_service: RunningService, trusted: tuple[str, ...], *, is_let_in: bool
) -> None:
    """Web, or a proxy with TLS, may run in another container."""
    bind(running_service, networks=("192.0.2.0/24",))
    async with served(running_service, trusted_proxies=trusted) as ask:
        answer = await ask(STRANGER, [(FORWARDED, "192.0.2.7")])
    assert answer.status_code == (200 if is_let_in else 403), answer.text


async def test_uvicorns_environment_variable_trusts_no_proxy(running_service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    """With this variable, uvicorn would interpret the header."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    bind(running_service, networks=("192.0.2.0/24",))
    async with served(running_service) as ask:
        problem(await ask(STRANGER, [(FORWARDED, "192.0.2.7")]), 403, "not_allowed")
