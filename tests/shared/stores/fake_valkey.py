"""A server that speaks RESP and handles each call as the test says."""

import asyncio
import os
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from shared.stores.resp import RespParser
from tests.stopwatch import HANG_SECONDS


class Visitor:
    """One connection of a client."""

    def __init__(self, server: "FakeValkey", writer: asyncio.StreamWriter) -> None:
        self.server = server
        self._writer = writer

    def say(self, data: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(data)

    def say_at_once(self, data: bytes) -> None:
        """Send at once, even if the loop has other work first."""
        os.write(self._writer.get_extra_info("socket").fileno(), data)

    def hang_up(self) -> None:
        self._writer.close()


#: Gets a call's words, and may answer.
Answer = Callable[[Visitor, list[bytes]], Awaitable[None]]


async def echo(visitor: Visitor, words: list[bytes]) -> None:
    visitor.say(b"$%d\r\n%b\r\n" % (len(words[-1]), words[-1]))


async def nothing(visitor: Visitor, words: list[bytes]) -> None:
    pass


class FakeValkey:
    """Records the calls that it gets. While ``reads`` is cleared, it reads nothing from its sockets."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[list[bytes]] = []
        self.visitors: list[Visitor] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self._visits: set[asyncio.Task[object] | None] = set()

    async def until(self, asked: int) -> None:
        async with asyncio.timeout(HANG_SECONDS):
            while len(self.asked) < asked:  # noqa: ASYNC110 - the server sets no event
                await asyncio.sleep(0.001)

    async def visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visitor, parser = Visitor(self, writer), RespParser()
        self._visits.add(asyncio.current_task())
        self.visitors.append(visitor)
        try:
            while True:
                await self.reads.wait()
                if not (data := await reader.read(65536)):
                    break
                for words in parser.feed(data):
                    assert isinstance(words, list)
                    self.asked.append(words)  # type: ignore[arg-type]
                    await self.answer(visitor, words)  # type: ignore[arg-type]
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def close(self) -> None:
        self.reads.set()
        for visitor in self.visitors:
            visitor.hang_up()
        for visit in self._visits:
            assert visit is not None
            await asyncio.wait({visit}, timeout=5)


async def answer_a_busy_program(server: FakeValkey, path: Path, data: bytes, seconds: float) -> None:
    """Send ``data`` to the first visitor while its loop is busy with data from another socket. After that, uvloop runs its timers first,
    and then reads sockets."""

    class Busy(asyncio.Protocol):
        def data_received(self, _: bytes) -> None:
            server.visitors[0].say_at_once(data)
            time.sleep(seconds)

    transport, _ = await asyncio.get_running_loop().create_unix_connection(Busy, str(path))
    async with asyncio.timeout(HANG_SECONDS):
        while len(server.visitors) < 2:  # noqa: ASYNC110 - the server sets no event
            await asyncio.sleep(0.001)
    server.visitors[1].say(b"hello")
    await asyncio.sleep(0.01)
    transport.close()


@asynccontextmanager
async def on_unix(answer: Answer) -> AsyncIterator[tuple[FakeValkey, Path]]:
    """The server, and its socket."""
    server = FakeValkey(answer)
    with tempfile.TemporaryDirectory(prefix="aimesh-fake-") as folder:
        path = Path(folder) / "s"
        listening = await asyncio.start_unix_server(server.visit, path)
        try:
            yield server, path
        finally:
            listening.close()
            await server.close()


@asynccontextmanager
async def on_tcp(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[FakeValkey, int]]:
    """The server, and its port."""
    server = FakeValkey(answer)
    listening = await asyncio.start_server(server.visit, "127.0.0.1", 0, ssl=tls)
    try:
        yield server, listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await server.close()
