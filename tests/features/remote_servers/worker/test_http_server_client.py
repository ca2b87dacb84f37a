"""Every fault that a server can have, over real sockets: one clear error, and nothing hangs."""

import asyncio
import gzip
import ssl
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from features.remote_servers.worker import http_server_client
from features.remote_servers.worker.http_server_client import Server
from features.remote_servers.worker.rules.event_stream import StreamEventParser
from features.remote_servers.worker.rules.server_errors import RefusalSource
from features.remote_servers.worker.upstreams import Key, Upstream
from shared import errors
from tests.cases import case
from tests.features.remote_servers.worker.raw_http import KEPT, asked, once, raw_server, saying, silent
from tests.services.inference.fake_http import Answer, FakeServer, serving
from tests.shared.transports.nats.test_tls import make_certificate
from tests.testnet import free_port

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
    has_read = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await asked(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
            await has_read.wait()
            has_read.clear()
            writer.write(b"0\r\n\r\n")

    async with raw_server(answer) as raw, http_server_client.connected(source(raw.url)) as server:
        for _ in range(3):
            async with server.post("x", b"", "") as exchange:
                assert await exchange.read_piece() == b"hello"
                # The reader has what it needs, but the body has not ended.
                has_read.set()
                await exchange.drain()
    assert raw.connections == 1


async def test_a_connection_that_the_server_closed_meanwhile_is_asked_again_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Answer(["data: hello\n\n"], headers={"connection": "keep-alive", "content-length": "13"})
    # The server closes the reused connection without an answer.
    answers = (kept, Answer([], silent=True), GOOD)
    monkeypatch.setattr(http_server_client, "BACKOFF_SECONDS", 3600)
    async with asking(*answers) as (fake, server):
        assert [await read(server) for _ in range(2)] == [b"hello", b"hello"]
    assert (fake.times_asked("/completions"), fake.connections) == (3, 2)


async def test_more_requests_than_allowed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server_client, "MAX_REQUESTS", 16)
    async with asking(Answer(["data: a\n\n"], hang=True)) as (fake, server):
        tasks = [asyncio.create_task(read(server)) for _ in range(http_server_client.MAX_REQUESTS)]
        while fake.connections < http_server_client.MAX_REQUESTS:  # noqa: ASYNC110  # no signal tells what the other tasks have done
            await asyncio.sleep(0)
        with pytest.raises(errors.Overloaded, match="16 requests of this worker open"):
            await read(server)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert server.running == 0


async def test_an_answer_of_another_type_is_not_listened_to_any_longer() -> None:
    async with asking(Answer(["<html>"], headers={"content-type": "text/html"}, hang=True)) as (fake, server):
        with pytest.raises(errors.Unavailable, match="text/html"):
            await read(server)
        async with asyncio.timeout(30):
            await fake.left.wait()


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


# --- over raw sockets -----------------------------------------------------------------------------------------------


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n"


@pytest.mark.parametrize("answer", [KEPT, CHUNKED], ids=["length", "chunked"])
async def test_an_answer_that_is_cut_off_at_any_byte_is_an_error(answer: bytes) -> None:
    for cut in range(len(answer)):
        with case(cut):
            async with raw_server(once(answer[:cut])) as raw, http_server_client.connected(source(raw.url)) as server:
                with pytest.raises(errors.Unavailable, match="does not answer"):
                    await server.get("x", bytes, "")


async def test_a_large_request_arrives_whole() -> None:
    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(KEPT if await reader.readexactly(3_000_000) == bytes(3_000_000) else b"")

    async with (
        raw_server(count) as raw,
        http_server_client.connected(source(raw.url)) as server,
        server.post("x", bytes(3_000_000), "") as answer,
    ):
        assert await answer.read() == b"hello"


@pytest.mark.parametrize(
    ("url", "path", "target"),
    [("/v1/", "models", "/v1/models"), ("/v1", "/health", "/health"), ("", "x", "/x"), ("/a b/ü%20", "x", "/a%20b/%C3%BC%20/x")],
)
async def test_paths_are_below_the_url_or_beside_its_version(url: str, path: str, target: str) -> None:
    async with serving({target: Answer(["{}"])}) as fake, http_server_client.connected(source(fake.url + url)) as server:
        assert await server.get(path, bytes) == b"{}"


async def test_certificates_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_certificate(tmp_path, "127.0.0.1")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with raw_server(saying(KEPT), tls) as raw:
        async with http_server_client.connected(source(raw.url)) as server:
            with pytest.raises(errors.Unavailable, match="certificate is not trusted"):
                await server.get("x", bytes, "")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        async with http_server_client.connected(source(raw.url)) as server:
            assert await server.get("x", bytes, "") == b"hello"
        async with http_server_client.connected(source(raw.url.replace("127.0.0.1", "localhost"))) as server:
            with pytest.raises(errors.Unavailable, match="certificate is not trusted"):
                await server.get("x", bytes, "")


async def test_a_port_without_a_listener_is_named_as_such() -> None:
    async with http_server_client.connected(source(f"http://127.0.0.1:{free_port()}")) as server:
        with pytest.raises(errors.Unavailable, match=r"no connection \(connection refused\)"):
            await server.get("x", bytes, "")


async def test_a_handshake_that_never_ends_is_given_up() -> None:
    async with (
        raw_server(silent) as raw,
        http_server_client.connected(source(raw.url.replace("http", "https"), connect_seconds=0.05)) as server,
    ):
        with pytest.raises(errors.Unavailable, match="no connection in time"):
            await server.get("x", bytes, "")
