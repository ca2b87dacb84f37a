"""POST /infer: the ASGI application, called like a server calls it, on the echo backend."""

import asyncio
import json
from collections.abc import AsyncIterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest

from services.inference.infer_http import InferHttp
from services.inference.service import InferenceService
from services.inference.settings import InferenceSettings
from shared.node.lifecycle import background
from tests.services.inference.standins import Node, until

TOKEN = "a-service-token"
HELLO = {"model": "echo", "prompt": "hello you"}


class Exchange:
    """One request and its response."""

    def __init__(self, body: bytes) -> None:
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        half = len(body) // 2
        self._messages.put_nowait({"type": "http.request", "body": body[:half], "more_body": True})
        self._messages.put_nowait({"type": "http.request", "body": body[half:]})
        self.sent: list[MutableMapping[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        return await self._messages.get()

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.sent.append(message)

    def disconnect(self) -> None:
        self._messages.put_nowait({"type": "http.disconnect"})

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def error(self) -> dict[str, str]:
        error: dict[str, str] = json.loads(self.body)["error"]
        return error

    @property
    def events(self) -> list[Any]:
        return [json.loads(line[6:]) for line in self.body.decode().split("\n\n") if line and line != "data: [DONE]"]


@pytest.fixture
async def app() -> AsyncIterator[InferHttp]:
    settings = InferenceSettings(node_key_file=Path("/nowhere/worker.nk"), backend="echo", service_token=TOKEN)
    node = Node()
    async with background() as node.tasks, InferenceService.open(settings, node) as service:
        yield service.asgi()


def scope(**changes: Any) -> dict[str, Any]:
    headers = [(b"authorization", f"Bearer {TOKEN}".encode()), (b"content-type", b"application/json; charset=utf-8")]
    return {"type": "http", "path": "/infer", "method": "POST", "client": ("127.0.0.1", 5), "headers": headers, **changes}


async def post(app: InferHttp, body: bytes | dict[str, Any] = HELLO, **changes: Any) -> Exchange:
    exchange = Exchange(body if isinstance(body, bytes) else json.dumps(body).encode())
    await app(scope(**changes), exchange.receive, exchange.send)
    return exchange


async def test_prompt_is_answered(app: InferHttp) -> None:
    answer = await post(app)
    assert answer.status == 200
    assert json.loads(answer.body) == {
        "text": "hello you",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4},
    }


async def test_chat_with_all_parameters_is_answered(app: InferHttp) -> None:
    chat = {"model": "echo", "messages": [{"role": "user", "content": "a b c"}], "max_tokens": 2, "temperature": 0}
    answer = await post(app, {**chat, "top_p": 1, "top_k": 5, "stop": "x", "seed": 1})
    assert json.loads(answer.body)["finish_reason"] == "length"


@pytest.mark.parametrize(
    "body",
    [
        {"model": "echo", "payload": "hello you"},
        {"model": "echo", "payload": {"prompt": "hello you", "max_tokens": 9}},
        {"model": "echo", "payload": {"messages": [{"role": "user", "content": "hello you"}], "maxTokens": 9}},
        {"model": "echo", "prompt": "hello you", "maxTokens": 9, "topP": 1},
    ],
)
async def test_payloads_and_both_spellings_are_answered(app: InferHttp, body: dict[str, Any]) -> None:
    answer = await post(app, body)
    assert (answer.status, json.loads(answer.body)["text"]) == (200, "hello you")


async def test_a_payload_can_be_streamed(app: InferHttp) -> None:
    answer = await post(app, {"model": "echo", "payload": {"prompt": "hello you", "stream": True}})
    assert [event["text"] for event in answer.events] == ["hello", " you", ""]


async def test_thoughts_come_apart_from_the_text(app: InferHttp) -> None:
    thinking = {"model": "echo", "prompt": "<think> let me </think> Hi", "reasoning_effort": "low"}
    whole = json.loads((await post(app, thinking)).body)
    assert (whole["reasoning"], whole["text"]) == (" let me", " Hi")
    events = (await post(app, {**thinking, "stream": True})).events
    assert [(event.get("reasoning"), event["text"]) for event in events] == [(" let", ""), (" me", ""), (None, " Hi"), (None, "")]
    assert (await post(app, {**thinking, "reasoning_effort": "most"})).status == 400


@pytest.mark.parametrize("body", [{"input": ["hello you", "again"]}, {"payload": {"input": ["hello you", "again"]}}])
async def test_embeddings_are_answered_in_order(app: InferHttp, body: dict[str, Any]) -> None:
    whole = json.loads((await post(app, {"model": "echo", **body})).body)
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}
    (alone,) = json.loads((await post(app, {"model": "echo", "input": "again"})).body)["embeddings"]
    assert (len(whole["embeddings"]), whole["embeddings"][1]) == (2, alone)
    (cut,) = json.loads((await post(app, {"model": "echo", "payload": {"input": "again", "dimensions": 3}})).body)["embeddings"]
    assert len(cut) == 3


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"payload": {"prompt": "hi"}, "max_tokens": 5}, "max_tokens belongs into payload"),
        ({"payload": {"prompt": "hi", "model": "other"}}, "without model"),
        ({"payload": 5}, "payload must be a prompt, or an object"),
        ({"payload": {"prompt": "hi", "nonsense": 1}}, "nonsense"),
        ({"prompt": "hi", "maxTokens": 1, "max_tokens": 2}, "both spellings"),
        ({"payload": {"prompt": "hi", "maxTokens": 1, "max_tokens": 2}}, "both spellings"),
        ({"input": "hi", "prompt": "hi"}, "send only model and dimensions with input"),
        ({"input": "hi", "stream": True}, "send only model and dimensions with input"),
        ({"prompt": "hi", "dimensions": 3}, "send only model and dimensions with input"),
        ({"input": ["hi", 5]}, "input must not mix token ids"),
        ({"input": []}, "input is empty"),
    ],
)
async def test_payloads_and_inputs_that_say_two_things_are_refused(app: InferHttp, body: dict[str, Any], why: str) -> None:
    answer = await post(app, {"model": "echo", **body})
    assert (answer.status, answer.error["code"]) == (400, "bad_request")
    assert why in answer.error["message"]


async def test_stream_comes_in_pieces_and_ends_with_the_usage(app: InferHttp) -> None:
    answer = await post(app, {**HELLO, "stream": True})
    assert answer.headers[b"content-type"].startswith(b"text/event-stream")
    assert [event["text"] for event in answer.events] == ["hello", " you", ""]
    assert answer.events[-1]["usage"]["total_tokens"] == 4
    assert answer.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        pytest.param({"path": "/other"}, 404, "not_found", id="another path"),
        pytest.param({"method": "GET"}, 405, "method_not_allowed", id="another method"),
        pytest.param({"client": ("10.0.0.9", 5)}, 403, "not_allowed", id="another machine"),
        pytest.param({"client": None}, 403, "not_allowed", id="a client without an address"),
        pytest.param({"headers": []}, 401, "not_authenticated", id="no token"),
        pytest.param({"headers": [(b"authorization", b"Bearer nope")]}, 401, "not_authenticated", id="a wrong token"),
        pytest.param({"headers": [(b"authorization", b"Bearer \xff\xfe")]}, 401, "not_authenticated", id="a token of bytes"),
        pytest.param(
            {"headers": [(b"authorization", f"Bearer {TOKEN}".encode()), (b"content-type", b"text/plain")]},
            415,
            "unsupported_media_type",
            id="another content type",
        ),
    ],
)
async def test_unauthorized_requests(app: InferHttp, changes: dict[str, Any], status: int, code: str) -> None:
    answer = await post(app, **changes)
    assert (answer.status, answer.error["code"]) == (status, code)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        pytest.param(b"", 400, "not valid JSON", id="nothing"),
        pytest.param(b"{", 400, "not valid JSON", id="half of it"),
        pytest.param(b'{"model": "echo", "prompt": "\xff"}', 400, "", id="bytes that are no text"),
        pytest.param(b"[" * 100_000, 400, "", id="too deep"),
        pytest.param(b'{"model": "echo", "prompt": 1}', 400, "prompt", id="a wrong type"),
        pytest.param(b'{"model": "echo", "prompt": "a", "temperature": NaN}', 400, "not valid JSON", id="NaN"),
        pytest.param(b'{"model": "echo", "prompt": "a", "temperature": 1e999}', 400, "", id="a number beyond all"),
        pytest.param({**HELLO, "temperature": -1}, 400, "temperature", id="a negative number"),
        pytest.param({**HELLO, "seed": 2**70}, 400, "", id="a huge seed"),
        pytest.param({**HELLO, "max_token": 1}, 400, "max_token", id="an unknown field"),
        pytest.param({"model": "echo"}, 400, "prompt or messages", id="no prompt"),
        pytest.param({**HELLO, "messages": [{"role": "user", "content": "a"}]}, 400, "prompt or messages", id="both"),
        pytest.param({"model": "echo", "prompt": ""}, 400, "empty", id="an empty prompt"),
        pytest.param({"model": "gpt", "prompt": "a"}, 404, "echo", id="an unknown model"),
        pytest.param(b"x" * (1024 * 1024 + 1), 413, "1048576", id="too large"),
    ],
)
async def test_bad_input_gives_an_openai_error_object(app: InferHttp, body: bytes | dict[str, Any], status: int, words: str) -> None:
    answer = await post(app, body)
    assert answer.status == status
    assert set(answer.error) == {"message", "type", "code", "param"}
    assert answer.error["type"] == "invalid_request_error"
    assert words in answer.error["message"]


async def test_stream_that_cannot_start_has_the_status_of_its_error(app: InferHttp) -> None:
    answer = await post(app, {**HELLO, "model": "gpt", "stream": True})
    assert (answer.status, answer.error["code"]) == (404, "unknown_model")


async def test_without_a_token_setting_the_api_is_off_and_says_how_to_enable_it() -> None:
    settings = InferenceSettings(node_key_file=Path("/nowhere/worker.nk"), backend="echo")
    node = Node()
    async with background() as node.tasks, InferenceService.open(settings, node) as service:
        answer = await post(service.asgi())
    assert answer.status == 404
    assert "SERVICE_TOKEN_FILE" in answer.error["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_disconnected_client_stops_its_generation(stream: bool) -> None:
    settings = InferenceSettings(node_key_file=Path("/nowhere/worker.nk"), backend="echo", service_token=TOKEN, echo_token_ms=10_000)
    node = Node()
    async with background() as node.tasks, InferenceService.open(settings, node) as service, asyncio.TaskGroup() as tasks:
        exchange = Exchange(json.dumps({**HELLO, "stream": stream}).encode())
        tasks.create_task(service.asgi()(scope(), exchange.receive, exchange.send))
        await until(lambda: node.offers[-1].load.running)
        exchange.disconnect()
        await until(lambda: not node.offers[-1].load.running)
    assert exchange.sent == []
