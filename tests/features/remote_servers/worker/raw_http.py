"""A server whose handler, set by a test, reads and writes the raw bytes of HTTP. It counts its connections and how many have ended."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

KEPT = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"

#: Handles a connection, which is closed afterwards.
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class RawServer:
    url: str
    connections: int = 0
    #: How many of those have ended.
    left: int = 0
    serving: set[asyncio.Task[None]] = field(default_factory=set)


@asynccontextmanager
async def raw_server(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        server.serving.add(task)
        server.connections += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await serve(reader, writer)
        finally:
            writer.transport.abort()
            server.left += 1
            server.serving.discard(task)

    listening = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        server = RawServer(f"{'http' if tls is None else 'https'}://127.0.0.1:{port}")
        yield server
        for task in tuple(server.serving):
            task.cancel()
        await asyncio.gather(*server.serving)


async def asked(reader: asyncio.StreamReader) -> None:
    """Wait for a request without a body."""
    await reader.readuntil(b"\r\n\r\n")


def saying(answer: bytes) -> Serve:
    """Return a handler that answers each request on a connection with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await asked(reader)
            writer.write(answer)
            await writer.drain()

    return serve


def once(answer: bytes) -> Serve:
    """Return a handler that answers with these bytes and closes the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    return serve


async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Read, and never answer."""
    while await reader.read(65536):
        pass
