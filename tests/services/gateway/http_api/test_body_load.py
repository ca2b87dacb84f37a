"""How long large bodies hold the event loop, and how soon others get their turn beside them."""

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from typing import Any
from uuid import UUID

import httpx
import pytest

from services.gateway.facts import body_values
from services.gateway.facts.body_values import MAX_COMMAS, MAX_NESTED, MAX_TEXTS
from services.gateway.http_api import body_load, tolerant_json
from services.gateway.http_api.body_load import BodyTurns
from services.gateway.http_api.tolerant_json import Ignored
from services.gateway.openai_api import response_request
from shared import errors
from shared.types import TenantId
from tests import loop_time
from tests.services.gateway import fakes, openai_clients
from tests.services.gateway.fakes import KEY, RunningService
from tests.services.gateway.http_answers import BEARER
from tests.services.gateway.http_answers import CHAT as HI
from tests.testnet import until

CHAT, MESSAGES, RESPONSES, REST = "/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/inference"
ANN, BEN = TenantId(UUID(int=1)), TenantId(UUID(int=2))
BYTES = 950_000


def fill(entry: str, before: str, after: str) -> bytes:
    """Return a body with as many entries as fit."""
    return f"{before}{','.join([entry] * ((BYTES - len(before + after)) // (len(entry) + 1)))}{after}".encode()


def dump(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def text_parts(count: int) -> list[dict[str, str]]:
    return [{"type": "text", "text": "abcd"}] * count


HI_AND = '{"messages":[{"role":"user","content":"a"}],'
#: Most of them are refused.
LARGE: dict[str, tuple[str, bytes]] = {
    "30,000 messages": (CHAT, fill('{"role":"user","content":"a"}', '{"messages":[', "]}")),
    "empty messages": (CHAT, fill("{}", '{"messages":[', "]}")),
    "messages that need tidying": (CHAT, fill('{"role":"user","content":"a","parsed":1}', '{"messages":[', "]}")),
    "messages of Anthropic": (MESSAGES, fill('{"role":"user","content":"a"}', '{"max_tokens":5,"messages":[', "]}")),
    "messages in camelCase": (REST, fill('{"role":"user","content":"a"}', '{"messages":[', "]}")),
    "messages to tokenize": ("/v1/tokenize", fill('{"role":"user","content":"a"}', '{"messages":[', "]}")),
    "calls": (RESPONSES, fill('{"type":"function_call","call_id":"a","name":"b","arguments":""}', '{"input":[', "]}")),
    "tools": (CHAT, fill('{"function":{"name":"a"}}', HI_AND + '"tools":[', "]}")),
    "nested arrays": (CHAT, fill("[]", '{"messages":' + "[" * 400, "]" * 400 + "}")),
    "arrays in a schema": (CHAT, fill("[]", HI_AND + '"tools":[{"function":{"name":"a","parameters":{"x":[', "]}}}]}")),
    "names": (REST, dump(**{f"aB{number}": 1 for number in range(60_000)})),
    "a long name": (REST, dump(**{"aB" * 400_000: 1})),
    "lists of token ids": ("/v1/embeddings", fill("[1]", '{"input":[', "]}")),
    "token ids": ("/v1/embeddings", fill("1", '{"input":[', "]}")),
    "documents": ("/v1/rerank", fill('"a"', '{"query":"a","documents":[', "]}")),
    # As many as a body may have.
    "parts": (CHAT, dump(messages=[{"role": "user", "content": text_parts(14), "parsed": 1}] * 1000)),
    "blocks": (MESSAGES, dump(max_tokens=5, messages=[{"role": "user", "content": text_parts(14)}] * 1000)),
    "4,000 calls": (RESPONSES, dump(input=[{"type": "function_call", "call_id": "a", "name": "b", "arguments": "{}"}] * 4000)),
    "arguments with quotes": (CHAT, dump(messages=[{"role": "user", "content": '"[{' * 180_000}])),
}


@pytest.fixture
async def service() -> AsyncIterator[RunningService]:
    async with fakes.running_service(free=10**6) as service:
        yield service


@pytest.mark.parametrize(("path", "body"), [pytest.param(*sent, id=name) for name, sent in LARGE.items()])
async def test_a_large_body_holds_the_event_loop_for_a_moment(service: RunningService, path: str, body: bytes) -> None:
    """It was up to 680 ms for one body."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service.app()), base_url="http://gateway", headers=BEARER) as client:
        await client.post(CHAT, json=HI)
        with loop_time.measured() as callbacks, loop_time.subject(path):
            asking = client.post(path, content=body, headers={"content-type": "application/json"})
            answer = await asyncio.create_task(asking)
    assert answer.status_code in {200, 400, 413}, answer.text[:500]
    callbacks.ensure_below(0.1)


@pytest.mark.parametrize(
    ("body", "is_accepted"),
    [
        pytest.param(b'["' + b"[" * (MAX_NESTED + 1) + b'"]', True, id="brackets in a text"),
        pytest.param(rb'["\"' + b"[" * (MAX_NESTED + 1) + rb'\\"]', True, id="behind an escaped quote"),
        pytest.param(rb'["\\",' + b"[" * (MAX_NESTED + 1) + b'""]', False, id="behind an escaped backslash"),
        pytest.param(b"[" * MAX_NESTED, True, id="as many arrays as may be"),
        pytest.param(b"[{" * (MAX_NESTED // 2) + b"{", False, id="one more"),
        pytest.param(b'"",' * MAX_TEXTS, True, id="as many texts as may be"),
        pytest.param(b'"",' * (MAX_TEXTS + 1), False, id="one more text"),
        pytest.param(b'"' + rb"\"" * 3 * MAX_TEXTS + b'"', True, id="quotes in a text"),
        pytest.param(b"[" + b"1," * MAX_COMMAS + b"1]", True, id="as many numbers as may be"),
        pytest.param(b"[" + b"1," * MAX_COMMAS + b"1,1]", False, id="one more number"),
        pytest.param(b'"' + b"," * 2 * MAX_COMMAS + b'"', True, id="commas in a text"),
    ],
)
def test_values_of_a_body_are_counted(body: bytes, is_accepted: bool) -> None:
    if is_accepted:
        body_values.ensure_few_values(body)
        return
    with pytest.raises(errors.BadRequest, match="more than 131072 arrays and objects, or more than 524288 texts"):
        body_values.ensure_few_values(body)


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "a"}] * 10_001}, "prompt is too long: 10001 messages > 10000 maximum"),
        (CHAT, {"messages": [{"role": "user", "content": text_parts(1001)}]}, "messages[0].content must have at most 1000 entries"),
        (CHAT, {**HI, "tools": [{"function": {"name": "a"}}] * 513}, "tools must have at most 512 entries"),
        (MESSAGES, {"max_tokens": 5, "messages": [{"role": "user", "content": text_parts(1001)}]}, "content must have at most 1000"),
        (MESSAGES, {"max_tokens": 5, "messages": [{"role": "user", "content": "a"}] * 10_001}, "10001 messages > 10000 maximum"),
        (RESPONSES, {"input": [{"role": "user", "content": "a"}] * 40_001}, "40001 messages > 40000 maximum"),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}] * 1001}]}, "must have at most 1000"),
        (REST, {f"name{number}": 1 for number in range(501)}, "the body has more than 500 fields"),
    ],
)  # fmt: skip
async def test_lists_are_counted_before_they_are_read(service: RunningService, path: str, body: dict[str, Any], reason: str) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service.app()), base_url="http://gateway", headers=BEARER) as client:
        answer = await client.post(path, json=body)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]["message"]


def test_a_turn_is_one_message_so_that_results_follow_its_calls() -> None:
    def call(number: int) -> dict[str, str]:
        return {"type": "function_call", "call_id": f"{number}", "name": "b", "arguments": "{}"}

    def think(text: str) -> dict[str, Any]:
        return {"type": "reasoning", "content": [{"type": "reasoning_text", "text": text}]}

    items = [
        {"role": "user", "content": "a"}, think("hm"), call(1), think(""), call(2), {"role": "assistant", "content": "b"}, call(3),
        {"type": "function_call_output", "call_id": "3", "output": "c"}, call(4),
    ]  # fmt: skip
    body = tolerant_json.read(json.dumps({"input": items}).encode(), response_request.DIALECT, Ignored())
    messages = response_request.to_request(body).messages
    assert [(one.role, one.content, one.reasoning, [call.id for call in one.tool_calls]) for one in messages] == [
        ("user", "a", "", []),
        ("assistant", "b", "hm", ["1", "2", "3"]),
        ("tool", "c", "", []),
        ("assistant", "", "", ["4"]),
    ]


# --- turns ----------------------------------------------------------------------------------------------------------------------


async def test_tenants_take_turns() -> None:
    turns, order = BodyTurns(), list[TenantId]()

    async def read(tenant: TenantId) -> None:
        async with turns.turn(tenant):
            order.append(tenant)

    await asyncio.gather(*(read(tenant) for tenant in (ANN, ANN, ANN, ANN, BEN)))
    assert order == [ANN, BEN, ANN, ANN, ANN]
    await until_empty(turns)


async def test_a_body_pauses_the_next_ones_for_as_long_as_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the same tenant, three times as long."""
    pauses: list[float] = []
    loop, turns = asyncio.get_running_loop(), BodyTurns()
    call_later = loop.call_later

    def note(delay: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        pauses.append(delay)
        return call_later(0, callback, *args)

    def work() -> None:
        began = loop.time()
        while loop.time() - began < 0.01:
            pass

    async with turns.turn(ANN):
        await asyncio.to_thread(work)
        monkeypatch.setattr(loop, "call_later", note)
        work()
    # What follows without a pause belongs to the turn.
    work()
    await asyncio.sleep(0)
    monkeypatch.undo()
    short, long = pauses
    assert short >= 0.03
    assert long == pytest.approx(3 * short)
    await until_empty(turns)


async def test_a_body_that_no_longer_waits_leaves_its_turn_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = BodyTurns()

    async def read(tenant: TenantId) -> None:
        async with turns.turn(tenant):
            pass

    async with turns.turn(ANN):
        waiting = [asyncio.create_task(read(tenant)) for tenant in (ANN, BEN)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in ended)
        monkeypatch.setattr(body_load, "TURN_SECONDS", 0.0)
        with pytest.raises(errors.Limited, match="too many of your large requests"):
            await read(ANN)
        monkeypatch.undo()
    await read(BEN)
    await read(ANN)
    await until_empty(turns)


async def until_empty(turns: BodyTurns) -> None:
    await until(lambda: not turns._tenants and not turns._users)


# --- others ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.nightly("clock")
@pytest.mark.parametrize("names", [("30,000 messages", "nested arrays"), ("parts", "blocks"), ("empty messages", "calls", "names")])
async def test_large_bodies_on_eight_connections_slow_others_at_most_threefold(service: RunningService, names: tuple[str, ...]) -> None:
    """The median was ten times as long."""

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: bytes) -> None:
        fields = ("Host: x", f"Authorization: Bearer {KEY}", "Content-Type: application/json", f"Content-Length: {len(body)}")
        writer.write("\r\n".join((f"POST {path} HTTP/1.1", *fields, "", "")).encode() + body)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
        service.worker.received.clear()

    async def median_seconds(port: int) -> float:
        found: list[float] = []
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(100):
            began = time.perf_counter()
            await ask(reader, writer, CHAT, json.dumps(HI).encode())
            found.append(time.perf_counter() - began)
            await asyncio.sleep(0.01)
        writer.close()
        return statistics.median(found)

    async def flood(port: int, path: str, body: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with closing(writer):
            while True:
                await ask(reader, writer, path, body)

    async with openai_clients.listening(service) as port:
        alone = await median_seconds(port)
        floods = [asyncio.create_task(flood(port, *LARGE[names[number % len(names)]])) for number in range(8)]
        beside = await median_seconds(port)
        for task in floods:
            task.cancel()
        await asyncio.gather(*floods, return_exceptions=True)
    assert beside <= 3 * alone
