"""The load generator and the instant upstream: every request is counted once, and as what it was."""

import asyncio

import pytest

from bench import http_load, openai_upstream, tenants
from bench.http_load import Answer, Burst, Load, Outcome, Paced, Steady
from tests.testnet import free_port


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(
    ("pace", "least", "most"),
    [
        pytest.param(Steady(4, 0.3), 4, 100_000, id="steady"),
        pytest.param(Paced(100, 0.3), 30, 30, id="paced"),
        pytest.param(Burst(25, 0.1), 25, 25, id="burst"),
    ],
)
async def test_every_request_is_answered_and_counted(pace: Steady | Paced | Burst, least: int, most: int, *, stream: bool) -> None:
    body = tenants.chat_body(openai_upstream.MODEL, "hello", 5, stream=stream)
    async with tenants.upstream() as port:
        outcome = await http_load.make(Load(port=port, path="/v1/chat/completions", keys=("a", "b"), body=body, pace=pace))
    assert least <= len(outcome.answers) <= most
    assert len(outcome.good) == len(outcome.answers)
    assert {answer.pieces for answer in outcome.answers} == {5 if stream else 1}
    assert all(0 < answer.first <= answer.took for answer in outcome.answers)


async def test_what_nobody_answers_is_no_good_answer() -> None:
    outcome = await http_load.make(Load(port=free_port(), path="/", keys=("a",), body="{}", pace=Burst(3, 0)))
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
        outcome = await http_load.make(Load(port=port, path="/", keys=("a",), body="{}", pace=Burst(1, 0)))
    (answer,) = outcome.answers
    assert (answer.status, answer.pieces, answer.whole) == (200, 1, False)
    assert outcome.good == []


def test_the_rate_is_of_good_answers_until_the_last() -> None:
    good = Answer(0.0, 1.0, 0.5, 200, 1, whole=True)
    outcome = Outcome((good, Answer(1.0, 1.0, 0.5, 200, 1, whole=True), Answer(1.0, 0.5, 0.0, 503, 0, whole=False)))
    assert outcome.rate() == pytest.approx(1.0)
    assert outcome.percentile(0.5, "first") == 500


def test_an_upstreams_answer_has_as_many_words_as_were_asked_for() -> None:
    asked = b'{"max_tokens": 3, "stream": true}'
    assert openai_upstream.answer_to(b"POST /", asked).count(b'"tok "') == 3
    assert openai_upstream.answer_to(b"POST /", b'{"max_tokens":2}').count(b"tok ") == 2
    assert openai_upstream.answer_to(b"POST /", b"{}").count(b"tok ") == openai_upstream.MOST_WORDS
