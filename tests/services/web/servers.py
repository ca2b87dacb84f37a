"""Real uvicorn servers on free loopback ports, configured like the node's, and an upstream that tests can pause."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
import uvicorn

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def in_process(app: object) -> httpx.ASGITransport:
    """Return a transport for an application with Litestar's types, which are stricter than httpx's."""
    return httpx.ASGITransport(cast("App", app))


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Any:
        yield


@asynccontextmanager
async def serving(app: object) -> AsyncIterator[str]:
    """Run ``app`` on a server, and yield its address."""
    sock = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        cast("App", app), lifespan="off", log_config=None, access_log=False, server_header=False, ws="none", loop="none"
    )
    server = _Server(config)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(server.serve(sockets=[sock]))
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            server.force_exit = True
            await asyncio.wait((running,))
            sock.close()


@dataclass(slots=True)
class Seen:
    """One request, as the gateway received it."""

    method: str
    raw_path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""

    def values(self, name: str) -> list[bytes]:
        return [value for present, value in self.headers if present == name.encode()]


@dataclass(slots=True)
class Upstream:
    """A gateway whose answers the test controls."""

    seen: list[Seen] = field(default_factory=list)
    #: Set when the first part of a body has arrived.
    body_began: asyncio.Event = field(default_factory=asyncio.Event)
    #: The test opens it to release the next chunk.
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    #: Set when the client disconnects before the end of the answer.
    client_gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen = Seen(scope["method"], scope["raw_path"], scope["query_string"], list(scope["headers"]))
        self.seen.append(seen)
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.client_gone.set()
                return
            seen.body += message["body"]
            if seen.body:
                self.body_began.set()
            if not message["more_body"]:
                break
        await _ANSWERS.get(scope["path"], _echo)(self, seen, receive, send)


async def _echo(_: Upstream, seen: Seen, __: Receive, send: Send) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"set-cookie", b"aimesh_session=chosen-by-the-gateway; Path=/"),
        (b"keep-alive", b"timeout=5"),
        (b"x-request-id", b"of-the-gateway"),
        (b"x-twice", b"1"),
        (b"x-twice", b"2"),
    ]
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    await send({"type": "http.response.body", "body": seen.body})


async def _silent(_: Upstream, __: Seen, receive: Receive, ___: Send) -> None:
    """Wait for the disconnect without answering."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _stream(upstream: Upstream, _: Seen, receive: Receive, send: Send) -> None:
    """Send four events, and wait for the gate after each; after the fourth, the stream ends."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        upstream.client_gone.set()
        upstream.gate.set()

    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch())
        for number in range(4):
            await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
            await upstream.gate.wait()
            upstream.gate.clear()
            if upstream.client_gone.is_set():
                return
        await send({"type": "http.response.body", "body": b""})
        watching.cancel()


async def _break_between_events(_: Upstream, __: Seen, ___: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
    # Returning without an end makes uvicorn close the connection.


async def _break_within_an_answer(_: Upstream, __: Seen, ___: Receive, send: Send) -> None:
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json"), (b"content-length", b"99")]}
    )
    await send({"type": "http.response.body", "body": b'{"half":', "more_body": True})


async def _zipped(_: Upstream, __: Seen, ___: Receive, send: Send) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-encoding", b"gzip"), (b"content-security-policy", b"default-src 'self'")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"\x1f\x8b not really gzip"})


_ANSWERS = {
    "/v1/silent": _silent,
    "/v1/stream": _stream,
    "/v1/break-events": _break_between_events,
    "/v1/break-json": _break_within_an_answer,
    "/docs": _zipped,
}
