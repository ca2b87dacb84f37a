"""A tiny HTTP server for tests of HTTP clients: it gives scripted answers, with every fault a server can have, and records requests."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

#: Content types of streaming paths, unless an answer sets another.
_STREAMS = {"completions": "text/event-stream; charset=utf-8", "chat": "application/x-ndjson", "completion": "text/event-stream"}


@dataclass
class Answer:
    #: Written one by one.
    parts: list[str] | list[bytes]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    #: Keep the connection open after the last part, until the client closes it.
    hang: bool = False
    #: Send the last part again and again, until the client closes the connection.
    endless: bool = False
    #: Send nothing: with ``hang``, keep the connection open; without it, close the connection at once.
    silent: bool = False
    #: Sent instead of the head.
    head: bytes | None = None


Answers = Answer | list[Answer] | Callable[[Any], Answer]

_NOT_FOUND = Answer(['{"detail": "Not Found"}'], status=404)


@dataclass
class FakeServer:
    #: The answers of a list are used one by one, and its last one repeats; a function gets the request.
    answers: Mapping[str, Answers]
    url: str = ""
    asked: list[Any] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    #: Set when a client closes its connection during a hanging or endless answer.
    left: asyncio.Event = field(default_factory=asyncio.Event)
    connections: int = 0
    #: Open connections; they end with the server.
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    def times_asked(self, path: str) -> int:
        return sum(head.split(" ")[1] == path for head in self.headers)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        self.connections += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._serve(reader, writer):
                    pass
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            writer.close()
            self.serving.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Return whether the connection may be reused."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next((int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length")), 0)
        path = head.split(" ")[1]
        asked = json.loads(await reader.readexactly(length)) if length else None
        # Not what is asked of a page that it lacks.
        if length and path in self.answers:
            self.asked.append(asked)
        self.headers.append(head.lower())
        answers = self.answers.get(path, _NOT_FOUND)
        if isinstance(answers, list):
            answers = answers.pop(0) if len(answers) > 1 else answers[0]
        answer = answers if isinstance(answers, Answer) else answers(asked)
        if not answer.silent:
            kind = _STREAMS.get(path.rpartition("/")[2], "application/json") if answer.status == 200 else "application/json"
            headers = {"connection": "close", "content-type": kind, **answer.headers}
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value)
            writer.write(f"HTTP/1.1 {answer.status} X\r\n{lines}\r\n".encode() if answer.head is None else answer.head)
            await self._send(answer, writer)
        if answer.hang:
            await reader.read()
            self.left.set()
        return answer.headers.get("connection") == "keep-alive"

    async def _send(self, answer: Answer, writer: asyncio.StreamWriter) -> None:
        parts = [part if isinstance(part, bytes) else part.encode() for part in answer.parts]
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        try:
            while answer.endless:
                writer.write(parts[-1])
                await writer.drain()
                await asyncio.sleep(0)
        except ConnectionError:
            self.left.set()


@asynccontextmanager
async def serving(answers: Mapping[str, Answers], port: int = 0) -> AsyncIterator[FakeServer]:
    fake = FakeServer(answers)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", port)
    async with server:
        fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield fake
        for task in tuple(fake.serving):
            task.cancel()
        await asyncio.gather(*fake.serving)
