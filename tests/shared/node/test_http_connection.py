"""Clients that send slowly, or what is no HTTP, over real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.node import http, http_connection
from shared.node.settings import NodeSettings

REQUEST = b"GET /x HTTP/1.1\r\nHost: here\r\n\r\n"


async def _app(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    said = b" ".join(name + b"=" + value for name, value in scope["headers"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]})
    await send({"type": "http.response.body", "body": said})


@pytest.fixture
async def place() -> AsyncIterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        server = http.HttpServer(_app, sock, NodeSettings(node_key_file=Path("/nowhere")))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.run())
            yield sock.getsockname()
            server.stop()


@asynccontextmanager
async def connected(place: tuple[str, int]) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*place)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    return head.split(b"\r\n")[0] + b" " + await reader.readexactly(length)


@pytest.mark.parametrize("begun", [b"", b"G", b"GET /x HTTP/1.1\r\nHost: h", REQUEST + b"GET"])
async def test_a_head_that_does_not_come_to_its_end_closes_the_connection(
    place: tuple[str, int], monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(http_connection, "HEAD_SECONDS", 0.2)
    async with connected(place) as (reader, writer), asyncio.timeout(5):
        writer.write(begun)
        began = asyncio.get_running_loop().time()
        trickling = asyncio.create_task(_trickle(writer))
        await reader.read()
        trickling.cancel()
        assert 0.1 < asyncio.get_running_loop().time() - began < 2


async def _trickle(writer: asyncio.StreamWriter) -> None:
    """One byte now and then keeps no connection."""
    while True:
        await asyncio.sleep(0.03)
        writer.write(b"a")


async def test_500_slow_heads_do_not_keep_others_out(place: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "HEAD_SECONDS", 1.0)
    async with asyncio.timeout(20):
        slow = [await asyncio.open_connection(*place) for _ in range(500)]
        for _, writer in slow:
            writer.write(b"GET /x HTTP/1.1\r\n")
        async with httpx.AsyncClient(base_url="http://{}:{}".format(*place)) as client:
            assert [(await client.get("/x")).status_code for _ in range(20)] == [200] * 20
        for reader, writer in slow:
            assert await reader.read() == b""
            writer.close()


async def test_a_connection_may_rest_between_two_requests(place: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "HEAD_SECONDS", 0.01)
    async with connected(place) as (reader, writer), asyncio.timeout(5):
        for _ in range(2):
            writer.write(REQUEST)
            assert b"200" in await answer(reader)
            await asyncio.sleep(0.04)  # the time in which a begun head would be over


async def test_pipelined_requests_are_answered_in_their_order(place: tuple[str, int]) -> None:
    async with connected(place) as (reader, writer), asyncio.timeout(5):
        writer.write(b"".join(b"GET /x HTTP/1.1\r\nHost: here\r\nN: %d\r\n\r\n" % number for number in range(50)))
        for number in range(50):
            assert b"n=%d" % number in await answer(reader)


TWO = b"GET /y HTTP/1.1\r\nHost: here\r\n\r\n"
NO_HTTP = {
    "two different lengths": b"POST /x HTTP/1.1\r\nHost: here\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "a length that is no number": b"POST /x HTTP/1.1\r\nHost: here\r\nContent-Length: +1\r\n\r\n",
    "a negative length": b"POST /x HTTP/1.1\r\nHost: here\r\nContent-Length: -1\r\n\r\n",
    "an encoding of the transfer that is none": b"POST /x HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: xchunked\r\n\r\n",
    "two encodings of the transfer": b"POST /x HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "a space before the colon": b"GET /x HTTP/1.1\r\nHost : here\r\n\r\n",
    "a folded header": b"GET /x HTTP/1.1\r\nHost: here\r\n\tfolded\x00: x\r\n\r\n",
    "a NUL in a header": b"GET /x HTTP/1.1\r\nHost: here\r\nX: a\x00b\r\n\r\n",
    "two hosts": b"GET /x HTTP/1.1\r\nHost: here\r\nHost: there\r\n\r\n",
    "no host": b"GET /x HTTP/1.1\r\n\r\n",
    "a bad chunk": b"POST /x HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nab\r\n",
    "a head without an end": b"GET /x HTTP/1.1\r\nHost: here\r\nX: " + b"x" * 200_000,
}


@pytest.mark.parametrize("name", NO_HTTP)
async def test_what_two_servers_could_read_in_two_ways_ends_the_connection(place: tuple[str, int], name: str) -> None:
    async with connected(place) as (reader, writer), asyncio.timeout(5):
        writer.write(NO_HTTP[name] + TWO)
        try:
            said = await reader.read()
        except ConnectionResetError:  # it may close with our bytes unread
            said = b""
        assert b"200 OK" not in said, said
    async with httpx.AsyncClient(base_url="http://{}:{}".format(*place)) as client:
        assert (await client.get("/x")).status_code == 200
