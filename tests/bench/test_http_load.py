"""The load generator and the instant upstream: every request is counted once, by its actual outcome."""

import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import pytest

from bench import contenders, http_load, openai_upstream, tenants
from bench.contenders import Counts
from bench.http_load import Answer, Client, Load, Outcome, Pace, Spread, Steady
from bench.tenants import Turn
from tests import tiers
from tests.testnet import free_port

T = TypeVar("T")


@pytest.mark.parametrize("stream", tiers.by_day([False, True], True, group="long"), ids=["plain", "streamed"])
@pytest.mark.parametrize(
    ("pace", "least", "most"),
    [
        pytest.param(Steady(4, 0.3), 4, 100_000, id="steady"),
        pytest.param(Spread(30, 0.3), 30, 30, id="spread"),
        pytest.param(Spread(25, 0), 25, 25, id="all at once"),
    ],
)
async def test_every_request_is_answered_and_counted(pace: Pace, least: int, most: int, *, stream: bool) -> None:
    requests = tenants.chats(("a", "b"), openai_upstream.MODEL, "hello", 5, stream=stream)
    async with tenants.upstream() as port:
        outcome = await http_load.make(Load(port=port, requests=requests, pace=pace))
    assert least <= len(outcome.answers) <= most
    assert len(outcome.good) == len(outcome.answers)
    assert {answer.pieces for answer in outcome.answers} == {5 if stream else 1}
    assert all(0 < answer.first <= answer.took for answer in outcome.answers)


async def test_what_nobody_answers_is_no_good_answer() -> None:
    outcome = await http_load.make(Load(port=free_port(), requests=(http_load.get("/"),), pace=Spread(3, 0)))
    assert outcome.good == []
    assert outcome.statuses == {0: 3}


async def test_an_answer_that_breaks_off_is_not_whole() -> None:
    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n20\r\ndata: {"content":"tok"}')
        await writer.drain()
        writer.close()

    port = free_port()
    async with await asyncio.start_server(break_off, "127.0.0.1", port):
        outcome = await http_load.make(Load(port=port, requests=(http_load.get("/"),), pace=Spread(1, 0)))
    (answer,) = outcome.answers
    assert (answer.status, answer.pieces, answer.whole) == (200, 1, False)
    assert outcome.good == []


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
LLAMA_SERVER = (
    b'44\r\ndata: {"choices":[{"delta":{"role":"assistant","content":null}}]}\n\n\r\n'
    b'2f\r\ndata: {"choices":[{"delta":{"content":"Once"}}]}\n\n\r\n2f\r\ndata: {"choices":[{"delta":{"content":" \\n\\""}}]}\n\n\r\n'
    b'40\r\ndata: {"choices":[],"usage":{"completion_tokens":3,"prompt_tokens":51,"total_tokens":54}}\n\n\r\n'
)
GATEWAY = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\ndata: {"choices":[{"delta":{"content":"Once"}}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":51,"completion_tokens":1,"total_tokens":52}}\n\n'
)


async def _served(answers: Sequence[bytes], ask: Callable[[Client], Awaitable[T]]) -> T:
    """Give each connection the next answer."""
    left, ended = iter(answers), asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(next(left))
            await reader.read()
            writer.close()
            await writer.wait_closed()
        ended.release()

    port = free_port()
    async with await asyncio.start_server(serve, "127.0.0.1", port):
        client = Client(port)
        found = await ask(client)
        client.close()
        for _ in answers:
            await ended.acquire()
        return found


@pytest.mark.parametrize(
    ("stream", "pieces", "counts"),
    [
        pytest.param(LLAMA_SERVER, 2, Counts(51, 3), id="llama-server counts itself, also a token without text"),
        pytest.param(GATEWAY, 1, Counts(51, 1), id="an event with a role and no content is no token"),
    ],
)
def test_a_stream_is_counted_the_same_wherever_it_is_split(stream: bytes, pieces: int, counts: Counts) -> None:
    whole = HEAD + stream + END
    for split in range(len(whole) + 1):
        connection, arrived = http_load.Connection(), list[None]()
        connection.begin(lambda arrived=arrived: arrived.append(None))  # type: ignore[misc]
        connection.data_received(whole[:split])
        connection.data_received(whole[split:])
        answer = connection.answer(0.0, 0.0)
        assert (answer.pieces, len(arrived), answer.is_good) == (pieces, pieces, True)
        assert contenders.counts_of(connection.received) == counts


async def test_a_stream_without_its_last_event_is_not_whole() -> None:
    answer, _ = await _served([HEAD + GATEWAY + b"\r\n0\r\n\r\n"], lambda client: client.ask(http_load.get("/").encode()))
    assert (answer.status, answer.whole) == (200, False)


async def test_a_client_that_leaves_closes_its_connection_and_uses_it_no_more() -> None:
    async def ask(client: Client) -> tuple[Answer, bytearray]:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit:
                await client.ask(http_load.get("/").encode(), lambda: limit.reschedule(0))
        return await client.ask(http_load.get("/").encode())

    answer, response = await _served([HEAD + GATEWAY, b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}"], ask)
    assert (answer.status, answer.whole) == (404, True)
    assert response.endswith(b"{}")


async def test_the_connections_of_a_load_are_made_before_it_starts() -> None:
    made, asked = 0, asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal made
        made += not asked.is_set()
        with suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    port = free_port()
    async with await asyncio.start_server(serve, "127.0.0.1", port):
        outcome = await http_load.run(Load(port=port, requests=(http_load.get("/"),), pace=Spread(2, 0), connections=2))
    assert made == 2
    assert len(outcome.good) == 2


def test_the_rate_is_of_good_answers_until_the_last() -> None:
    good = Answer(0.0, 1.0, 0.5, 200, 1, whole=True)
    outcome = Outcome((good, Answer(1.0, 1.0, 0.5, 200, 1, whole=True), Answer(1.0, 0.5, 0.0, 503, 0, whole=True)))
    assert outcome.rate() == pytest.approx(1.0)
    assert outcome.percentile(0.5, "first") == 500


async def test_loads_take_turns_and_a_request_that_fails_is_an_error() -> None:
    begun: list[str] = []

    async def begin(name: str) -> None:
        begun.append(name)

    requests = tenants.chats(("a", "b"), openai_upstream.MODEL, "hello", 5, stream=True)
    options = argparse.Namespace(rounds=2, seconds=0.05)
    async with tenants.upstream() as port:
        turns = {name: Turn(port, requests, 2, {"here": os.getpid()}, partial(begin, name)) for name in ("first", "second")}
        figures = await tenants.take_turns(turns, options)
    assert begun == ["first", "second", "second", "first"]
    assert {name: len(found["rate"]) for name, found in figures.items()} == {"first": 2, "second": 2}
    for found in figures.values():
        assert found["tokens"] == pytest.approx([5 * rate for rate in found["rate"]])
        assert found["everywhere"] == found["here"]
    with pytest.raises(AssertionError, match=r"nobody: Counter\(\{0: \d+\}\)"):
        await tenants.take_turns({"nobody": Turn(free_port(), requests, 1)}, options)


def test_an_upstreams_answer_has_as_many_words_as_were_asked_for() -> None:
    asked = b'{"max_tokens": 3, "stream": true}'
    assert openai_upstream.answer_to(b"POST /", asked).count(b'"tok "') == 3
    assert openai_upstream.answer_to(b"POST /", b'{"max_tokens":2}').count(b"tok ") == 2
    assert openai_upstream.answer_to(b"POST /", b"{}").count(b"tok ") == openai_upstream.MAX_WORDS
