"""Lanes to servers that answer late, in pieces, wrongly, or not at all."""

import asyncio
import gc
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from shared.stores import resp, valkey_client
from shared.stores.resp import ReplyError
from shared.stores.valkey_client import LoginRefused, ValkeyConnection
from shared.stores.valkey_url import ValkeyUrl
from tests.shared.stores.fake_valkey import FakeValkey, Visitor, answer_a_busy_program, echo, nothing, on_tcp, on_unix
from tests.shared.transports.nats.test_tls import make_certificate
from tests.stopwatch import HANG_SECONDS


@asynccontextmanager
async def lane_to(address: ValkeyUrl | Path, trusted: ssl.SSLContext | None = None) -> AsyncIterator[ValkeyConnection]:
    if isinstance(address, Path):
        address = ValkeyUrl(path=str(address))
    async with asyncio.TaskGroup() as tasks:
        lane = ValkeyConnection(address, trusted, tasks)
        try:
            yield lane
        finally:
            lane.close()


def asking(lane: ValkeyConnection, *words: resp.Word) -> asyncio.Future[resp.Reply]:
    return lane.ask(("ECHO", *words))


# --- order ----------------------------------------------------------------------------------------------------------


async def crowd(seed: int) -> None:
    chance = random.Random(seed)

    async def in_pieces(visitor: Visitor, words: list[bytes]) -> None:
        wire = b"*2\r\n:%d\r\n$%d\r\n%b\r\n" % (int(words[1]), len(words[2]), words[2])
        at = chance.randrange(len(wire) + 1)
        visitor.say(wire[:at])
        if chance.random() < 0.1:
            await asyncio.sleep(0)
        visitor.say(wire[at:])

    async with on_unix(in_pieces) as (server, path), lane_to(path) as lane:
        answered = 0

        async def caller(number: int) -> None:
            nonlocal answered
            text = b"%d\r\n" % number * chance.randrange(50)
            for _ in range(chance.randrange(20)):
                await asyncio.sleep(0)
            assert await asking(lane, number, text) == [number, text]
            answered += 1

        async def impatient(task: asyncio.Task[None]) -> None:
            for _ in range(chance.randrange(40)):
                await asyncio.sleep(0)
            task.cancel()

        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            for number in range(1000):
                task = tasks.create_task(caller(number))
                if chance.random() < 0.4:
                    tasks.create_task(impatient(task))
        assert 500 < answered <= len(server.asked) <= 1000
        assert len(server.visitors) == 1
        assert len({words[1] for words in server.asked}) == len(server.asked), "no call is sent twice"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_of_a_thousand_callers_each_gets_its_own_answer(run: Callable[[Coroutine[Any, Any, None]], None], seed: int) -> None:
    run(crowd(seed))


async def test_a_late_answer_is_dropped() -> None:
    async with on_unix(nothing) as (server, path), lane_to(path) as lane:
        gone = asking(lane, "first")
        await server.until(asked=1)
        gone.cancel()
        second = asking(lane, "second")
        await server.until(asked=2)
        server.visitors[0].say(b"$5\r\nfirst\r\n")
        server.visitors[0].say(b"$6\r\nsecond\r\n")
        assert await second == b"second"


async def test_an_error_is_the_callers_alone() -> None:
    async def refuse_one(visitor: Visitor, words: list[bytes]) -> None:
        visitor.say(b"-WRONGTYPE it is\r\n" if words[1] == b"1" else b":0\r\n")

    async with on_unix(refuse_one) as (_, path), lane_to(path) as lane:
        found = await asyncio.gather(*(asking(lane, number) for number in range(3)), return_exceptions=True)
        assert (found[0], found[2]) == (0, 0)
        assert isinstance(found[1], ReplyError)
        assert found[1].word == "WRONGTYPE"


@pytest.mark.parametrize("word", ["READONLY", "MASTERDOWN", "LOADING", "CLUSTERDOWN"])
async def test_a_server_that_is_not_the_one_is_left_after_its_last_answer(word: str) -> None:
    async def answer(visitor: Visitor, words: list[bytes]) -> None:
        if words[1] == b"3" and len(visitor.server.visitors) == 1:
            # All answers at once, and none for the fourth call.
            visitor.say(b":1\r\n-%b it is not\r\n:3\r\n" % word.encode())
        elif len(visitor.server.visitors) > 1:
            visitor.say(b":5\r\n")

    async with on_unix(answer) as (server, path), lane_to(path) as lane:
        found = await asyncio.gather(*(asking(lane, number) for number in (1, 2, 3, 4)), return_exceptions=True)
        assert (found[0], found[2]) == (1, 3)
        for refused in (found[1], found[3]):
            assert isinstance(refused, ReplyError)
            assert refused.word == word
        assert await asking(lane, 5) == 5
        assert len(server.visitors) == 2


async def test_what_is_asked_in_one_turn_is_sent_at_once() -> None:
    async with on_unix(echo) as (_, path), lane_to(path) as lane:
        await asking(lane, "connected")
        assert lane._session is not None
        assert lane._session._writes is not None
        watched = _Watched(lane._session._transport)
        lane._session._writes._transport = watched
        await asyncio.gather(*(asking(lane, number) for number in range(50)))
        assert watched.written == 1


class _Watched:
    """A transport whose writes are counted."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.written = 0

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.written += 1
        self._transport.write(data)


# --- losses ---------------------------------------------------------------------------------------------------------


async def test_a_server_may_close_at_any_byte() -> None:
    wire = b"*2\r\n:1\r\n$2\r\nab\r\n"
    for at in range(len(wire)):
        said = 0

        async def close_at(visitor: Visitor, words: list[bytes], at: int = at) -> None:
            nonlocal said
            said += 1
            if said > 1:
                visitor.say(wire)
            else:
                visitor.say(wire[:at])
                visitor.hang_up()

        async with on_unix(close_at) as (server, path), lane_to(path) as lane:
            first, second = asking(lane, "a"), asking(lane, "b")
            found = await asyncio.gather(first, second, return_exceptions=True)
            assert [type(one) for one in found] == [ConnectionResetError] * 2 or at == len(wire)
            assert await asking(lane, "c") == [1, b"ab"]
            assert [words[1] for words in server.asked].count(b"a") == 1
            assert len(server.visitors) == 2


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$99999999999\r\n", b":1\r\n:2\r\n"])
async def test_a_server_that_talks_nonsense_is_left(garbage: bytes) -> None:
    async def nonsense(visitor: Visitor, words: list[bytes]) -> None:
        visitor.say(garbage if len(visitor.server.visitors) == 1 else b":7\r\n")

    async with on_unix(nonsense) as (server, path), lane_to(path) as lane:
        (found,) = await asyncio.gather(asking(lane, "a"), return_exceptions=True)
        assert found == 1 or isinstance(found, ConnectionError)
        async with asyncio.timeout(HANG_SECONDS):
            while lane._session is not None:  # noqa: ASYNC110 - the lane sets no event
                await asyncio.sleep(0.001)
        assert await asking(lane, "b") == 7
        assert len(server.visitors) == 2


async def test_a_silent_server_is_left_and_all_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey_client, "SILENCE_SECONDS", 0.5)
    async with on_unix(nothing) as (server, path), lane_to(path) as lane, asyncio.timeout(30):
        began = time.monotonic()
        found = await asyncio.gather(*(asking(lane, number) for number in range(5)), return_exceptions=True)
        assert [type(one) for one in found] == [TimeoutError] * 5
        assert time.monotonic() - began >= 0.5
        server.answer = echo
        assert await asking(lane, "again") == b"again"
        assert (len(server.visitors), len(server.asked)) == (2, 6)


async def test_one_that_nobody_waits_for_any_more_shows_silence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey_client, "SILENCE_SECONDS", 0.5)
    async with on_unix(nothing) as (server, path), lane_to(path) as lane:
        asking(lane, "gone").cancel()
        first = asking(lane, "first")
        await server.until(asked=1)
        assert [words[1] for words in server.asked] == [b"first"], "the cancelled one was not sent at all"
        first.cancel()
        async with asyncio.timeout(HANG_SECONDS):
            while lane._session is not None:  # noqa: ASYNC110 - the lane sets no event
                await asyncio.sleep(0.001)


async def test_who_is_slow_but_answers_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey_client, "SILENCE_SECONDS", 1.0)

    async def slow(visitor: Visitor, words: list[bytes]) -> None:
        await asyncio.sleep(0.04)
        visitor.say(b":%d\r\n" % int(words[1]))

    async with on_unix(slow) as (server, path), lane_to(path) as lane:
        for number in range(30):
            assert await asking(lane, number) == number
        assert len(server.visitors) == 1


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_time_in_which_this_program_is_busy_is_not_silence(
    run: Callable[[Coroutine[Any, Any, None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valkey_client, "SILENCE_SECONDS", 0.5)

    async def be_busy() -> None:
        async with on_unix(nothing) as (server, path), lane_to(path) as lane:
            answer = asking(lane, "a")
            await server.until(asked=1)
            await answer_a_busy_program(server, path, b":5\r\n", 0.8)
            assert await answer == 5

    run(be_busy())


async def test_a_problem_that_nobody_is_left_to_read_is_not_reported() -> None:
    told: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))
    answer: asyncio.Future[resp.Reply] = loop.create_future()
    valkey_client.fail(answer, ConnectionError())
    del answer
    gc.collect()
    assert told == []


# --- bounds ---------------------------------------------------------------------------------------------------------


async def test_calls_without_an_answer_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey_client, "MAX_CALLS", 10)
    async with on_unix(nothing) as (server, path), lane_to(path) as lane:
        first = [asking(lane, number) for number in range(10)]
        with pytest.raises(ConnectionError, match="too many"):
            asking(lane, "one more, while it connects")
        await server.until(asked=10)
        for answer in first[:5]:
            answer.cancel()
        with pytest.raises(ConnectionError, match="too many"):
            asking(lane, "one more; those that were cancelled are to be answered, too")
        server.visitors[0].say(b":1\r\n" * 10)
        assert await asyncio.gather(*first[5:]) == [1] * 5
        server.answer = echo
        assert await asking(lane, "now") == b"now"


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_what_is_not_sent_has_a_bound(run: Callable[[Coroutine[Any, Any, None]], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey_client, "MAX_UNSENT_BYTES", 1024 * 1024)

    async def fill() -> None:
        async with on_unix(echo) as (server, path), lane_to(path) as lane:
            await asking(lane, "connected")
            server.reads.clear()
            answers = []
            with pytest.raises(ConnectionError, match="too many"):
                for _ in range(100):
                    answers.append(asking(lane, b"x" * 100_000))
                    await asyncio.sleep(0)
            assert 10 <= len(answers) < 40
            server.reads.set()
            assert {len(one) for one in await asyncio.gather(*answers) if isinstance(one, bytes)} == {100_000}
            assert await asking(lane, "room again") == b"room again"

    run(fill())


async def test_what_waits_for_a_connection_has_a_bound_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey_client, "MAX_UNSENT_BYTES", 1000)
    async with on_unix(echo) as (_, path), lane_to(path) as lane:
        answers = [asking(lane, b"x" * 600) for _ in range(2)]
        with pytest.raises(ConnectionError, match="too many"):
            asking(lane, b"x")
        assert await asyncio.gather(*answers) == [b"x" * 600] * 2


# --- connecting -----------------------------------------------------------------------------------------------------


async def test_who_comes_while_it_connects_waits_for_that() -> None:
    async with on_unix(echo) as (server, path), lane_to(path) as lane:
        answers = [asking(lane, number) for number in range(50)]
        answers[7].cancel()
        await asyncio.sleep(0)
        answers[8].cancel()
        found = await asyncio.gather(*answers, return_exceptions=True)
        assert [one for one in found if isinstance(one, bytes)] == [b"%d" % number for number in range(50) if number not in {7, 8}]
        assert len(server.visitors) == 1
        assert {b"7", b"8"}.isdisjoint(words[1] for words in server.asked)


async def test_without_a_server_all_are_told_at_once_and_the_next_tries_again(tmp_path: Path) -> None:
    async with lane_to(tmp_path / "s") as lane:
        found = await asyncio.gather(*(asking(lane, number) for number in range(5)), return_exceptions=True)
        assert [type(one) for one in found] == [FileNotFoundError] * 5
        server = FakeValkey(echo)
        async with await asyncio.start_unix_server(server.visit, tmp_path / "s"):
            assert await asking(lane, "back") == b"back"
            await server.close()


async def test_connecting_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey_client, "CONNECT_SECONDS", 0.5)
    async with on_unix(nothing) as (server, path), lane_to(ValkeyUrl(path=str(path), password="s3cret")) as lane, asyncio.timeout(30):
        with pytest.raises(TimeoutError, match=r"no connection within 0\.5 s"):
            await asking(lane, "a")
        server.answer = echo
        assert await asking(lane, "b") == b"b"


async def test_it_logs_in_before_anything_else() -> None:
    async with on_unix(echo) as (server, path):
        async with lane_to(ValkeyUrl(path=str(path), username="ada", password="s3cret", database=3)) as lane:
            assert await asking(lane, "a") == b"a"
        async with lane_to(ValkeyUrl(path=str(path), password="s3cret")) as lane:
            assert await asking(lane, "b") == b"b"
    assert server.asked == [
        [b"AUTH", b"ada", b"s3cret"], [b"SELECT", b"3"], [b"ECHO", b"a"], [b"AUTH", b"s3cret"], [b"ECHO", b"b"],
    ]  # fmt: skip


@pytest.mark.parametrize("refused", [b"AUTH", b"SELECT"])
async def test_who_is_not_let_in_asks_nothing(refused: bytes) -> None:
    async def refuse(visitor: Visitor, words: list[bytes]) -> None:
        visitor.say(b"-WRONGPASS or so\r\n" if words[0] == refused else b"+OK\r\n")

    async with on_unix(refuse) as (server, path), lane_to(ValkeyUrl(path=str(path), password="s3cret", database=3)) as lane:
        with pytest.raises(LoginRefused, match="WRONGPASS or so"):
            await asking(lane, "a")
        assert b"ECHO" not in {words[0] for words in server.asked}
        server.answer = echo
        assert await asking(lane, "b") == b"b"


async def test_who_waits_when_it_is_closed_is_told() -> None:
    async with on_unix(nothing) as (server, path):
        async with lane_to(path) as lane:
            sent = asking(lane, "a")
            await server.until(asked=1)
        async with lane_to(path) as other:
            unsent = asking(other, "b")
        async with lane_to(ValkeyUrl(path=str(path), password="p")) as third:
            entering = asking(third, "c")
            await server.until(asked=2)
        for answer in (sent, unsent, entering):
            with pytest.raises(ConnectionError, match="the connection is closed"):
                await answer
        with pytest.raises(ConnectionError, match="the connection is closed"):
            asking(third, "d")


# --- TCP and TLS ----------------------------------------------------------------------------------------------------


async def test_over_tcp() -> None:
    async with on_tcp(echo) as (_, port), lane_to(ValkeyUrl(host="127.0.0.1", port=port)) as lane:
        assert await asking(lane, "a") == b"a"


async def over_tls(folder: Path) -> None:
    make_certificate(folder, "127.0.0.1")
    own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    own.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    value = b"x" * 1_000_000
    async with on_tcp(echo, own) as (_, port):
        async with lane_to(ValkeyUrl(host="127.0.0.1", port=port), ssl.create_default_context(cafile=folder / "cert.pem")) as lane:
            assert await asyncio.gather(*(asking(lane, value) for _ in range(3))) == [value] * 3
        async with lane_to(ValkeyUrl(host="127.0.0.1", port=port), ssl.create_default_context()) as lane:
            with pytest.raises(ssl.SSLCertVerificationError):
                await asking(lane, "a")


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_over_tls_with_somebody_who_vouches_for_the_server(run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path) -> None:
    run(over_tls(tmp_path))
