"""One connection to servers with every fault, over real sockets and under both event loops."""

import asyncio
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from services.inference.backends.remote import http_connection
from services.inference.backends.remote.http_connection import HttpServerConnection, StaleConnection, WriteTimedOut
from services.inference.backends.remote.http_messages import BrokenReply, HttpFailure, ReplyHead, ServerOrigin
from tests.services.inference.raw_http import ASKED, KEPT, RawServer, Serve, asked, once, raw_server, saying, silent
from tests.services.inference.standins import until
from tests.shared.transports.nats.test_tls import make_certificate
from tests.testnet import free_port

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n"
BIG = b"POST / HTTP/1.1\r\ncontent-length: 33554432\r\n\r\n" + bytes(32 * 1024 * 1024)

#: Runs a coroutine to completion.
Run = Callable[..., None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run


@asynccontextmanager
async def connected(serve: Serve) -> AsyncIterator[tuple[RawServer, HttpServerConnection]]:
    async with raw_server(serve) as server:
        connection = await http_connection.connect(server.origin, None, 5)
        try:
            yield server, connection
        finally:
            connection.abort()


def soon(seconds: float = 10) -> float:
    return asyncio.get_running_loop().time() + seconds


async def ask(connection: HttpServerConnection, request: bytes = ASKED, *, seconds: float = 10, write_seconds: float = 10) -> ReplyHead:
    return await connection.ask(request, soon(seconds), write_seconds=write_seconds)


async def read(connection: HttpServerConnection, seconds: float = 10) -> bytes:
    whole = bytearray()
    while piece := await connection.read(soon(seconds)):
        whole += piece
    return bytes(whole)


def test_answer_after_answer(run: Run) -> None:
    async def talk() -> None:
        async with connected(saying(CHUNKED)) as (server, connection):
            for _ in range(3):
                assert (await ask(connection)).status == 200
                assert await read(connection) == b"helloworld"
                assert connection.is_reusable
                connection.rest(0)
            assert server.connections == 1

    run(talk())


def test_an_answer_byte_by_byte(run: Run) -> None:
    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        for at in range(len(CHUNKED)):
            writer.write(CHUNKED[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0)
        await reader.read()

    async def talk() -> None:
        async with connected(slowly) as (_, connection):
            await ask(connection)
            assert await read(connection) == b"helloworld"

    run(talk())


@pytest.mark.parametrize("answer", [KEPT, CHUNKED], ids=["length", "chunked"])
def test_an_answer_that_is_cut_off_at_any_byte_is_an_error(run: Run, answer: bytes) -> None:
    async def talk(cut: int) -> None:
        async with connected(once(answer[:cut])) as (_, connection):
            with pytest.raises(BrokenReply, match=r"closed the connection|lost"):
                await ask(connection)
                await read(connection)
            assert not connection.is_open
            assert not connection.is_reusable

    for cut in range(len(answer)):
        run(talk(cut))


def test_an_answer_that_ends_with_its_connection(run: Run) -> None:
    async def talk() -> None:
        async with connected(once(b"HTTP/1.1 200 OK\r\n\r\nhello" + b"a" * 1_000_000)) as (_, connection):
            await ask(connection)
            assert len(await read(connection)) == 1_000_005
            assert not connection.is_reusable

    run(talk())


def test_what_is_there_is_given_before_the_error_behind_it(run: Run) -> None:
    async def talk() -> None:
        async with connected(once(CHUNKED[:-7])) as (server, connection):
            await ask(connection)
            await until(lambda: server.left)
            assert await connection.read(soon()) == b"helloworld"
            with pytest.raises(BrokenReply):
                await connection.read(soon())

    run(talk())


# --- timeouts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nx-a: ", KEPT[:-1]], ids=["nothing", "half a head", "half a body"])
def test_nothing_is_waited_for_longer_than_is_allowed(run: Run, answer: bytes) -> None:
    async def talk() -> None:
        async with connected(saying(answer)) as (_, connection):
            started = time.monotonic()
            with pytest.raises(TimeoutError):
                await ask(connection, seconds=0.04)
                await read(connection, seconds=0.04)
            assert time.monotonic() - started > 0.03

    run(talk())


def test_a_wait_that_is_long_does_not_make_the_next_one_long_nor_a_short_one_short(run: Run) -> None:
    async def talk() -> None:
        said = asyncio.Event()

        async def in_two(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asked(reader)
            writer.write(KEPT[:-1])
            await said.wait()
            writer.write(KEPT[-1:])
            await reader.read()

        async with connected(in_two) as (_, connection):
            await ask(connection, seconds=3600)
            await connection.read(soon(3600))
            with pytest.raises(TimeoutError):
                await connection.read(soon(0.01))
            waiting = asyncio.create_task(connection.read(soon(3600)))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.03):
                    await asyncio.shield(waiting)
            said.set()
            assert await waiting == b"o"

    run(talk())


def test_a_server_that_does_not_read_is_not_written_to_for_ever(run: Run) -> None:
    async def deaf(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a full transport, not only a writer
        await asyncio.Event().wait()

    async def talk() -> None:
        async with connected(deaf) as (_, connection):
            with pytest.raises(WriteTimedOut, match=r"within 0.02 s"):
                await ask(connection, BIG, write_seconds=0.02)
            assert not WriteTimedOut.retryable
        async with connected(deaf) as (_, connection):
            with pytest.raises(TimeoutError):
                await ask(connection, BIG, seconds=0.02)

    run(talk())


def test_an_answer_before_the_whole_request_was_read_is_an_answer_and_the_last_one(run: Run) -> None:
    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a full transport, not only a writer
        writer.write(KEPT.replace(b"200", b"413"))
        await asyncio.Event().wait()

    async def talk() -> None:
        async with connected(hasty) as (_, connection):
            assert (await ask(connection, BIG)).status == 413
            assert await read(connection) == b"hello"
            assert not connection.is_reusable

    run(talk())


# --- limits and cancellation ------------------------------------------------------------------------------------------


def test_a_reader_that_is_slow_makes_the_server_wait(run: Run) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 50000000\r\n\r\n")
        for _ in range(50):
            writer.write(bytes(1_000_000))
            await writer.drain()
        await reader.read()

    async def talk() -> None:
        async with connected(endless) as (_, connection):
            await ask(connection)
            assert connection._reply is not None
            await until(lambda: connection._is_paused)
            held = connection._reply.body_bytes
            assert http_connection.MAX_WAITING_BYTES < held <= http_connection.MAX_WAITING_BYTES + 256 * 1024
            for _ in range(10):
                await asyncio.sleep(0)
            assert connection._reply.body_bytes == held
            assert len(await read(connection)) == 50_000_000
            assert connection.is_reusable

    run(talk())


@pytest.mark.parametrize("answer", [b"", KEPT[:-1]], ids=["before the head", "within the body"])
def test_whoever_is_cancelled_is_gone_for_the_server_at_once(run: Run, answer: bytes) -> None:
    async def talk() -> None:
        async with connected(saying(answer)) as (server, connection):

            async def whole() -> None:
                try:
                    await ask(connection)
                    await read(connection)
                finally:
                    connection.abort()

            task = asyncio.create_task(whole())
            await until(lambda: server.connections and connection._waiter is not None)
            task.cancel()
            await until(lambda: server.left, seconds=5)
            with pytest.raises(asyncio.CancelledError):
                await task

    run(talk())


def test_bytes_that_nobody_asked_for_end_the_connection(run: Run) -> None:
    async def talk() -> None:
        for extra in (KEPT, b"\n", b"x"):
            more = asyncio.Event()

            async def talkative(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, extra: bytes = extra, more: asyncio.Event = more
            ) -> None:
                await asked(reader)
                writer.write(KEPT)
                await more.wait()
                writer.write(extra)
                await reader.read()

            async with connected(talkative) as (_, connection):
                await ask(connection)
                await read(connection)
                assert connection.is_reusable
                connection.rest(0)
                more.set()
                await until(lambda connection=connection: not connection.is_open)

    run(talk())


def test_a_used_connection_that_was_closed_meanwhile_is_stale_and_a_new_one_is_broken(run: Run) -> None:
    async def one_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(KEPT)
        await asked(reader)

    async def none(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await asked(reader)

    async def talk() -> None:
        async with connected(one_answer) as (_, connection):
            await ask(connection)
            await read(connection)
            connection.rest(0)
            with pytest.raises(StaleConnection):
                await ask(connection)
        async with connected(none) as (_, connection):
            with pytest.raises(BrokenReply) as broken:
                await ask(connection)
            assert not isinstance(broken.value, StaleConnection)

    run(talk())


# --- connecting -------------------------------------------------------------------------------------------------------


def test_nobody_there(run: Run) -> None:
    async def talk() -> None:
        with pytest.raises(HttpFailure, match="refused"):
            await http_connection.connect(ServerOrigin("127.0.0.1", free_port(), False, "x", ""), None, 5)
        with pytest.raises(HttpFailure, match="no connection"):
            await http_connection.connect(ServerOrigin("nowhere.invalid", 80, False, "x", ""), None, 5)

    run(talk())


async def test_every_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo

    async def both(host: object, port: int, **more: object) -> object:
        return [*await resolve("127.0.0.2", port, **more), *await resolve("127.0.0.1", port, **more)]  # type: ignore[arg-type]

    async with raw_server(saying(KEPT)) as server:
        monkeypatch.setattr(loop, "getaddrinfo", both)
        connection = await http_connection.connect(ServerOrigin("localhost", server.origin.port, False, "localhost", ""), None, 5)
        connection.abort()


def test_certificates_are_checked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk() -> None:
        with tempfile.TemporaryDirectory() as folder:
            make_certificate(Path(folder), "127.0.0.1")
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(Path(folder) / "cert.pem", Path(folder) / "key.pem")
            async with raw_server(saying(CHUNKED), tls) as server:
                async with http_connection.opened(server.origin, 1, 5) as pool:
                    with pytest.raises(HttpFailure, match="certificate is not trusted"):
                        await pool.ask(ASKED, soon())
                monkeypatch.setenv("SSL_CERT_FILE", str(Path(folder) / "cert.pem"))
                async with http_connection.opened(server.origin, 1, 5) as pool:
                    for _ in range(2):
                        connection, head = await pool.ask(ASKED, soon())
                        assert (head.status, await read(connection)) == (200, b"helloworld")
                        pool.release(connection)
                    elsewhere = ServerOrigin("localhost", server.origin.port, True, "localhost", "")
                    async with http_connection.opened(elsewhere, 1, 5) as other:
                        with pytest.raises(HttpFailure, match="certificate is not trusted"):
                            await other.ask(ASKED, soon())

    run(talk())


def test_a_handshake_that_never_ends_is_given_up(run: Run) -> None:
    async def talk() -> None:
        async with raw_server(silent) as server:
            with pytest.raises(HttpFailure, match=r"within 0.05 s"):
                await http_connection.connect(server.origin, ssl.create_default_context(), 0.05)

    run(talk())
