"""Many connections at once: from one address, from all, slow ones, and ones that read nothing."""

import asyncio
import contextlib
import itertools
import resource
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from shared.node import http_connection, http_server
from tests import stopwatch
from tests.shared.node import http_ports
from tests.shared.node.http_ports import answer, ask, connected
from tests.stopwatch import HANG_SECONDS

#: Deadlines in this file are a tenth of the real ones.
HEAD_SECONDS = 1.0
SLOW = 2000


async def _app(_scope: Any, receive: Any, send: Any) -> None:
    await http_ports.read_body(receive)
    await http_ports.respond(send, b"fine")


@pytest.fixture
def many_files() -> Iterator[None]:
    """Raise the limit of open files: both ends of all connections are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 3 * SLOW:
        pytest.skip(f"only {hard} files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3 * SLOW), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Slow(asyncio.Protocol):
    """Sends a request's head, a byte each half second."""

    closed_at: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.opened_at = time.monotonic()
        self._rest = itertools.chain(b"GET /x HTTP/1.1\r\nHost: here\r\nX: ", itertools.repeat(ord("x")))
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed_at = time.monotonic()

    def _send(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(bytes([next(self._rest)]))
            asyncio.get_running_loop().call_later(0.5, self._send)


async def _besiege(place: http_ports.Place) -> list[Slow]:
    loop = asyncio.get_running_loop()
    made: list[Slow] = []
    while len(made) < SLOW:
        pairs = await asyncio.gather(*(loop.create_connection(Slow, *place) for _ in range(200)))
        made += (protocol for _, protocol in pairs)
    return made


@pytest.mark.usefixtures("many_files")
async def test_2000_slow_connections_are_closed_in_time_and_block_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "HEAD_SECONDS", HEAD_SECONDS)
    waited: list[float] = []
    async with http_ports.serving(_app) as place, asyncio.timeout(120), connected(place) as (reader, writer):
        writer.write(http_ports.REQUEST)
        assert b"fine" in await answer(reader)
        slow = await _besiege(place)
        while any(each.closed_at is None for each in slow):
            began = time.monotonic()
            writer.write(http_ports.REQUEST)
            assert b"fine" in await answer(reader)
            assert b"200 OK fine" in await ask(place), "one that comes now is let in before those that wait without asking"
            waited.append(time.monotonic() - began)
            await asyncio.sleep(0.02)
    if stopwatch.bounds_hold:
        assert max(each.closed_at - each.opened_at for each in slow if each.closed_at is not None) < 5.0
        assert sorted(waited)[len(waited) // 2] < 0.5
        assert max(waited) < 4.0


async def test_a_full_port_reports_it_and_closes_no_active_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 3)
    async with http_ports.serving(_app) as place, asyncio.timeout(HANG_SECONDS), contextlib.AsyncExitStack() as open_ones:
        used = [await open_ones.enter_async_context(connected(place)) for _ in range(2)]
        await _fine(*used)
        idle, _ = await open_ones.enter_async_context(connected(place))
        used.append(await open_ones.enter_async_context(connected(place)))
        await _fine(*used)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await idle.readexactly(1)
        async with connected(place) as (late, _):
            refusal = await late.read()
            assert refusal.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after: 5\r\n" in refusal
        await _fine(*used)
        used[0][1].close()
        await _ask_until_served(place)


async def _fine(*connections: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    for reader, writer in connections:
        writer.write(http_ports.REQUEST)
        assert b"fine" in await answer(reader)


@pytest.fixture
def counted_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """All clients here are on this machine; count them as if they were remote."""
    monkeypatch.setattr("ipaddress.IPv4Address.is_loopback", False)


@pytest.mark.usefixtures("counted_loopback")
async def test_the_65th_connection_of_an_address_is_refused_and_others_are_served() -> None:
    asked = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal asked
        asked += 1
        await _app(scope, receive, send)

    async with http_ports.serving(app) as place, asyncio.timeout(30):
        first = [await asyncio.open_connection(*place) for _ in range(64)]
        async with connected(place) as (reader, _):
            refusal = await reader.read()
        assert refusal.startswith(b"HTTP/1.1 429 ")
        assert b"\r\nretry-after: 10\r\n" in refusal
        assert asked == 0
        assert b"200 OK fine" in await ask(place, "127.0.0.2")
        first[0][1].close()
        await _ask_until_served(place)
        for _, writer in first:
            writer.close()


async def _ask_until_served(place: http_ports.Place) -> None:
    said = b""
    while b" 200 OK fine" not in said:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            said = await ask(place)


@pytest.mark.usefixtures("counted_loopback")
async def test_connections_of_a_trusted_proxy_are_not_counted() -> None:
    async with (
        http_ports.serving(_app, http_connections_per_address=2, trusted_proxies=("127.0.0.0/30",)) as place,
        asyncio.timeout(HANG_SECONDS),
    ):
        many = [await asyncio.open_connection(*place) for _ in range(5)]
        assert b"200 OK fine" in await ask(place)
        for _, writer in many:
            writer.close()


async def test_connections_of_this_machine_are_not_counted() -> None:
    async with http_ports.serving(_app, http_connections_per_address=2) as place, asyncio.timeout(HANG_SECONDS):
        many = [await asyncio.open_connection(*place) for _ in range(5)]
        assert b"200 OK fine" in await ask(place)
        for _, writer in many:
            writer.close()


@pytest.mark.parametrize("length", [10_000_000, None])
@pytest.mark.parametrize("headers", [b"", b"Connection: close\r\n"])
async def test_a_client_that_reads_nothing_of_a_response_is_disconnected(
    monkeypatch: pytest.MonkeyPatch, length: int | None, headers: bytes
) -> None:
    """With a complete answer in the buffer, or with a stream that continues."""
    monkeypatch.setattr(http_connection, "STALLED_SECONDS", 0.3)
    ended: list[str] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await http_ports.read_body(receive)
        if length is not None:
            await http_ports.respond(send, b"x" * length)
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(1000):
                await send({"type": "http.response.body", "body": b"x" * 10_000, "more_body": True})
        ended.append((await receive())["type"])

    async with http_ports.serving(app) as place, asyncio.timeout(HANG_SECONDS):
        _, writer = await asyncio.open_connection(*place, limit=1000)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /x HTTP/1.1\r\nHost: here\r\n%b\r\n" % headers)
        await _until_cut_off(writer)
        assert ended == ["http.disconnect"]


async def _until_cut_off(writer: asyncio.StreamWriter) -> None:
    """Write until the connection breaks: a client that reads nothing notices only this way."""
    while True:
        writer.write(b"\r\n")
        try:
            await writer.drain()
        except ConnectionError:
            return
        await asyncio.sleep(0.02)


async def test_the_unread_rest_of_a_response_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is smaller than the buffer, so no write waits, and a transport that only closes would wait forever."""
    monkeypatch.setattr(http_connection, "STALLED_SECONDS", 0.2)
    left: list[int] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await http_ports.read_body(receive)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100000000")]})
        transport = send.__self__.transport
        while not transport.get_write_buffer_size():
            await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
        left.append(transport.get_write_buffer_size())

    async with http_ports.serving(app) as place, asyncio.timeout(HANG_SECONDS):
        _, writer = await asyncio.open_connection(*place, limit=1000)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(http_ports.REQUEST)
        await _until_cut_off(writer)
        assert left
        assert left[0] < 65536
