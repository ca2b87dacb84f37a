"""Many hostile requests: none reaches a worker, and none causes an internal error."""

import asyncio
import contextlib
import itertools
import json
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.gateway.http_api import request_bodies, tolerant_json
from services.gateway.http_api.http_app import HttpApp
from services.gateway.http_api.tolerant_json import Ignored
from services.gateway.openai_api import anthropic_request
from services.gateway.openai_api import chat_request as openai_chat
from services.gateway.openai_api import completion_request as openai_completions
from services.gateway.openai_api import response_request as openai_responses
from services.gateway.requests import request_validation
from shared import errors
from shared.access_rules import Audience
from shared.api.gateway import InferenceRequest
from shared.rpc import bodies
from tests import tiers
from tests.services.gateway import openai_clients
from tests.services.gateway.fakes import KEY, RunningService

HI: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]},
}
Read = Callable[[bytes], tuple[InferenceRequest, ...]]
READ: dict[str, Read] = {
    "/v1/chat/completions": lambda body: (openai_chat.to_request(tolerant_json.read(body, openai_chat.DIALECT, Ignored())),),
    "/v1/completions": lambda body: openai_completions.to_requests(tolerant_json.read(body, openai_completions.DIALECT, Ignored())),
    "/v1/responses": lambda body: (openai_responses.to_request(tolerant_json.read(body, openai_responses.DIALECT, Ignored())),),
    "/v1/messages": lambda body: (anthropic_request.to_request(tolerant_json.read(body, anthropic_request.DIALECT, Ignored())),),
}


# --- paths that are decoded differently ------------------------------------------------------------------------------------

HEADERS = (
    "", "X-Forwarded-Host: localhost\r\n", "X-Forwarded-For: 127.0.0.1\r\n", "X-Original-URL: /docs\r\n", "X-Rewrite-URL: /docs\r\n",
    "Forwarded: for=127.0.0.1;host=localhost\r\n", "X-Forwarded-Prefix: /docs\r\n", "X-HTTP-Method-Override: GET\r\n",
    f"X_API_KEY: {KEY}\r\n", "X-Forwarded-User: admin\r\n",
)  # fmt: skip
HOSTS = ("gateway", "localhost", "127.0.0.1", "gateway/docs?", "a@b")


def spellings(path: str) -> Iterator[str]:
    head, _, tail = path.rpartition("/")
    yield from (path, "/" + path, path + "/", path + "//", f"{head}//{tail}", f"{head}/./{tail}", f"{head}/x/../{tail}", path + ";x")
    yield from (path + "%00", path + "%2f", f"{head}%2f{tail}", f"{head}/%2e/{tail}", path.upper(), path + "?x=/docs", path + "%20")
    yield from (f"{head}/%{ord(tail[0]):x}{tail[1:]}", f"{head}/%25{ord(tail[0]):x}{tail[1:]}", f"http://gateway{path}", f"/docs/..{path}")


async def test_all_spellings_of_each_route_need_a_credential(running_service: RunningService) -> None:
    app = running_service.app()
    routes = [route for by_verb in app._routes.values() for route in by_verb.values() if route.access.who is Audience.PERSON]
    # Two of the hundred /rpc methods, which all take the same path: one runs here, and one is forwarded.
    some = {"/rpc/gateway.processInferenceRequest", "/rpc/auth.listApiKeys"}
    for route in (one for one in routes if not one.path.startswith("/rpc/") or one.path in some):
        path = route.path.replace("{model}", "smollm2")
        variants = random.Random(1).sample(list(itertools.product(spellings(path), HEADERS, HOSTS)), tiers.volume(500))
        statuses = {await _status(app, route.verb, *variant) for variant in variants}
        assert 401 in statuses
        assert statuses <= {401, 404, 405}, (route.path, statuses)
    assert (running_service.rpc.called, running_service.worker.received) == ([], [])


async def _status(app: HttpApp, verb: str, path: str, header: str, host: str) -> int:
    """Send a request to the application as uvicorn does."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    name, _, value = header.rstrip().partition(": ")
    headers = [(b"host", host.encode()), (b"content-type", b"application/json"), (name.lower().encode(), value.encode())]
    scope = {"type": "http", "method": verb, "path": unquote(path.partition("?")[0]), "raw_path": path.encode(), "headers": headers}
    await app(scope, receive, send)
    return int(sent[0]["status"])


async def test_every_spelling_needs_a_credential_over_a_real_connection(running_service: RunningService) -> None:
    async with openai_clients.connected(running_service) as client, httpx.AsyncClient() as http:
        for path in (found for found in spellings("/v1/models/smollm2") if found.startswith("/")):
            target = httpx.URL(scheme="http", host="127.0.0.1", port=client.base_url.port, raw_path=path.encode())
            assert (await http.get(target)).status_code in {400, 401, 404}, path


# --- bombs ----------------------------------------------------------------------------------------------------------------


def test_a_deeply_nested_5_kb_body_costs_a_millisecond_and_a_megabyte() -> None:
    bombs = [b"[" * 5000, b'{"a":' * 1000, b'{"messages":' + b"[" * 2400 + b"]" * 2400 + b"}", b'{"tools":[' + b'{"a":' * 1000]
    tracemalloc.start()
    for bomb in bombs:
        for read in READ.values():
            with pytest.raises(
                errors.BadRequest,
                match=r"the body must be a JSON object:|the body is not valid JSON: nested too deeply",
            ):
                read(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
    for bomb in bombs:
        # CPU time of this thread: other programs don't count.
        assert min(_seconds(bomb) for _ in range(20)) < 0.001


def _seconds(bomb: bytes) -> float:
    began = time.thread_time()
    try:
        request_bodies.read_object(bomb)
    except errors.BadRequest:
        pass
    return time.thread_time() - began


@pytest.mark.parametrize("path", HI)
async def test_the_character_that_no_store_takes_is_refused_in_every_body(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.post(path, json=HI[path] | {"user": "a\0b"})
    assert (answer.status_code, "U+0000" in answer.text) == (400, True)


@pytest.mark.parametrize("path", HI)
async def test_too_many_of_anything_is_a_4xx(http: httpx.AsyncClient, running_service: RunningService, path: str) -> None:
    many: dict[str, list[dict[str, Any]]] = {
        "/v1/chat/completions": [
            {"messages": [{"role": "user", "content": "x"}] * 10_001},
            {"messages": [{"role": "user", "content": ""}] * 20_000},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 20_000}]},
            {"tools": [{"type": "function", "function": {"name": f"f{number}"}} for number in range(513)]},
            {"tools": [{"type": "function", "function": {"name": "f"}}] * 2},
            {"tools": [{"type": "function", "function": {"name": "f" * 65}}]},
            {"logit_bias": {str(number): 1 for number in range(301)}},
            {"stop": ["x"] * 10_000},
            {"metadata": 5},
        ],
        "/v1/completions": [{"prompt": ["x"] * 100_000}, {"logit_bias": {str(number): 1 for number in range(50_000)}}],
        "/v1/responses": [
            {"input": [{"role": "user", "content": "x"}] * 40_001},
            {
                "input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": ""}] * 5000
                + [{"role": "robot", "content": ""}]
            },
            {"tools": [{"type": "function", "name": f"f{number}"} for number in range(513)]},
            {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function", "name": f"f{number}"} for number in range(513)]}]},
        ],
        "/v1/messages": [
            {"messages": [{"role": "user", "content": "x"}] * 10_001},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 20_000}]},
            {"tools": [{"name": f"f{number}", "input_schema": {}} for number in range(513)]},
            {"stop_sequences": ["x"] * 10_000},
        ],
    }
    for body in many[path]:
        answer = await http.post(path, json={**HI[path], **body})
        assert answer.status_code == 400, answer.text[:300]
    assert not running_service.worker.received


# --- numbers --------------------------------------------------------------------------------------------------------------

_EDGES = (
    -1,
    0,
    1,
    2,
    4,
    5,
    20,
    21,
    1000,
    1001,
    32768,
    32769,
    2**31 - 1,
    2**31,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    -(2**63),
    0.1,
    1.5,
    2.0,
)
_ODD = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e308", "5e-324", '"1"', '""', "null", "[]", "{}", "[1]", "true", "false",
    '{"a":1}', "-0", "-0.0", "1.0", "1e0", "9" * 400, "0." + "9" * 400, '"\\ud800"', "01", "+1", ".5", "1.", "0x1", "1_000",
)  # fmt: skip
NUMBERS = {
    "/v1/chat/completions": (
        *("temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "seed", "n", "frequency_penalty"),
        *("presence_penalty", "repeat_penalty", "top_logprobs", "n_discard", "stop", "logit_bias", "stream", "model"),
    ),
    "/v1/completions": ("temperature", "top_p", "max_tokens", "seed", "n", "best_of", "logprobs", "frequency_penalty", "n_keep", "echo"),
    "/v1/responses": ("temperature", "top_p", "max_output_tokens", "top_logprobs", "max_tool_calls", "n", "stream"),
    "/v1/messages": ("temperature", "top_p", "top_k", "max_tokens", "stream", "stop_sequences"),
}


def _values() -> Iterator[str]:
    yield from _ODD
    draw = random.Random(7)
    for edge in _EDGES:
        yield from (json.dumps(edge), json.dumps(edge + 1e-9), json.dumps(float(edge)), json.dumps(-edge), json.dumps(edge * 1.0000001))
    while True:
        yield json.dumps(
            draw.choice((draw.uniform(-3, 3), draw.randint(-(2**70), 2**70), draw.uniform(-1, 1) * 10 ** draw.randint(0, 300)))
        )


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, names in NUMBERS.items() for name in names])
def test_each_value_of_a_parameter_is_in_range_or_refused(path: str, name: str) -> None:
    taken, statuses = 0, set()
    # The first 150 values are fixed.
    for value in itertools.islice(_values(), tiers.volume(2000)):
        body = json.dumps({**HI[path], "logprobs": True} if name == "top_logprobs" and "chat" in path else HI[path])
        try:
            found = READ[path](f'{body[:-1]}, "{name}": {value}}}'.encode())
            for request in found:
                request_validation.admit(request)
        except errors.AimeshError as error:
            statuses.add(error.status)
            continue
        taken += 1
        for request in found:
            # Within the bounds of the contract's types, which a worker checks again while it decodes.
            bodies.decode_request(InferenceRequest, bodies.encode(request), name)
    assert statuses <= {400, 413}
    # Null is the same as absent.
    assert taken > 0


# --- addresses ------------------------------------------------------------------------------------------------------------

_ADDRESSES = (
    "http://127.0.0.1:{port}/", "http://2130706433:{port}/", "http://0177.0.0.1:{port}/", "http://0x7f.1:{port}/", "http://[::1]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/", "http://localhost:{port}\\@example.com/", "http://example.com@127.0.0.1:{port}/",
    "//127.0.0.1:{port}", "http://169.254.169.254/latest/meta-data/", "file:///etc/passwd", "gopher://127.0.0.1:{port}/_x", "http://127.1:{port}/",
)  # fmt: skip
_PLACES: tuple[Callable[[str], dict[str, Any]], ...] = (
    lambda url: {"api_base": url},
    lambda url: {"base_url": url},
    lambda url: {"callback": url},
    lambda url: {"webhook": url},
    lambda url: {"user_config": {"model_list": [{"litellm_params": {"api_base": url}}]}},
    lambda url: {"tools": [{"type": "mcp", "server_label": "x", "server_url": url}]},
    lambda url: {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]},
    lambda url: {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": url, "format": "wav"}}]}]},
    lambda url: {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": url}}]}]},
    lambda url: {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]},
    lambda url: {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": url}]}]},
    lambda url: {"web_search_options": {"url": url}},
    lambda url: {"model": {"url": url}},
    lambda url: {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}, "url": url}},
    lambda url: {"prompt": {"url": url}},
    lambda url: {"stream_options": {"url": url}},
)


async def test_addresses_in_any_field_are_never_called(http: httpx.AsyncClient, running_service: RunningService) -> None:
    called = 0

    async def canary(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal called
        called += 1
        writer.close()

    listener = await asyncio.start_server(canary, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    found = list(itertools.product(HI, _ADDRESSES, _PLACES))
    for path, address, place in random.Random(1).sample(found, tiers.volume(len(found))):
        answer = await http.post(path, json={**HI[path], **place(address.format(port=port))})
        # Unknown fields and tools are ignored, until the account's limit refuses their requests.
        assert answer.status_code in {200, 400, 429}, (path, answer.text)
    assert called == 0
    # Ids may have the digits, too.
    assert f":{port}" not in repr(running_service.worker.received)
    listener.close()
    await listener.wait_closed()


# --- random fields --------------------------------------------------------------------------------------------------------

_names = st.sampled_from(
    [
        *("messages", "prompt", "input", "role", "content", "type", "text", "tools", "tool_calls", "function", "name", "parameters", "n"),
        *("tool_choice", "arguments", "call_id", "output", "user", "function_call", "message", "input_text", "json_schema", "schema", "id"),
        *(
            "response_format",
            "stream",
            "stream_options",
            "include",
            "logprobs",
            "logit_bias",
            "stop",
            "metadata",
            "text",
            "format",
            "max_tokens",
        ),
    ]
)
_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5) | _names,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_names, inner, max_size=5),
    max_leaves=20,
)


@settings(deadline=None)
@given(st.sampled_from(sorted(READ)), st.dictionaries(_names, _anything, max_size=6))
def test_any_input_is_a_valid_request_or_a_4xx(path: str, extra: dict[str, Any]) -> None:
    with contextlib.suppress(errors.BadRequest, errors.TooLarge):
        for request in READ[path](json.dumps({**HI[path], **extra}).encode()):
            request_validation.admit(request)


def test_the_last_of_two_equal_names_wins() -> None:
    (request,) = READ["/v1/completions"](b'{"prompt": "first", "temperature": 0, "prompt": "last", "temperature": 1}')
    assert (request.prompt, request.temperature) == ("last", 1)
