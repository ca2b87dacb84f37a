"""WebSockets that the HTTP port passes on as they are."""

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from shared.node import http_server, http_tunnel
from shared.node.http_tunnel import OfferRates, TunnelTarget
from shared.node.settings import NodeSettings
from tests.shared.node import http_ports
from tests.shared.node.http_ports import Place, connected
from tests.testnet import until

SECONDS = 10
OFFER = (
    b"GET /mesh HTTP/1.1\r\nHost: here\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: k\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Settings(NodeSettings, frozen=True, kw_only=True):
    to: TunnelTarget

    @property
    def tunnel(self) -> TunnelTarget:
        return self.to


class Behind:
    """The server behind: keeps what it gets, and sends what the test says."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            self.connections.append((reader, writer))
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")

    async def serve_until_the_end(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.serve(reader, writer)
        with suppress(ConnectionError):
            await reader.read()
        writer.transport.abort()


@asynccontextmanager
async def behind(*, follows: bool = False) -> AsyncIterator[Behind]:
    """``follows``: it closes what its client has closed."""
    found = Behind()
    server = await asyncio.start_server(found.serve_until_the_end if follows else found.serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        for _, writer in found.connections:
            writer.transport.abort()


async def _app(scope: http_server.Scope, receive: http_server.Receive, send: http_server.Send) -> None:
    await http_ports.read_body(receive)
    await http_ports.respond(send, b"the page")


@asynccontextmanager
async def port(to: int, **settings: object) -> AsyncIterator[Place]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        chosen = Settings(node_key_file=Path("/nowhere"), to=TunnelTarget("/mesh", "127.0.0.1", to), drain_seconds=1, **settings)
        server = http_server.HttpServer(_app, sock, chosen)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.run())
            try:
                yield sock.getsockname()
            finally:
                server.stop()


async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, offer: bytes = OFFER) -> None:
    writer.write(offer)
    async with asyncio.timeout(SECONDS):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")


async def test_bytes_go_both_ways_untouched() -> None:
    async with behind() as server, port(server.port) as place, connected(place) as (reader, writer):
        await begin(reader, writer)
        there_reader, there = server.connections[0]
        # Neither HTTP nor frames.
        writer.write(b"GET / HTTP/9\r\n\r\n\x00\xff")
        there.write(b"\xff" * 1_000_000)
        async with asyncio.timeout(SECONDS):
            assert await there_reader.readexactly(18) == b"GET / HTTP/9\r\n\r\n\x00\xff"
            assert await reader.readexactly(1_000_000) == b"\xff" * 1_000_000
            there.close()
            assert await reader.read() == b""


async def test_the_server_behind_gets_a_head_of_ours_with_the_address_that_we_saw() -> None:
    forged = OFFER.replace(
        b"\r\n\r\n", b"\r\nX-Forwarded-For: 6.6.6.6\r\nCookie: secret\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    )
    async with behind() as server, port(server.port) as place, connected(place, "127.0.0.2") as (reader, writer):
        await begin(reader, writer, forged)
        lines = server.heads[0].split(b"\r\n")
        assert lines[0] == b"GET / HTTP/1.1"
        assert sorted(lines[1:-2]) == [
            b"connection: Upgrade", b"host: here", b"sec-websocket-key: k", b"sec-websocket-version: 13", b"upgrade: WebSocket",
            b"x-forwarded-for: 127.0.0.2",
        ]  # fmt: skip


async def test_a_trusted_proxy_is_believed_and_nobody_before_it() -> None:
    forwarded = OFFER.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 6.6.6.6, 203.0.113.9\r\n\r\n")
    async with behind() as server, port(server.port, trusted_proxies=("127.0.0.3",)) as place:
        async with connected(place, "127.0.0.3") as (reader, writer):
            await begin(reader, writer, forwarded)
        assert b"\r\nx-forwarded-for: 203.0.113.9\r\n" in server.heads[0]


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(OFFER.replace(b"/mesh", b"/mesh/"), id="another path"),
        pytest.param(OFFER.replace(b"WebSocket\r\n", b"h2c\r\n"), id="another protocol"),
        pytest.param(OFFER.replace(b"GET", b"POST"), id="another method"),
        pytest.param(OFFER + b"early", id="bytes before the answer"),
    ],
)
async def test_other_offers_are_answered_as_if_there_were_none(request_: bytes) -> None:
    async with behind() as server, port(server.port) as place, connected(place) as (reader, writer):
        writer.write(request_)
        async with asyncio.timeout(SECONDS):
            assert await http_ports.answer(reader) == b"HTTP/1.1 200 OK the page"
        assert server.heads == []


async def test_an_earlier_request_on_the_connection_is_answered_first() -> None:
    async with behind() as server, port(server.port) as place, connected(place) as (reader, writer):
        writer.write(http_ports.REQUEST)
        async with asyncio.timeout(SECONDS):
            assert await http_ports.answer(reader) == b"HTTP/1.1 200 OK the page"
        await begin(reader, writer)
        assert len(server.heads) == 1


async def test_without_the_server_behind_there_is_a_502() -> None:
    async with port(1) as place, connected(place) as (reader, writer):
        writer.write(OFFER)
        async with asyncio.timeout(SECONDS):
            assert await http_ports.answer(reader) == b"HTTP/1.1 502 Bad Gateway the mesh's NATS server doesn't answer"
            assert await reader.read() == b""


async def test_connections_are_counted_until_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipaddress.IPv4Address.is_loopback", False)
    async with behind() as server, port(server.port, http_connections_per_address=2) as place:
        async with connected(place) as first, connected(place) as second:
            await begin(*first)
            await begin(*second)
            assert b" 429 Too Many Requests" in await http_ports.ask(place)

        async with asyncio.timeout(SECONDS):
            said = b""
            while b" 200 OK " not in said:
                with suppress(ConnectionError, asyncio.IncompleteReadError):
                    said = await http_ports.ask(place)


def test_offers_are_counted_by_network_in_each_second() -> None:
    rates = OfferRates()
    assert all(rates.count("203.0.113.9", 7.5) for _ in range(http_tunnel.MAX_OFFERS))
    assert not rates.count("203.0.113.9", 7.9)
    assert rates.count("203.0.113.8", 7.9)
    assert rates.count("203.0.113.9", 8.0)
    assert all(rates.count(f"2001:db8::{host}", 8.1) for host in range(http_tunnel.MAX_OFFERS))
    assert not rates.count("2001:db8::ffff", 8.1), "the same customer's"


async def test_more_offers_of_one_address_are_refused_by_whom_a_trusted_proxy_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_tunnel, "MAX_OFFERS", 1)
    count = OfferRates.count
    monkeypatch.setattr(OfferRates, "count", lambda rates, address, now: count(rates, address, 7.0))

    async def offer(place: Place, by: str, forwarded: str) -> bytes:
        async with connected(place, by) as (reader, writer):
            writer.write(OFFER.replace(b"\r\n\r\n", f"\r\nX-Forwarded-For: {forwarded}\r\n\r\n".encode()))
            return (await reader.readline()).strip()

    async with behind() as server, port(server.port, trusted_proxies=("127.0.0.3",)) as place:
        answers = [await offer(place, "127.0.0.3", forwarded) for forwarded in ("203.0.113.9", "203.0.113.8", "203.0.113.9")]
        assert [answer.split()[1] for answer in answers] == [b"101", b"101", b"429"]
        # Nobody else is believed: these are of this machine, and not counted.
        answers = [await offer(place, "127.0.0.2", "203.0.113.9") for _ in range(2)]
        assert [answer.split()[1] for answer in answers] == [b"101", b"101"]


@pytest.mark.parametrize(
    ("most", "offers"), [(50, 500), pytest.param(http_server.MAX_CONNECTIONS, 10_000, marks=pytest.mark.nightly("storms"))]
)
async def test_offers_that_log_in_nowhere_take_nobodys_place(monkeypatch: pytest.MonkeyPatch, most: int, offers: int) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", most)
    monkeypatch.setattr("ipaddress.IPv4Address.is_loopback", False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Both ends of both sides are in this process.
    files = 5 * most
    if hard < files:
        pytest.skip(f"only {hard} files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, files), hard))
    answered = held = 0

    async def offer(place: Place, number: int) -> None:
        nonlocal answered, held
        # Each has less than its address may.
        async with connected(place, f"127.1.{number // 16 // 250}.{number // 16 % 250 + 1}") as (reader, writer):
            is_open = True
            try:
                await begin(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                is_open = False
            answered, held = answered + 1, held + is_open
            with suppress(ConnectionError):
                await reader.read()
            held -= is_open

    async with behind(follows=True) as server, port(server.port) as place, connected(place) as member, asyncio.TaskGroup() as tasks:
        monkeypatch.setattr(http_tunnel, "LOGIN_SECONDS", 0.0)
        await begin(*member)
        monkeypatch.setattr(http_tunnel, "LOGIN_SECONDS", 60.0)
        made: list[asyncio.Task[None]] = []
        while len(made) < offers:
            made += [tasks.create_task(offer(place, number)) for number in range(len(made), len(made) + 25)]
            await until(lambda: answered == len(made), seconds=SECONDS)  # noqa: B023 - it waits here
            assert await http_ports.ask(place) == b"HTTP/1.1 200 OK the page"
        await until(lambda: most // 2 < held < most)
        server.connections[0][1].write(b"PING")
        async with asyncio.timeout(SECONDS):
            assert await member[0].readexactly(4) == b"PING"
        for task in made:
            task.cancel()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_silent_client_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_tunnel, "IDLE_SECONDS", 0.2)
    async with behind() as server, port(server.port) as place, connected(place) as (reader, writer):
        await begin(reader, writer)
        with suppress(ConnectionResetError):
            async with asyncio.timeout(SECONDS):
                assert await reader.read() == b""
        assert await server.connections[0][0].read() == b""


async def test_a_reader_that_reads_nothing_holds_no_memory() -> None:
    async with behind() as server, port(server.port) as place, connected(place) as (reader, writer):
        await begin(reader, writer)
        reader._transport.pause_reading()
        _, there = server.connections[0]
        for _ in range(1200):
            there.write(bytes(65536))

        # Three sockets' buffers take some; the rest waits where it comes from.
        held = [0, 1]
        while len(set(held[-5:])) > 1:
            await asyncio.sleep(0.05)
            held.append(there.transport.get_write_buffer_size())
        assert held[-1] > 40_000_000
        reader._transport.resume_reading()
        async with asyncio.timeout(SECONDS):
            assert await reader.readexactly(1200 * 65536) == bytes(1200 * 65536)


async def test_both_sides_end_when_the_client_is_gone() -> None:
    async with behind() as server, port(server.port) as place:
        async with connected(place) as (reader, writer):
            await begin(reader, writer)
        with suppress(ConnectionResetError):
            async with asyncio.timeout(SECONDS):
                assert await server.connections[0][0].read() == b""
