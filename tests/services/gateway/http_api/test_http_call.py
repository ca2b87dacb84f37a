"""Rules for every HTTP call: ids and heartbeats of streams, ambiguous headers, slow bodies."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import httpx
import pytest

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import http_app, http_call, response_formats
from services.gateway.http_api.answer_delivery import HttpReader
from services.gateway.http_api.http_app import HttpAccess, HttpApp, HttpRoute
from services.gateway.http_api.http_call import HttpCall
from services.gateway.http_api.response_formats import AnswerFormat, ServerSentEvent
from services.gateway.http_api.rest_format import RestFormat
from services.gateway.openai_api.anthropic_format import MessagesFormat
from services.gateway.openai_api.anthropic_request import MessagesBody
from services.gateway.openai_api.chat_format import ChatFormat
from services.gateway.openai_api.chat_request import ChatBody
from services.gateway.openai_api.completion_format import CompletionFormat
from services.gateway.openai_api.completion_request import CompletionBody
from services.gateway.openai_api.response_format import ResponsesFormat
from services.gateway.openai_api.response_request import ResponseBody
from services.gateway.requests.repeated_request import RepeatedRequest
from shared import access_table, context, errors
from shared.access_rules import AccessRule
from shared.api import inference
from shared.api.gateway import InferenceRequest, Rest
from shared.api.generation import GenerationEnd, Usage
from shared.context import new_request_id
from shared.types import FinishReason, RequestId
from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY, FakeWorker, RunningService
from tests.services.gateway.http_answers import BEARER
from tests.stopwatch import HANG_SECONDS
from tests.testnet import until

#: Each route with a streamed answer, and a request body for it.
STREAMS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "stream": True},
    "/v1/completions": {"prompt": "hi", "stream": True},
    "/v1/responses": {"input": "hi", "stream": True},
    "/v1/messages": {"max_tokens": 5, "messages": [{"role": "user", "content": "hi"}], "stream": True},
    "/api/inference": {"prompt": "hi", "stream": True},
    "/api/infer": {"payload": {"prompt": "hi", "stream": True}},
}


# --- ids ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", STREAMS)
async def test_the_last_event_of_each_chunk_has_an_id(http: httpx.AsyncClient, running_service: RunningService, path: str) -> None:
    answer = await http.post(path, json=STREAMS[path])
    request_id = running_service.store.only_row.id
    found = [line.removeprefix("id: ") for line in answer.text.split("\n") if line.startswith("id: ")]
    assert found == [f"{response_formats.event_id_start(request_id)}{number}" for number in (1, 2, 3)]
    blocks = [block for block in answer.text.split("\n\n") if "id: " in block]
    for block, word in zip(blocks, ("Hello", " world", "!"), strict=True):
        assert json.dumps(word)[1:-1] in block, "every word is sent with an event id"


def test_an_event_id_names_the_rest_of_the_answer() -> None:
    request_id = new_request_id()
    assert response_formats.read_event_id(f"{response_formats.event_id_start(request_id)}17") == Rest(17)


@pytest.mark.parametrize("wrong", ["", "17", "x" * 32 + "-1", "0" * 32, "0" * 32 + "--1", "0" * 32 + "-1 ", "0" * 32 + "-1" + "0" * 9])
def test_an_invalid_event_id_is_a_bad_request(wrong: str) -> None:
    with pytest.raises(BadField, match="Last-Event-ID"):
        response_formats.read_event_id(wrong)


FORMS: dict[str, Callable[[], AnswerFormat]] = {
    "/v1/chat/completions": lambda: ChatFormat(ChatBody(messages=())),
    "/v1/completions": lambda: CompletionFormat(CompletionBody(prompt="hi", echo=True)),
    "/v1/responses": lambda: ResponsesFormat(ResponseBody(input="hi")),
    "/v1/messages": lambda: MessagesFormat(MessagesBody(messages=(), max_tokens=5)),
    "/api/inference": RestFormat,
}


@pytest.mark.parametrize("path", FORMS)
@pytest.mark.parametrize("after", range(5))
async def test_a_resumed_stream_gets_the_rest_without_duplicates(running_service: RunningService, path: str, after: int) -> None:
    principal, request = fakes.OWNER, InferenceRequest(prompt="hi")

    async def read_stream(after: int) -> tuple[RequestId, bytes]:
        context.start()
        reader = Reader(path, {})
        call = HttpCall(reader.scope, reader.receive, reader.send, new_request_id())
        repeat = RepeatedRequest(key="k", rest=Rest(after) if after else None)
        sent = HttpReader(call, FORMS[path](), stream=True, after=after)
        await running_service.runs.answer(principal, request, sent, seconds=5, repeat=repeat, whole=True)
        return sent.head.request_id, b"".join(message.get("body", b"") for message in reader.sent)

    whole_id, whole = await read_stream(0)
    mark = f"id: {response_formats.event_id_start(whole_id)}{after}\n".encode()
    if after == 0:
        expected = whole
    elif mark in whole:
        expected = whole.partition(mark)[2].partition(b"\n\n")[2]
    else:
        expected = b""
    assert await read_stream(after) == (whole_id, expected)
    assert len(running_service.worker.received) == 1


# --- heartbeats -----------------------------------------------------------------------------------------------------------


class Slow(FakeWorker):
    """Generates its first and second word when the test allows it."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = (asyncio.Event(), asyncio.Event())

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        for word, gate in zip(("one", "two"), self.gates, strict=True):
            await gate.wait()
            yield inference.Chunk(word, (1,))
        yield GenerationEnd(FinishReason.STOP, Usage(7, 2))


class Reader:
    """One raw ASGI call, so that a test sees each message when it is sent."""

    def __init__(self, path: str, body: dict[str, Any]) -> None:
        self.sent: list[dict[str, Any]] = []
        self.news = asyncio.Event()
        self._body = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
        headers = [(b"authorization", BEARER["authorization"].encode()), (b"content-type", b"application/json")]
        self.scope = {"type": "http", "method": "POST", "path": path, "headers": headers}

    async def receive(self) -> dict[str, Any]:
        if not self._body:
            await asyncio.Event().wait()
        return self._body.pop()

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        self.news.set()

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    async def until(self, seen: Callable[[str], bool]) -> None:
        async with asyncio.timeout(HANG_SECONDS):
            while not seen(self.text):
                self.news.clear()
                await self.news.wait()


@pytest.mark.parametrize("path", STREAMS)
async def test_an_idle_stream_gets_heartbeats(running_service: RunningService, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Slow()
    running_service.add_worker(1, worker, "smollm2")
    app = running_service.app()
    monkeypatch.setattr(http_app, "HEARTBEAT_SECONDS", 0.01)
    reader = Reader(path, STREAMS[path])
    serving = asyncio.create_task(app(reader.scope, reader.receive, reader.send))
    await reader.until(lambda text: text.count(": still here\n\n") >= 3)
    assert reader.sent[0]["status"] == 200
    worker.gates[0].set()
    await reader.until(lambda text: text.rpartition("one")[2].count(": still here\n\n") >= 3)
    worker.gates[1].set()
    await serving
    data = "".join(block for block in reader.text.split("\n\n") if not block.startswith(":"))
    assert "two" in data
    assert reader.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert sum(not message.get("more_body", True) for message in reader.sent) == 1


async def test_a_late_heartbeat_sends_nothing() -> None:
    reader = Reader("/", {})
    call = HttpCall(reader.scope, reader.receive, reader.send, new_request_id())
    call.expect_events(lambda _: ())
    await call.send_events((ServerSentEvent(b"x"),))
    await call.end_events()
    before = len(reader.sent)
    assert call.idle_seconds() is None
    await call.send_comment("still here")
    assert len(reader.sent) == before


async def test_an_unstreamed_answer_gets_no_heartbeats(running_service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Slow()
    running_service.add_worker(1, worker, "smollm2")
    app = running_service.app()
    monkeypatch.setattr(http_app, "HEARTBEAT_SECONDS", 0.005)
    reader = Reader("/v1/chat/completions", {**STREAMS["/v1/chat/completions"], "stream": False})
    serving = asyncio.create_task(app(reader.scope, reader.receive, reader.send))
    await asyncio.sleep(0.03)  # several heartbeat intervals
    assert reader.sent == []
    for gate in worker.gates:
        gate.set()
    await serving
    assert json.loads(reader.text)["choices"][0]["message"]["content"] == "onetwo"


class Failing(Slow):
    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        await self.gates[0].wait()
        raise errors.DeadlineExceeded("late")
        yield


@pytest.mark.parametrize("path", STREAMS)
async def test_a_failure_after_a_heartbeat_is_the_streams_last_event(
    running_service: RunningService, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Failing()
    running_service.add_worker(1, worker, "smollm2")
    app = running_service.app()
    monkeypatch.setattr(http_app, "HEARTBEAT_SECONDS", 0.01)
    reader = Reader(path, STREAMS[path])
    serving = asyncio.create_task(app(reader.scope, reader.receive, reader.send))
    await reader.until(lambda text: "still here" in text)
    worker.gates[0].set()
    await serving
    last = reader.text.strip().rpartition("data: ")[2]
    assert "late" in last
    assert "error" in json.loads(last) or json.loads(last)["type"] == "response.failed"


# --- disconnects ----------------------------------------------------------------------------------------------------------


class Leaving(Reader):
    """Its client disconnects right after the body."""

    def __init__(self) -> None:
        super().__init__("/", {})
        self.asked = 0

    async def receive(self) -> dict[str, Any]:
        self.asked += 1
        return self._body.pop() if self._body else {"type": "http.disconnect"}


async def _read_call(reader: Reader) -> HttpCall:
    call = HttpCall(reader.scope, reader.receive, reader.send, new_request_id())
    await call.read_body()
    return call


async def test_a_call_that_ends_soon_is_not_watched_and_leaves_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, timers = Leaving(), list[asyncio.TimerHandle]()
    call, loop = await _read_call(reader), asyncio.get_running_loop()
    call_later = loop.call_later

    def later(seconds: float, *what: Any, **more: Any) -> asyncio.TimerHandle:
        timers.append(call_later(seconds, *what, **more))
        return timers[-1]

    monkeypatch.setattr(loop, "call_later", later)
    tasks: set[asyncio.Task[Any]] = set()

    async def handle() -> None:
        await asyncio.sleep(0)
        tasks.update(asyncio.all_tasks())

    before = asyncio.all_tasks()
    await http_app.until_disconnect(call, handle())
    assert (tasks, reader.asked) == (before, 1), "no second task, and only the body was read"
    (timer,) = timers
    assert timer.cancelled()
    assert 0 < timer.when() - loop.time() <= http_app.WATCH_AFTER_SECONDS


async def test_a_client_that_left_before_the_watch_began_still_cancels_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_app, "WATCH_AFTER_SECONDS", 0.01)
    call, ended = await _read_call(Leaving()), list[BaseException]()

    async def handle() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            ended.append(error)
            raise

    task = asyncio.current_task()
    assert task is not None
    async with asyncio.timeout(HANG_SECONDS):
        with pytest.raises(errors.Cancelled, match="the client disconnected"):
            await http_app.until_disconnect(call, handle())
    assert (len(ended), call.disconnected) == (1, True)
    assert task.cancelling() == 0, "what follows the call is not canceled"


async def test_the_end_of_a_response_that_the_watch_sees_as_a_disconnect_cancels_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_app, "WATCH_AFTER_SECONDS", 0.0)
    reader = Leaving()
    call = await _read_call(reader)

    async def handle() -> None:
        await call.answer_bytes(b"all", b"text/plain")
        await until(lambda: call.disconnected)
        await asyncio.sleep(0)

    await http_app.until_disconnect(call, handle())
    assert (reader.asked, reader.text) == (2, "all")


@pytest.mark.parametrize(("size", "parts"), [(0, 1), (1, 1), (262_144, 1), (262_145, 2), (1_000_000, 4)])
async def test_a_long_answer_is_written_in_parts(size: int, parts: int) -> None:
    reader, body = Reader("/", {}), os.urandom(size)
    call = await _read_call(reader)
    await call.answer_bytes(body, b"application/octet-stream")
    written = [message["body"] for message in reader.sent if message["type"] == "http.response.body"]
    assert (b"".join(written), len(written)) == (body, parts)


@pytest.mark.parametrize("is_watched", [False, True])
async def test_a_canceled_call_is_not_taken_for_a_disconnect(monkeypatch: pytest.MonkeyPatch, is_watched: bool) -> None:
    monkeypatch.setattr(http_app, "WATCH_AFTER_SECONDS", 0.0 if is_watched else HANG_SECONDS)
    reader = Reader("/", {})
    call, watching = await _read_call(reader), asyncio.Event()

    async def handle() -> None:
        watching.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(http_app.until_disconnect(call, handle()))
    before = asyncio.all_tasks()
    await watching.wait()
    if is_watched:
        await until(lambda: asyncio.all_tasks() != before)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert asyncio.all_tasks() <= before, "the watch has ended"


# --- headers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "twice",
    [
        [(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")],
        [(b"x-api-key", KEY.encode()), (b"x-api-key", b"b")],
        [(b"content-type", b"application/json"), (b"content-type", b"text/plain")],
        [(b"idempotency-key", b"a"), (b"idempotency-key", b"b")],
        [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")],
    ],
)
async def test_ambiguous_headers_are_refused(running_service: RunningService, twice: list[tuple[bytes, bytes]]) -> None:
    reader = Reader("/v1/chat/completions", STREAMS["/v1/chat/completions"])
    reader.scope["headers"] = [*twice, *((name, value) for name, value in reader.scope["headers"] if name != twice[0][0])]
    await running_service.app()(reader.scope, reader.receive, reader.send)
    assert reader.sent[0]["status"] == 400
    assert not running_service.rpc.called
    assert not running_service.worker.received


@pytest.mark.parametrize("name", ["x_api_key", "Authorization_", "x-api-key_", "http_authorization", "x-forwarded-authorization"])
async def test_a_header_with_a_similar_name_is_ignored(running_service: RunningService, name: str) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(running_service.app()), base_url="http://gateway") as http:
        assert (await http.get("/v1/models", headers={name: f"Bearer {KEY}"})).status_code == 401


def _call(headers: list[tuple[bytes, bytes]]) -> HttpCall:
    async def nothing(*_: Any) -> Any: ...

    return HttpCall({"headers": headers}, nothing, nothing, new_request_id())


@pytest.mark.parametrize("value", [b"a", b"0b8f-42", b"with spaces in it", b"x" * 255, b"~!"])
async def test_keys_and_event_ids_are_returned_unchanged(value: bytes) -> None:
    call = _call([(b"idempotency-key", value), (b"last-event-id", value)])
    assert (call.idempotency_key, call.last_event_id) == (value.decode(), value.decode())
    assert (_call([]).idempotency_key, _call([]).last_event_id) == (None, None)


@pytest.mark.parametrize("value", [b"", b" ", b"x" * 256, "é".encode(), b"a\x00b", b"a\tb", b"a\x7f", b"\xff"])
async def test_keys_and_event_ids_with_other_characters_are_refused(value: bytes) -> None:
    call = _call([(b"idempotency-key", value), (b"last-event-id", value)])
    with pytest.raises(BadField, match="Idempotency-Key must have 1 to 255"):
        _ = call.idempotency_key
    with pytest.raises(BadField, match="Last-Event-ID must have 1 to 255"):
        _ = call.last_event_id


# --- bodies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grace", "rate", "whole"),
    [pytest.param(0.02, 10**9, 5.0, id="too few bytes in a second"), pytest.param(5.0, 1, 0.02, id="not complete in time")],
)
async def test_a_body_that_arrives_too_slowly_is_a_400(
    running_service: RunningService, monkeypatch: pytest.MonkeyPatch, grace: float, rate: int, whole: float
) -> None:
    monkeypatch.setattr(http_call, "BODY_GRACE_SECONDS", grace)
    monkeypatch.setattr(http_call, "BODY_BYTES_PER_SECOND", rate)
    monkeypatch.setattr(http_call, "BODY_SECONDS", whole)
    reader = Reader("/v1/chat/completions", {})

    async def trickling() -> dict[str, Any]:
        await asyncio.sleep(0.002)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async with asyncio.timeout(30):
        await running_service.app()(reader.scope, trickling, reader.send)
    assert reader.sent[0]["status"] == 400
    assert "took longer than" in reader.text


async def test_a_large_body_at_a_good_rate_is_accepted(running_service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_call, "BODY_GRACE_SECONDS", 0.05)
    monkeypatch.setattr(http_call, "BODY_BYTES_PER_SECOND", 500)
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "user": "x" * 100_000}).encode()
    parts = [body[start : start + 1000] for start in range(0, len(body), 1000)]
    most, began = len(parts), time.monotonic()
    reader = Reader("/v1/chat/completions", {})

    async def flowing() -> dict[str, Any]:
        if not parts:
            await asyncio.Event().wait()
        if len(parts) < most:
            await asyncio.sleep(0.001)
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    await running_service.app()(reader.scope, flowing, reader.send)
    assert reader.sent[0]["status"] == 200, reader.text
    assert time.monotonic() - began > http_call.BODY_GRACE_SECONDS


async def test_a_body_that_arrived_while_the_gateway_stood_still_is_accepted(
    running_service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_call, "BODY_GRACE_SECONDS", 0.05)
    monkeypatch.setattr(http_call, "STANDSTILL_SECONDS", 0.1)
    reader, arrived, loop = Reader("/v1/chat/completions", {}), asyncio.Event(), asyncio.get_running_loop()
    pieces = [b'{"messages": [{"role": "user", ', b'"content": "hi"}]}']

    async def receive() -> dict[str, Any]:
        if not pieces:
            await asyncio.Event().wait()
        if len(pieces) == 1:
            # As after SIGCONT: the piece and the deadline are due in the same turn of the loop.
            loop.call_later(0.01, arrived.set)
            loop.call_soon(time.sleep, 0.3)
            await arrived.wait()
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    await running_service.app()(reader.scope, receive, reader.send)
    assert reader.sent[0]["status"] == 200, reader.text


# --- readers --------------------------------------------------------------------------------------------------------------


async def test_a_client_that_stops_reading_cancels_its_generation(running_service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_call, "WRITE_SECONDS", 0.05)
    worker, ended = Slow(), asyncio.Event()
    run = worker.run

    async def seen(prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        try:
            async for each in run(prompt):
                yield each
        finally:
            ended.set()

    monkeypatch.setattr(worker, "run", seen)
    running_service.add_worker(1, worker, "smollm2")
    reader = Reader("/v1/chat/completions", STREAMS["/v1/chat/completions"])

    async def full(message: Any) -> None:
        await reader.send(message)
        if b"one" in message.get("body", b""):
            await asyncio.Event().wait()

    worker.gates[0].set()
    async with asyncio.timeout(HANG_SECONDS):
        await running_service.app()(reader.scope, reader.receive, full)
        await ended.wait()
    assert "two" not in reader.text
    assert not worker.gates[1].is_set()


# --- routes ---------------------------------------------------------------------------------------------------------------


async def test_a_route_with_a_name_in_braces_passes_the_rest_of_the_path(
    running_service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cast("dict[str, AccessRule]", access_table.ROUTES), "GET /things/{name}", access_table.METHODS["auth.loginUser"])
    paths: list[str] = []

    async def handler(call: HttpCall) -> None:
        paths.append(call.rest_of_path)
        await call.answer(ChatBody(messages=()))

    route = HttpRoute(verb="GET", path="/things/{name}", handler=handler, method="x", summary="x")
    app = HttpApp([route], HttpAccess(identify=running_service.callers.identify, quotas=running_service.quotas), running_service.metrics)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
        for path, status in (("/things/a", 200), ("/things/a/b", 200), ("/things/", 404), ("/things", 404), ("/thingsa", 404)):
            assert (await http.get(path)).status_code == status
    assert paths == ["a", "a/b"]
