"""Streaming methods, called by stock NATS clients (nats-py) and through the entry point for stock @hyperswarm/rpc clients."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgpack
import nats
import nats.errors
import pytest
from nats.aio.msg import Msg

from shared.node.stock_clients import stock_calls
from shared.node.stock_clients.nats_micro import Micro
from shared.types import Role
from tests.shared.node.streaming import LARGE, MAX, Streaming
from tests.testnet import MESH, RunningNode, testnet, until

SUBJECT = f"aimesh.{MESH}.rpc.gateway.processInferenceRequest"
#: A busy machine may pause for longer than nats-py's default of half a second.
SECONDS = 30
JSON = {"content-type": "application/json"}
STREAM = {**JSON, "stream": "true"}


def request_body(prompt: str = "hi", **more: object) -> bytes:
    return json.dumps({"request": {"prompt": prompt}, **more}).encode()


@dataclass
class Stock:
    """nats-py with an operator's key, and one gateway."""

    nats: nats.NATS
    running: RunningNode

    @property
    def service(self) -> Streaming:
        assert isinstance(self.running.service, Streaming)
        return self.running.service

    @property
    def micro(self) -> Micro:
        assert self.running.node.micro is not None
        return self.running.node.micro

    async def ask(self, body: bytes, **headers: str) -> Msg:
        return await self.nats.request(SUBJECT, body, headers={**JSON, **headers}, timeout=SECONDS)

    @asynccontextmanager
    async def stream(self, body: bytes, headers: dict[str, str] = STREAM) -> AsyncIterator[Any]:
        inbox = self.nats.new_inbox()
        replies = await self.nats.subscribe(inbox)
        await self.nats.publish(SUBJECT, body, reply=inbox, headers=headers)
        yield replies
        with contextlib.suppress(nats.errors.Error):
            await replies.unsubscribe()  # the test may have unsubscribed

    async def read(self, body: bytes, headers: dict[str, str] = STREAM) -> list[Msg]:
        """Return all messages up to the end or an error."""
        found = []
        async with self.stream(body, headers) as replies:
            while not found or found[-1].headers.get("stream") == "item":
                found.append(await replies.next_msg(SECONDS))
        return found


@pytest.fixture
async def stock() -> AsyncIterator[Stock]:
    async with testnet() as net:
        # Add the key before the node's, so that the server has loaded it by the time the node is up.
        seed = net.server.key("op", Role.OPERATOR).read_text()
        running = await net.start(Streaming)
        connection = await nats.connect(net.server.url, nkeys_seed_str=seed, allow_reconnect=False)
        yield Stock(connection, running)
        await connection.close()


def problem(message: Msg) -> tuple[str, str]:
    """Return the status and code of an error."""
    assert message.headers is not None
    return message.headers["Nats-Service-Error-Code"], json.loads(message.data)["error"]["code"]


# --- one answer ---------------------------------------------------------------------------------------------------------


async def test_without_the_header_the_whole_answer_is_one_message(stock: Stock) -> None:
    answer = json.loads((await stock.ask(request_body())).data)
    assert (answer["text"], answer["finishReason"], answer["usage"]) == (
        "Hello",
        "stop",
        {"promptTokens": 5, "completionTokens": 2, "cachedTokens": 0, "reasoningTokens": 0},
    )
    packed = await stock.nats.request(SUBJECT, msgpack.packb({"request": {"prompt": "hi"}}), timeout=SECONDS)
    assert msgpack.unpackb(packed.data)["text"] == "Hello"
    assert [call.is_whole for call in stock.service.calls] == [True, True]
    assert all(call.remaining_seconds() > stock_calls.DEADLINE_SECONDS for call in stock.service.calls), "it has the time of a stream"


async def test_several_answers_and_tool_calls_are_included(stock: Stock) -> None:
    two = json.loads((await stock.ask(request_body("two"))).data)
    assert (two["text"], two["others"]) == ("ab", [{"text": "x"}])
    tools = json.loads((await stock.ask(request_body("tools"))).data)
    assert [call["id"] for call in tools["toolCalls"]] == ["0", "1"]


@pytest.mark.parametrize("prompt", ["large", "escaped"])
async def test_an_answer_that_is_too_large_ends_its_stream_with_a_hint(stock: Stock, prompt: str) -> None:
    refused = await stock.ask(request_body(prompt))
    assert problem(refused) == ("413", "too_large")
    assert json.loads(refused.data)["error"]["hint"] == "ask for fewer tokens, or for the stream; see docs/protocol.md"
    assert stock.service.failed == ["too_large"]
    assert stock.service.sent * LARGE <= stock_calls.MAX_ANSWER_BYTES, "it was not made to its end"
    await stock.ask(request_body())


async def test_many_small_pieces_do_not_count_as_a_large_answer(stock: Stock) -> None:
    assert len(json.loads((await stock.ask(request_body("letters"))).data)["text"]) == 5_000


# --- a stream -----------------------------------------------------------------------------------------------------------


async def test_with_the_header_items_are_sent_and_then_the_end(stock: Stock) -> None:
    *items, end = await stock.read(request_body())
    assert [message.headers["stream"] for message in (*items, end)] == ["item", "item", "end"]
    assert [(json.loads(item.data)["text"], json.loads(item.data)["sequence"]) for item in items] == [("Hel", 1), ("lo", 2)]
    assert json.loads(end.data)["finishReason"] == "stop"
    *packed, last = await stock.read(msgpack.packb({"request": {"prompt": "hi"}}), {"stream": "true"})
    assert "".join(msgpack.unpackb(item.data)["text"] for item in packed) == "Hello"
    assert msgpack.unpackb(last.data)["usage"]["completionTokens"] == 2
    assert not any(call.is_whole for call in stock.service.calls)


async def test_a_stream_may_be_larger_than_a_message(stock: Stock) -> None:
    *items, end = await stock.read(request_body("large"))
    assert (len(items), end.headers["stream"]) == (MAX, "end")


async def test_an_error_ends_the_stream_with_error_headers(stock: Stock) -> None:
    item, failed = await stock.read(request_body("fail"))
    assert item.headers["stream"] == "item"
    assert problem(failed) == ("503", "worker_lost")
    assert failed.headers["Nats-Service-Error"] == "the worker is gone"


async def test_two_concurrent_streams_do_not_mix(stock: Stock) -> None:
    one, other = await asyncio.gather(stock.read(request_body("letters")), stock.read(request_body("two")))
    assert (len(one), len(other)) == (5_001, 4)


@pytest.mark.parametrize("leave", ["unsubscribe", "disconnect", "respond"])
async def test_a_caller_that_disconnects_ends_its_stream(stock: Stock, leave: str) -> None:
    async with stock.stream(request_body("endless")) as replies:
        first = await replies.next_msg(SECONDS)
        match leave:
            case "unsubscribe":
                await replies.unsubscribe()
            case "disconnect":
                stock.nats._transport.close()  # type: ignore[union-attr]  # without unsubscribing
            case "respond":
                await first.respond(b"")
        await until(lambda: stock.service.failed == ["cancelled"], seconds=SECONDS)
        await until(lambda: stock.running.node.dispatcher.running == 0)
    assert len(stock.micro._limits._limits[True]) == 0


async def test_a_caller_cancels_a_silent_stream_with_a_message_to_its_reply_subject(stock: Stock) -> None:
    async with stock.stream(request_body("hang")) as replies:
        first = await replies.next_msg(SECONDS)
        await first.respond(b"")
        await until(lambda: stock.service.failed == ["cancelled"], seconds=SECONDS)


async def test_a_stream_that_loses_its_nats_connection_fails(stock: Stock) -> None:
    """Messages sent meanwhile are lost, so a later one must not be taken for the next."""
    client = stock.running.node.node_transports.nats.nats
    async with stock.stream(request_body("large")) as replies:
        await replies.next_msg(SECONDS)
        client._connection.socket.cut()
        await until(lambda: stock.service.failed == ["link_lost"], seconds=SECONDS)


async def test_a_stream_does_not_continue_after_a_reconnect(stock: Stock) -> None:
    client = stock.running.node.node_transports.nats.nats
    async with stock.stream(request_body("paused")) as replies:
        await replies.next_msg(SECONDS)
        client._connection.socket.cut()
        await until(lambda: client.reconnects == 1, seconds=SECONDS)
        stock.service.may_go_on.set()
        failed = await replies.next_msg(SECONDS)
    assert problem(failed) == ("503", "link_lost")


# --- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [JSON, STREAM])
@pytest.mark.parametrize(
    ("body", "refusal", "words"),
    [
        pytest.param(b"{", ("400", "bad_request"), "Input data was truncated", id="a body that is none"),
        pytest.param(b'{"auth": {}}', ("400", "bad_request"), "processInferenceRequest: request is missing", id="no request"),
        pytest.param(request_body(wish=1), ("400", "bad_request"), "there is no field 'wish'", id="an unknown argument"),
        pytest.param(
            b'{"request": {"prompt": "hi", "max_tokens": 1}}',
            ("400", "bad_request"),
            "no field 'request.max_tokens'",
            id="a typing mistake",
        ),
        pytest.param(request_body("x" * 1024 * 1024), ("413", "too_large"), "the limit is 1048576", id="a body that is too large"),
    ],
)
async def test_an_invalid_body_is_refused(stock: Stock, headers: dict[str, str], body: bytes, refusal: tuple[str, str], words: str) -> None:
    [refused] = await stock.read(body, headers)
    assert problem(refused) == refusal
    assert words in refused.headers["Nats-Service-Error"]
    assert stock.service.calls == []


async def test_an_unknown_header_value_and_an_unstreamed_method_are_refused(stock: Stock) -> None:
    odd = await stock.ask(request_body(), stream="yes")
    assert problem(odd) == ("400", "bad_request")
    assert odd.headers["Nats-Service-Error"] == "the header stream is 'yes'"
    plain = await stock.nats.request(f"aimesh.{MESH}.rpc.gateway.listModels", b"{}", headers=STREAM, timeout=SECONDS)
    assert problem(plain) == ("400", "bad_request")
    assert plain.headers["Nats-Service-Error"] == "gateway.listModels does not stream"


async def test_streams_have_their_own_limit(stock: Stock) -> None:
    stock.micro._limits._limits[True]._most = 1
    async with stock.stream(request_body("hang")) as replies:
        await replies.next_msg(SECONDS)
        assert problem(await stock.ask(request_body())) == ("503", "overloaded")
        listed = await stock.nats.request(f"aimesh.{MESH}.rpc.gateway.listModels", b"{}", headers=JSON, timeout=SECONDS)
        assert json.loads(listed.data) == {"models": []}


async def test_a_stream_without_an_inbox_is_refused(stock: Stock) -> None:
    await stock.nats.publish(SUBJECT, request_body(), headers=JSON)
    await stock.nats.publish(SUBJECT, request_body(), reply=f"aimesh.{MESH}.gateway.x", headers=STREAM)
    await stock.ask(request_body())
    assert len(stock.service.calls) == 1


async def test_only_an_operator_may_use_it() -> None:
    refused: list[str] = []

    async def note(error: Exception) -> None:
        refused.append(str(error))

    async with testnet() as net:
        seed = net.server.key("someone", Role.CLIENT).read_text()
        running = await net.start(Streaming)
        connection = await nats.connect(net.server.url, nkeys_seed_str=seed, allow_reconnect=False, error_cb=note)
        await connection.publish(SUBJECT, request_body(), reply="_INBOX.someone", headers=JSON)
        await until(lambda: refused, seconds=SECONDS)
        assert refused == [f'nats: permissions violation for publish to "{SUBJECT.lower()}"']
        await connection.close()
        assert isinstance(running.service, Streaming)
        assert running.service.calls == []


async def test_streaming_is_described_in_the_service_listing(stock: Stock) -> None:
    info = json.loads((await stock.nats.request("$SRV.INFO.gateway", timeout=SECONDS)).data)
    found = {endpoint["name"]: endpoint["metadata"].get("stream") for endpoint in info["endpoints"]}
    assert (found["processInferenceRequest"], found["listModels"]) == ("optional", None)
