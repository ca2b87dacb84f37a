"""A Unix socket that forwards to one of several servers, as the single address of a service that fails over.

async with Switch(folder / "s", first) as switch:
        switch.target = second      # for new connections; open ones keep their server
        switch.cut()                # breaks the open connections, too
"""

import asyncio
import contextlib
from pathlib import Path
from types import TracebackType

from shared.node import lifecycle


class Switch:
    """Forwards bytes without parsing them."""

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        self.target = target
        #: Number of connections made through it.
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> "Switch":
        tasks = await self._stack.enter_async_context(lifecycle.background())
        server = await asyncio.start_unix_server(lambda *streams: tasks.create_task(self._serve(*streams)), self.path)
        self._stack.callback(self.cut)
        self._stack.callback(server.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, traceback)

    def cut(self) -> None:
        """Abort every open connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            from_server, to_server = await asyncio.open_unix_connection(self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, to_server}
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_pass_on(reader, to_server))
                tasks.create_task(_pass_on(from_server, writer))
        finally:
            self._writers -= {writer, to_server}


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError), contextlib.closing(writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
