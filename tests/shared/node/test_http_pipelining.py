"""Requests that a client sends before the previous one is answered: their order, and their limits."""

import asyncio
import socket
from typing import Any

import pytest

from shared.node import http_connection
from tests.shared.node import http_ports
from tests.shared.node.http_ports import answer, connected
from tests.stopwatch import HANG_SECONDS

BAD = b"GET /bad HTTP/1.1\r\n\r\n"
BAD_CHUNK = b"POST /bad HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode()


class Door:
    """Answers with the path; delays `/wait` until ``open`` is set; `/stream` never ends."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.asked: list[str] = []
        self.gone = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        self.asked.append(path)
        if path == "/stream":
            await self._stream(receive, send)
            return
        if path == "/early":
            await http_ports.respond(send, b"early")
            return
        if await http_ports.read_body(receive) is None:
            self.gone.set()
            return
        if path == "/wait":
            disconnected = asyncio.create_task(receive())
            opened = asyncio.create_task(self.open.wait())
            await asyncio.wait((disconnected, opened), return_when=asyncio.FIRST_COMPLETED)
            disconnected.cancel()
            opened.cancel()
        await http_ports.respond(send, path.encode())

    async def _stream(self, receive: Any, send: Any) -> None:
        await http_ports.read_body(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        disconnected = asyncio.create_task(receive())
        while not disconnected.done():
            await send({"type": "http.response.body", "body": b"word", "more_body": True})
            await asyncio.sleep(0)
        assert (await disconnected)["type"] == "http.disconnect"
        self.gone.set()


async def test_a_bad_request_is_answered_after_the_requests_before_it() -> None:
    door = Door()
    async with http_ports.serving(door) as place, connected(place) as (reader, writer), asyncio.timeout(HANG_SECONDS):
        writer.write(get("/wait") + get("/b") + BAD + get("/c"))
        await until(lambda: door.asked == ["/wait"])
        door.open.set()
        assert [(await answer(reader)).split()[-1] for _ in range(2)] == [b"/wait", b"/b"]
        assert (await answer(reader)).startswith(b"HTTP/1.1 400 ")
        assert (await reader.read(), door.asked) == (b"", ["/wait", "/b"])


async def test_a_bad_request_is_answered_after_one_that_was_answered_before_its_body() -> None:
    async with http_ports.serving(Door()) as place, connected(place) as (reader, writer), asyncio.timeout(HANG_SECONDS):
        writer.write(b"POST /early HTTP/1.1\r\nHost: here\r\nContent-Length: 4\r\n\r\nbo")
        assert (await answer(reader)).endswith(b"early")
        writer.write(b"dy" + BAD)
        assert (await answer(reader)).startswith(b"HTTP/1.1 400 ")


async def test_a_queued_request_with_a_broken_body_never_runs() -> None:
    door = Door()
    async with http_ports.serving(door) as place, connected(place) as (reader, writer), asyncio.timeout(HANG_SECONDS):
        writer.write(get("/wait") + get("/b") + BAD_CHUNK)
        await until(lambda: door.asked == ["/wait"])
        door.open.set()
        assert [(await answer(reader)).split()[-1] for _ in range(2)] == [b"/wait", b"/b"]
        assert (await answer(reader)).startswith(b"HTTP/1.1 400 ")
        assert (await reader.read(), door.asked) == (b"", ["/wait", "/b"])


async def test_a_running_request_with_a_broken_body_is_a_bad_request() -> None:
    door = Door()
    async with http_ports.serving(door) as place, connected(place) as (reader, writer), asyncio.timeout(HANG_SECONDS):
        writer.write(BAD_CHUNK.removesuffix(b"ZZ\r\n") + b"1\r\na\r\n")
        await until(lambda: door.asked == ["/bad"])
        writer.write(b"ZZ\r\n")
        assert (await answer(reader)).startswith(b"HTTP/1.1 400 ")
        assert await reader.read() == b""
        await door.gone.wait()


async def test_a_hundred_requests_may_be_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "HEAD_SECONDS", 1.0)
    door = Door()
    async with http_ports.serving(door) as place, connected(place) as (reader, writer), asyncio.timeout(HANG_SECONDS):
        writer.write(get("/wait") + b"".join(get(f"/{number}") for number in range(200)))
        await until(lambda: door.asked == ["/wait"])
        door.open.set()
        assert (await answer(reader)).endswith(b"/wait")
        assert [(await answer(reader)).split()[-1] for _ in range(100)] == [b"/%d" % number for number in range(100)]
        assert b"400 Bad Request more than 100 requests wait" in await answer(reader)
        assert await reader.read() == b""


async def test_a_slow_request_head_is_accepted_once_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the next request is refused, and the answer takes longer than a head may."""
    monkeypatch.setattr(http_connection, "HEAD_SECONDS", 1.0)
    door = Door()
    async with http_ports.serving(door) as place, connected(place) as (reader, writer), asyncio.timeout(HANG_SECONDS):
        writer.write(b"G")
        await asyncio.sleep(0.01)
        writer.write(get("/wait")[1:] + BAD)
        await until(lambda: door.asked == ["/wait"])
        asyncio.get_running_loop().call_later(1.2, door.open.set)
        assert (await answer(reader)).endswith(b"/wait")
        assert (await answer(reader)).startswith(b"HTTP/1.1 400 ")


async def test_nothing_is_read_while_requests_are_queued() -> None:
    """Otherwise a client could fill the memory: each answer, and each call that waits for a disconnect, would read some more."""
    door, megabytes = Door(), 64
    async with http_ports.serving(door) as place, connected(place) as (reader, writer), asyncio.timeout(30):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        before = b"".join(get(f"/{number}") for number in range(95)) + get("/wait")
        writer.write(before + b"POST /b HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % (megabytes << 20))
        writer.write(bytes(megabytes << 20))
        await until(lambda: door.asked[-1:] == ["/wait"])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 0.3)
        # The kernel's buffers and the server hold some of it.
        assert writer.transport.get_write_buffer_size() > (megabytes - 8) << 20
        door.open.set()
        said = [(await answer(reader)).split()[-1] for _ in range(97)]
        assert said[-2:] == [b"/wait", b"/b"]


async def test_a_disconnect_is_noticed_although_another_request_is_queued() -> None:
    door = Door()
    async with http_ports.serving(door) as place, asyncio.timeout(HANG_SECONDS):
        async with connected(place) as (reader, writer):
            writer.write(get("/stream") + get("/b"))
            await reader.readuntil(b"word")
        await door.gone.wait()
        assert door.asked == ["/stream"]


async def until(holds: Any) -> None:
    while not holds():  # noqa: ASYNC110 – what it waits for is seen from outside
        await asyncio.sleep(0.001)
