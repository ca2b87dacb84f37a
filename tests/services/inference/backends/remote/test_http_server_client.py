"""Every fault that a server can have, over real sockets: one clear error, and nothing hangs."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from services.inference.backends.remote import http_connection, http_server_client
from services.inference.backends.remote.event_stream import StreamEventParser
from services.inference.backends.remote.http_messages import JsonRequest
from services.inference.backends.remote.http_server_client import Server
from services.inference.backends.remote.server_errors import RefusalSource
from services.inference.upstreams import Key, Upstream
from shared import errors
from tests.services.inference.fake_http import Answer, FakeServer, serving
from tests.services.inference.raw_http import raw_server

KEY = "sk-very-secret-0123456789"
#: Short, because these servers send nothing until the timeout. On a busy machine, a head may take more than a second.
BRIEF = {"first_token_seconds": 3.0, "idle_seconds": 1.0}
KIND = "text/event-stream"
GOOD = Answer(["data: hello\n\n"])


def source(url: str, key: str = KEY, **timeouts: float) -> RefusalSource:
    upstream = Upstream(name="x", url=url, key=Key(key), key_setting="key_file of x", **timeouts)  # type: ignore[arg-type]
    return RefusalSource("upstream x", "url of x", upstream)


@asynccontextmanager
async def asking(*answers: Answer, **timeouts: float) -> AsyncIterator[tuple[FakeServer, Server]]:
    async with (
        serving({"/completions": list(answers), "/models": list(answers)}) as fake,
        http_server_client.connected(source(fake.url, **timeouts)) as server,
    ):
        yield fake, server


async def read(server: Server) -> bytes:
    """Return the data of an answer in which every event is progress."""
    events, found = StreamEventParser(), b""
    async with server.post("/completions", b"{}", KIND) as answer:
        while piece := await answer.read_piece():
            for event in events.push(piece):
                found += event
                answer.allow(server.source.upstream.idle_seconds)
    return found


async def test_the_key_goes_along_and_nothing_is_compressed() -> None:
    async with asking(GOOD) as (fake, server):
        assert await read(server) == b"hello"
    assert f"authorization: bearer {KEY}" in fake.headers[0]
    assert "accept-encoding: identity\r\n" in fake.headers[0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param(Answer([], silent=True, hang=True), "did not begin its answer within 3 s", id="silence"),
        pytest.param(Answer([b"x-a: b\r\n"], head=b"HTTP/1.1 200 OK\r\n", hang=True), "did not begin", id="a head without an end"),
        pytest.param(Answer([], hang=True), "did not continue", id="a head and then silence"),
        pytest.param(Answer(["data: a\n\n"], hang=True), "did not continue", id="a beginning and then silence"),
        pytest.param(Answer([": x\n\n"], endless=True), "did not make progress|did not continue", id="endless comments"),
    ],
)
async def test_a_server_that_says_nothing_is_not_waited_for_for_ever(answer: Answer, said: str) -> None:
    async with asking(answer, **BRIEF) as (_, server):
        with pytest.raises(errors.Unavailable, match=said):
            await read(server)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param(Answer([b"a" * 4096], head=b"HTTP/1.1 200 OK\r\nx-a: ", endless=True), "does not answer", id="an endless head"),
        pytest.param(Answer([], silent=True), "does not answer", id="a connection that is closed at once"),
        pytest.param(Answer([b"\x16\x03\x01\x02"], head=b"garbage\r\n\r\n"), "does not answer", id="no HTTP"),
        pytest.param(Answer(["x" * 65536], endless=True), "a line of more than 1048576 bytes", id="a line without an end"),
        pytest.param(Answer(["data: " + "x" * 65536 + "\n"], endless=True), "an event of more than", id="an event without an end"),
        pytest.param(Answer(["data: a\n\n"], headers={"content-length": "1000"}), "does not answer", id="cut off before its length"),
        pytest.param(Answer(["5\r\nda"], headers={"transfer-encoding": "chunked"}), "does not answer", id="cut off in a chunk"),
        pytest.param(Answer(["zz\r\n"], headers={"transfer-encoding": "chunked"}), "does not answer", id="a chunk of no length"),
        pytest.param(Answer(["<html>"], headers={"content-type": "text/html"}), "'text/html' instead of", id="a web page"),
        pytest.param(Answer(["{}"], headers={"content-type": ""}), "content of type ''", id="no type at all"),
        pytest.param(Answer(["x"], headers={"content-encoding": "gzip"}), "compressed", id="what was not asked for"),
        pytest.param(Answer(["x"], headers={"content-encoding": "br, gzip"}), "compressed", id="twice"),
    ],
)
async def test_a_fault_is_one_clear_error(answer: Answer, said: str) -> None:
    async with asking(answer) as (_, server):
        with pytest.raises(errors.Unavailable, match=said) as failed:
            await read(server)
    assert failed.value.message.startswith("upstream x ")
    assert KEY not in failed.value.message + failed.value.hint


async def test_a_small_answer_that_would_be_huge_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(5_000_000))
    for headers in ({"content-encoding": "gzip"}, {"content-encoding": "deflate"}):
        async with asking(Answer([bomb if "gzip" in headers.values() else zlib.compress(bomb)], headers=headers)) as (_, server):
            with pytest.raises(errors.Unavailable, match="compressed"):
                await server.get("/models", bytes)
    refusal = Answer([bomb], status=500, headers={"content-encoding": "gzip"})
    async with asking(refusal) as (_, server):
        with pytest.raises(errors.Unavailable, match=r"failed with status 500\Z"):
            await read(server)


async def test_an_answer_that_never_ends_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server_client, "MAX_ANSWER_BYTES", 100_000)
    async with asking(Answer(["data: " + "x" * 1000 + "\n\n"], endless=True)) as (fake, server):
        with pytest.raises(errors.Unavailable, match="an answer of more than 100000 bytes"):
            await read(server)
        async with asyncio.timeout(30):
            await fake.left.wait()


async def test_a_list_that_never_ends_is_cut() -> None:
    async with asking(Answer(["x" * 65536], endless=True)) as (_, server):
        with pytest.raises(errors.Unavailable, match="an answer of more than 2097152 bytes"):
            await server.get("/models", bytes)


async def test_a_refusal_that_never_ends_is_cut() -> None:
    async with asking(Answer(["x" * 65536], status=400, endless=True)) as (_, server):
        with pytest.raises(errors.BadRequest, match="xxx"):
            await read(server)


async def test_a_redirect_is_not_followed() -> None:
    async with serving({"/completions": GOOD}) as other:
        answer = Answer([], status=307, headers={"location": f"{other.url}/completions"})
        async with asking(answer) as (_, server):
            with pytest.raises(errors.Unavailable, match="another address"):
                await read(server)
    assert not other.headers


async def test_nobody_there_is_said() -> None:
    async with serving({}) as gone:
        url = gone.url
    async with http_server_client.connected(source(url)) as server:
        with pytest.raises(errors.Unavailable, match="does not answer") as failed:
            await read(server)
    assert "url of x" in failed.value.hint


# --- retries --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(Answer([], silent=True), id="a connection that was closed"),
        pytest.param(Answer(["busy"], status=429), id="too many requests"),
        pytest.param(Answer(["busy"], status=429, headers={"retry-after": "0.01"}), id="too many requests, for a moment"),
        pytest.param(Answer([""], status=502), id="no server behind the gateway"),
        pytest.param(Answer([""], status=503), id="a server that starts"),
        pytest.param(Answer([""], status=504), id="a server that is slow"),
    ],
)
async def test_what_may_pass_is_tried_again(failure: Answer) -> None:
    async with asking(failure, failure, GOOD) as (fake, server):
        assert await read(server) == b"hello"
    assert fake.times_asked("/completions") == http_server_client.ATTEMPTS


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        pytest.param(Answer([""], status=429, headers={"retry-after": "60"}), errors.Overloaded, id="a limit for a minute"),
        pytest.param(Answer([""], status=503, headers={"retry-after": "60"}), errors.Overloaded, id="maintenance"),
        pytest.param(Answer([""], status=500), errors.Unavailable, id="a failure"),
        pytest.param(Answer([""], status=400), errors.BadRequest, id="a bad request"),
        pytest.param(Answer([""], status=401), errors.Unavailable, id="a wrong key"),
        pytest.param(Answer([": began\n\n"], headers={"content-length": "1000"}), errors.Unavailable, id="an answer that began"),
    ],
)
async def test_what_will_not_pass_or_has_begun_is_not(failure: Answer, kind: type[errors.AimeshError]) -> None:
    async with asking(failure, GOOD) as (fake, server):
        with pytest.raises(kind):
            await read(server)
    assert fake.times_asked("/completions") == 1


async def test_tries_are_few_and_the_last_error_is_told() -> None:
    async with asking(Answer(["busy"], status=429)) as (fake, server):
        with pytest.raises(errors.Overloaded, match="busy"):
            await read(server)
    assert fake.times_asked("/completions") == http_server_client.ATTEMPTS


# --- cancellation and reuse -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [Answer([], silent=True, hang=True), Answer(["data: a\n\n"], hang=True)], ids=["before", "during"])
async def test_being_cancelled_closes_the_connection_which_stops_the_server(answer: Answer) -> None:
    async with asking(answer) as (fake, server):
        task = asyncio.create_task(read(server))
        async with asyncio.timeout(30):
            while not fake.headers:  # noqa: ASYNC110  # no signal tells what the other task has done
                await asyncio.sleep(0)
            task.cancel()
            await fake.left.wait()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_connection_is_used_again_after_a_complete_answer() -> None:
    kept = Answer(["data: hello\n\n"], headers={"connection": "keep-alive", "content-length": "13"})
    async with asking(kept) as (fake, server):
        for _ in range(3):
            async with server.post("/completions", b"{}", KIND) as answer:
                assert await answer.read_piece()
                # The reader has what it needs, but doesn't know that the body has ended.
                await answer.drain()
    assert (fake.times_asked("/completions"), fake.connections) == (3, 1)


async def test_a_connection_that_the_server_closed_meanwhile_is_asked_again_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Answer(["data: hello\n\n"], headers={"connection": "keep-alive", "content-length": "13"})
    # The server closes the reused connection without an answer.
    answers = (kept, Answer([], silent=True), GOOD)
    monkeypatch.setattr(http_server_client, "BACKOFF_SECONDS", 3600)
    async with asking(*answers) as (fake, server):
        assert [await read(server) for _ in range(2)] == [b"hello", b"hello"]
    assert (fake.times_asked("/completions"), fake.connections) == (3, 2)


async def test_more_requests_than_connections_wait_for_one_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "TURN_SECONDS", 0.05)
    monkeypatch.setattr(http_server_client, "MAX_CONNECTIONS", 64)
    async with asking(Answer(["data: a\n\n"], hang=True)) as (fake, server):
        tasks = [asyncio.create_task(read(server)) for _ in range(http_server_client.MAX_CONNECTIONS)]
        while fake.connections < http_server_client.MAX_CONNECTIONS:  # noqa: ASYNC110  # no signal tells what the other tasks have done
            await asyncio.sleep(0)
        with pytest.raises(errors.Overloaded, match="64 requests of this worker open"):
            await read(server)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_a_header_that_would_bring_another_along_is_a_mistake_in_the_settings() -> None:
    for wrong in (source("http://h", f"{KEY}\r\nx-evil: 1"), source("http://me:hunter2@h"), source("http://" + "a" * 64)):
        with pytest.raises(errors.BadSettings, match="url of x: the") as refused:
            async with http_server_client.connected(wrong):
                pass
        assert KEY not in str(refused.value)
        assert "hunter2" not in str(refused.value)


async def test_an_answer_of_another_type_is_not_listened_to_any_longer() -> None:
    async with asking(Answer(["<html>"], headers={"content-type": "text/html"}, hang=True)) as (fake, server):
        with pytest.raises(errors.Unavailable, match="text/html"):
            await read(server)
        async with asyncio.timeout(30):
            await fake.left.wait()


async def test_a_prompt_that_the_server_does_not_read_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def deaf(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # it is a whole transport
        await asyncio.Event().wait()

    monkeypatch.setattr(http_connection, "WRITE_SECONDS", 0.02)
    # On a slow line, images take longer than text.
    monkeypatch.setattr(http_connection, "LEAST_BYTES_PER_SECOND", 32 * 1024 * 1024 / 0.25)
    async with raw_server(deaf) as raw, http_server_client.connected(source(f"http://{raw.origin.authority}")) as server:
        with pytest.raises(errors.Unavailable, match=r"did not read the request within 0\.27"):
            await server.ask(JsonRequest("/completions", bytes(32 * 1024 * 1024), bytes, most=1))
        assert raw.connections == 1


async def test_it_is_known_whether_the_server_refuses_the_account() -> None:
    refused, broke = Answer(["{}"], status=401), Answer(['{"error": {"code": "insufficient_quota"}}'], status=429)
    listed = Answer(['{"data": []}'], headers={"content-type": "application/json"})
    async with asking(refused, GOOD, broke) as (_, server):
        assert not server.is_refused
        for is_refused in (True, False, True):
            with suppress(errors.Unavailable):
                await read(server)
            assert server.is_refused == is_refused
    async with asking(broke, listed, Answer(["busy"], status=503)) as (_, server):
        with suppress(errors.Unavailable):
            await read(server)
        assert server.is_refused, "a server without credit still lists its models"
