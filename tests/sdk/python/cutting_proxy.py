"""A proxy for an unreliable network: it cuts connections when so many bytes of an answer have passed.

    async with cutting_proxy.before(url, [500, 500]) as broken:
        …broken.url, broken.cuts

The first two connections are cut, all others stay whole. With ``tls`` the proxy speaks TLS to its callers.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

_PIECE_BYTES = 256


class Proxy:
    def __init__(self, url: str, cuts_after: Sequence[int]) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host, self._port = parts.hostname, parts.port
        self._cuts_after = list(cuts_after)
        self._serving: set[asyncio.Task[None]] = set()
        self.url = ""
        self.cuts = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        left = self._cuts_after.pop(0) if self._cuts_after else None
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            upstream_reader, upstream_writer = await asyncio.open_connection(self._host, self._port)
            try:
                async with asyncio.TaskGroup() as tasks:
                    upward = tasks.create_task(_pass(reader, upstream_writer, None))
                    whole = await _pass(upstream_reader, writer, left)
                    self.cuts += not whole
                    upward.cancel()
            finally:
                upstream_writer.transport.abort()
        writer.transport.abort()
        self._serving.discard(task)

    async def stop(self) -> None:
        for task in list(self._serving):
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None) -> bool:
    """Forward at most so many bytes, and return whether that was all."""
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(_PIECE_BYTES if most is None else min(_PIECE_BYTES, most)):
            writer.write(piece)
            await writer.drain()
            if most is not None and (most := most - len(piece)) == 0:
                return False
    return True


@asynccontextmanager
async def before(url: str, cuts_after: Sequence[int], tls: ssl.SSLContext | None = None) -> AsyncIterator[Proxy]:
    proxy = Proxy(url, cuts_after)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=tls)
    proxy.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.stop()
