"""Streams over stock @hyperswarm/rpc, without a swarm: what they buffer, for how long, and for which connection."""

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgpack
import pytest
from pyhyperswarm import Request, RequestRefused

from shared import rpc
from shared.api import gateway
from shared.identity import certificates, node_keys
from shared.identity.certificates import Subject
from shared.identity.node_keys import Authority, NodeKey
from shared.identity.trust import Trust
from shared.node.lifecycle import background
from shared.node.stock_clients import pulled_streams, stock_calls
from shared.node.stock_clients.stock_rpc_clients import StockRpcClients
from shared.types import Role
from tests.shared.node.streaming import Streaming
from tests.testnet import until

NOW = 1_767_225_600.0
CA = Authority(node_keys.new_authority_seed())
INFER = "gateway.processInferenceRequest"


def new_key() -> NodeKey:
    return NodeKey(node_keys.new_seed())


@dataclass
class RunningService:
    """A gateway, and the entry point for its stock clients."""

    dispatcher: rpc.Dispatcher
    service: Streaming
    outsiders: StockRpcClients

    async def visitor(self) -> "Visitor":
        visitor = Visitor(self)
        proof = certificates.issue(CA, Subject(visitor.key.id, Role.CLIENT), NOW)
        await visitor.ask("hello", certificate=base64.b64encode(proof).decode())
        return visitor


@dataclass
class Visitor:
    """A peer on one connection."""

    running_service: RunningService
    key: NodeKey = field(default_factory=new_key)
    channel: bytes = field(default_factory=lambda: secrets.token_bytes(64))

    async def raw(self, method: str, value: bytes) -> bytes:
        return await self.running_service.outsiders.answer(Request(self.key.raw, self.channel, method, value))

    async def ask(self, method: str, **fields: object) -> Any:
        return json.loads(await self.raw(method, json.dumps(fields).encode()))

    async def refused(self, method: str, **fields: object) -> tuple[str, str]:
        with pytest.raises(RequestRefused) as caught:
            await self.ask(method, **fields)
        return caught.value.code, caught.value.message

    async def start(self, prompt: str) -> int:
        return int((await self.ask(f"{INFER}.stream", request={"prompt": prompt}))["handle"])

    async def next(self, handle: int) -> Any:
        return await self.ask("stream.next", handle=handle)


@pytest.fixture
async def running_service() -> AsyncIterator[RunningService]:
    async with background() as tasks:
        dispatcher = rpc.Dispatcher(tasks, lambda method, status, seconds: None, lambda method, error: None)
        service = Streaming()
        dispatcher.add(service)
        yield RunningService(dispatcher, service, StockRpcClients(Trust(new_key(), Role.GATEWAY, (CA.id,)), dispatcher, (), lambda: NOW))


@pytest.fixture
async def visitor(running_service: RunningService) -> Visitor:
    return await running_service.visitor()


async def test_a_whole_answer_in_one_request(visitor: Visitor) -> None:
    answer = await visitor.ask(INFER, request={"prompt": "hi"})
    assert (answer["text"], answer["finishReason"]) == ("Hello", "stop")
    code, message = await visitor.refused(INFER, request={"prompt": "large"})
    assert code == "too_large"
    assert message.endswith("ask for fewer tokens, or for the stream; see docs/protocol.md")


async def read(visitor: Visitor, handle: int) -> tuple[list[Any], Any]:
    items: list[Any] = []
    while True:
        said = await visitor.next(handle)
        items += said["items"]
        if said["end"] is not None:
            return items, said["end"]


async def test_items_are_pulled_until_the_end(running_service: RunningService, visitor: Visitor) -> None:
    handle = await visitor.start("hi")
    items, end = await read(visitor, handle)
    assert [item["text"] for item in items] == ["Hel", "lo"]
    assert end["usage"]["completionTokens"] == 2
    assert (await visitor.refused("stream.next", handle=handle))[0] == "not_found"
    await freed(running_service)


async def test_msgpack_is_answered_in_msgpack(visitor: Visitor) -> None:
    started = msgpack.unpackb(await visitor.raw(f"{INFER}.stream", msgpack.packb({"request": {"prompt": "hi"}})))
    said = msgpack.unpackb(await visitor.raw("stream.next", msgpack.packb({"handle": started["handle"]})))
    assert said["items"][0]["text"] == "Hel"


async def test_two_streams_of_one_connection_do_not_mix(visitor: Visitor) -> None:
    one, other = await visitor.start("letters"), await visitor.start("two")
    (letters, _), (two, _) = await asyncio.gather(read(visitor, one), read(visitor, other))
    assert (len(letters), [item["text"] for item in two]) == (5_000, ["a", "x", "b"])


async def test_items_are_produced_only_on_demand(running_service: RunningService, visitor: Visitor) -> None:
    handle = await visitor.start("letters")
    await until(lambda: running_service.service.sent == pulled_streams.MAX_ITEMS)
    for _ in range(10):
        await asyncio.sleep(0)
    assert running_service.service.sent == pulled_streams.MAX_ITEMS
    assert running_service.service.calls[0].credited_items == 0
    assert len((await visitor.next(handle))["items"]) == pulled_streams.MAX_ITEMS
    assert running_service.service.calls[0].credited_items >= pulled_streams.MAX_ITEMS
    large = await visitor.start("large")
    sent = running_service.service.sent
    await until(lambda: running_service.service.sent > sent)
    assert len((await visitor.next(large))["items"]) == 1, "an answer has few bytes"


async def test_an_error_follows_the_items_before_it(running_service: RunningService, visitor: Visitor) -> None:
    handle = await visitor.start("fail")
    await until(lambda: running_service.service.failed)
    assert [item["text"] for item in (await visitor.next(handle))["items"]] == ["a"]
    assert await visitor.refused("stream.next", handle=handle) == ("worker_lost", "the worker is gone – ask again")
    await until(lambda: running_service.dispatcher.running == 0)


async def test_a_stream_belongs_to_its_connection(running_service: RunningService, visitor: Visitor) -> None:
    handle = await visitor.start("hang")
    other = await running_service.visitor()
    assert (await other.refused("stream.next", handle=handle))[0] == "not_found"
    assert (await other.refused("stream.stop", handle=handle))[0] == "not_found"
    assert len((await visitor.next(handle))["items"]) == 1


async def test_only_one_next_may_be_pending(visitor: Visitor) -> None:
    handle = await visitor.start("silent")
    waiting = asyncio.ensure_future(visitor.next(handle))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (await visitor.refused("stream.next", handle=handle))[0] == "bad_request"
    await visitor.ask("stream.stop", handle=handle)
    with pytest.raises(RequestRefused, match="the stream was stopped") as caught:
        await waiting
    assert caught.value.code == "cancelled"


async def freed(running_service: RunningService) -> None:
    await until(lambda: running_service.service.running == 0 and running_service.dispatcher.running == 0)
    assert running_service.outsiders._streams._streams == {}
    assert len(running_service.outsiders._limits._limits[True]) == 0


async def test_a_closed_connection_ends_its_streams_and_frees_their_places(running_service: RunningService, visitor: Visitor) -> None:
    other = await running_service.visitor()
    stays = await other.start("hang")
    for prompt in ("hang", "silent", "letters", "hi"):
        await visitor.start(prompt)
    await until(lambda: len(running_service.service.calls) == 5)
    running_service.outsiders.gone(visitor.channel)
    await until(lambda: running_service.service.running == 1)
    assert len((await other.next(stays))["items"]) == 1
    assert (await visitor.refused(INFER, request={"prompt": "hi"}))[0] == "not_certified", "its introduction is forgotten"
    running_service.outsiders.gone(other.channel)
    await freed(running_service)


async def test_an_unread_stream_ends(running_service: RunningService, visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulled_streams, "SILENCE_SECONDS", 0.02)
    for prompt in ("hang", "hi"):
        await visitor.start(prompt)
    await freed(running_service)
    assert running_service.service.failed == ["cancelled"]


async def test_a_waiting_reader_is_not_idle(running_service: RunningService, visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulled_streams, "SILENCE_SECONDS", 0.4)
    waiting = asyncio.ensure_future(visitor.next(await visitor.start("silent")))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.8)
    assert running_service.service.running == 1
    waiting.cancel()
    await freed(running_service)


async def test_a_stream_stopped_before_it_ran(running_service: RunningService, visitor: Visitor) -> None:
    handle = await visitor.start("hang")
    await visitor.ask("stream.stop", handle=handle)
    await freed(running_service)


async def test_streams_are_limited_per_connection_and_in_total(
    running_service: RunningService, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulled_streams, "MAX_STREAMS_OF_ONE", 2)
    first = [await visitor.start("hang") for _ in range(2)]
    assert await visitor.refused(f"{INFER}.stream", request={"prompt": "hi"}) == ("overloaded", "2 streams of this connection are running")
    running_service.outsiders._limits._limits[True]._most = 2
    other = await running_service.visitor()
    assert (await other.refused(INFER, request={"prompt": "hi"}))[0] == "overloaded"
    await other.refused("gateway.noSuch")
    assert (await other.ask("gateway.listModels")) == {"models": []}, "calls that end soon have places of their own"
    await visitor.ask("stream.stop", handle=first[0])
    await until(lambda: running_service.service.running == 1)
    assert (await other.ask(INFER, request={"prompt": "hi"}))["text"] == "Hello"


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        pytest.param({}, "bad_request", "processInferenceRequest: request is missing", id="no request"),
        pytest.param({"request": {"prompt": "hi"}, "wish": 1}, "bad_request", "there is no field 'wish'", id="an unknown argument"),
        pytest.param({"request": {"prompt": "x" * 1024 * 1024}}, "too_large", "the limit is 1048576", id="too large a body"),
    ],
)
async def test_an_invalid_body_is_refused(visitor: Visitor, body: Any, code: str, words: str) -> None:
    for method in (INFER, f"{INFER}.stream"):
        refusal, message = await visitor.refused(method, **body)
        assert refusal == code
        assert words in message
    running_service = visitor.running_service
    assert running_service.service.calls == []
    assert len(running_service.outsiders._limits._limits[True]) == 0


async def test_a_shutdown_waits_until_the_end_was_read(running_service: RunningService, visitor: Visitor) -> None:
    handle = await visitor.start("hi")
    await until(lambda: running_service.service.calls and not running_service.service.running)
    running_service.dispatcher.drain_started.set()
    draining = asyncio.ensure_future(running_service.dispatcher.drained(10))
    assert (await visitor.refused(f"{INFER}.stream", request={"prompt": "hi"}))[0] == "draining"
    assert not draining.done()
    assert (await read(visitor, handle))[1]["finishReason"] == "stop"
    await draining


async def test_a_finished_stream_holds_neither_a_place_nor_a_shutdown(
    running_service: RunningService, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulled_streams, "LAST_READ_SECONDS", 0.02)
    handles = [await visitor.start(prompt) for prompt in ("fail", "hi")]
    await until(lambda: len(running_service.service.calls) == 2 and not running_service.service.running)
    assert len(running_service.outsiders._limits._limits[True]) == 0
    running_service.dispatcher.drain_started.set()
    await running_service.dispatcher.drained(10)
    assert running_service.dispatcher.running == 0
    assert [item["text"] for item in (await visitor.next(handles[0]))["items"]] == ["a"]
    assert (await visitor.refused("stream.next", handle=handles[0]))[0] == "worker_lost"
    assert (await read(visitor, handles[1]))[1]["finishReason"] == "stop"
    await freed(running_service)


async def test_a_shutdown_cancels_a_stream_that_does_not_end(running_service: RunningService, visitor: Visitor) -> None:
    handle = await visitor.start("silent")
    waiting = asyncio.ensure_future(visitor.refused("stream.next", handle=handle))
    await until(lambda: running_service.service.running)
    running_service.dispatcher.drain_started.set()
    await running_service.dispatcher.drained(0.01)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await visitor.refused("stream.next", handle=handle))[0] == "draining", "so that it is begun again elsewhere"
    await freed(running_service)


#: A body up to the value of a field that the method does not have.
IN_JSON = b'{"request": {"prompt": "hi"}, "x": '
IN_MSGPACK = b"\x82" + msgpack.packb("request") + msgpack.packb({"prompt": "hi"}) + msgpack.packb("x")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(IN_JSON + b'"\xff"}', id="no UTF-8"),
        pytest.param(IN_JSON + b"1" * 5000 + b"}", id="a huge number"),
        pytest.param(IN_MSGPACK + b"\x81\x80\x01", id="a map as a key"),
        pytest.param(IN_MSGPACK + b"\xc7\x03\xff\x00\x00\x00", id="no timestamp"),
        pytest.param(IN_JSON + b"[" * 5000 + b"]" * 5000 + b"}", id="deep"),
    ],
)
async def test_unknown_fields_are_refused_whatever_their_value(visitor: Visitor, body: bytes) -> None:
    """The decoder of a type would skip the value unread."""
    with pytest.raises(RequestRefused, match=INFER) as caught:
        await visitor.raw(INFER, body)
    assert caught.value.code == "bad_request"


def test_strings_are_not_searched_for_fields() -> None:
    """A request may have a million strings."""
    asked = stock_calls._shape_of(gateway.ProcessInferenceRequest)
    assert asked is not None
    assert asked.fields is not None
    assert asked.fields["rest"] is not None
    [request] = [asked.fields["request"]]
    assert request is not None
    assert request.fields is not None
    assert request.fields["stop"] is None


def test_an_unknown_field_is_named_with_its_path() -> None:
    value = {"request": {"messages": [{"role": "user", "content": "hi"}, {"role": "user", "content": "hi", "wish": 1}]}}
    assert stock_calls.find_unknown_field(gateway.ProcessInferenceRequest, value) == "request.messages.1.wish"
    del value["request"]["messages"][1]["wish"]
    assert stock_calls.find_unknown_field(gateway.ProcessInferenceRequest, value) is None
