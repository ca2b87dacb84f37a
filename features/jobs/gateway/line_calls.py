"""Answers a line of a job by the gateway's own HTTP application, so that each endpoint answers a line as it answers a caller."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

#: ASGI messages are open dicts by specification.
_Message = MutableMapping[str, Any]
App = Callable[[_Message, Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]], Awaitable[None]]


class LineAnswer(msgspec.Struct, frozen=True):
    status: int
    body: bytes


async def answer(app: App, endpoint: str, body: bytes) -> LineAnswer:
    """Cancel it to end the line's generation."""
    rest: list[bytes] = [body]
    status, parts = 0, list[bytes]()

    async def receive() -> _Message:
        if not rest:
            # Nobody disconnects.
            await asyncio.Event().wait()
        return {"type": "http.request", "body": rest.pop(), "more_body": False}

    async def send(message: _Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message["body"])

    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
    scope = {"type": "http", "method": "POST", "scheme": "http", "path": endpoint, "query_string": b"", "headers": headers, "client": None}
    await app(scope, receive, send)
    return LineAnswer(status, b"".join(parts))
