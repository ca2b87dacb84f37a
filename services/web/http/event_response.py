"""Stream server-sent events. The response and its source end when the client disconnects or stops reading."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
from litestar import Response
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

_SILENT_SECONDS = 10.0
#: A client that reads nothing for this long is considered gone.
_UNREAD_SECONDS = 30.0
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # Without it, proxies such as nginx buffer the stream.
    (b"x-accel-buffering", b"no"),
]

#: Opened when the response starts, and closed with it.
Source = Callable[[], AbstractAsyncContextManager[AsyncIterator[bytes]]]


def event(name: str, facts: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(facts))


class EventResponse(Response[None]):
    """The response that a route returns. ``source`` must report errors as events, because the status was already sent."""

    def __init__(self, source: Source) -> None:
        super().__init__(None)
        self._source = source

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIResponse:
        return _EventAnswer(self._source)


class _EventAnswer(ASGIResponse):
    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = _Sending(send)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(work) for work in (sending.run(self._source), sending.send_heartbeats(), _wait_for_end(receive))]
            try:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in running:
                    task.cancel()


class _Sending:
    def __init__(self, send: Send) -> None:
        self._send = send
        self._written_at = asyncio.get_running_loop().time()

    async def run(self, source: Source) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        # Tell the browser immediately that its request arrived.
        await self._write(b": here\n\n")
        async with source() as events:
            async for written in events:
                await self._write(written)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def send_heartbeats(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(max(0.0, self._written_at + _SILENT_SECONDS - loop.time()))
            if loop.time() >= self._written_at + _SILENT_SECONDS:
                await self._write(b": still here\n\n")

    async def _write(self, written: bytes) -> None:
        async with asyncio.timeout(_UNREAD_SECONDS):
            await self._send({"type": "http.response.body", "body": written, "more_body": True})
        self._written_at = asyncio.get_running_loop().time()


async def _wait_for_end(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
