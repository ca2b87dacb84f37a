"""An HTTP port as every service has it, with the test's application, and raw connections to it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from shared.node import http_server
from shared.node.settings import NodeSettings

Place = tuple[str, int]

REQUEST = b"GET /x HTTP/1.1\r\nHost: here\r\n\r\n"


@asynccontextmanager
async def serving(app: http_server.App, **settings: Any) -> AsyncIterator[Place]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        server = http_server.HttpServer(app, sock, NodeSettings(node_key_file=Path("/nowhere"), **settings))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.run())
            yield sock.getsockname()
            server.stop()


@asynccontextmanager
async def connected(place: Place, source: str = "127.0.0.1") -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*place, local_addr=(source, 0))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def answer(reader: asyncio.StreamReader) -> bytes:
    """Read an answer; return its status line and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    return head.split(b"\r\n")[0] + b" " + await reader.readexactly(length)


async def ask(place: Place, source: str = "127.0.0.1") -> bytes:
    """Return the answer to a request on a new connection."""
    async with connected(place, source) as (reader, writer):
        writer.write(REQUEST)
        return await answer(reader)


async def respond(send: http_server.Send, body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def read_body(receive: http_server.Receive) -> bytes | None:
    """Return the body; None if the client has disconnected."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message["body"])
        if not message["more_body"]:
            return b"".join(parts)
