"""A tiny HTTP server for tests of what speaks to other programs: answers as it was told and keeps what it was asked."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    #: Sent one by one, each in a write of its own.
    parts: list[str]
    status: int = 200
    #: Keep the connection open after the last part, until the client goes.
    hang: bool = False


@dataclass
class FakeServer:
    answers: dict[str, Answer]
    url: str = ""
    asked: list[Any] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    #: Set when a client closed its connection during an answer that hangs.
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next((int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length")), 0)
        if length:
            self.asked.append(json.loads(await reader.readexactly(length)))
        self.headers.append(head.lower())
        answer = self.answers[head.split(" ")[1]]
        writer.write(f"HTTP/1.1 {answer.status} X\r\nconnection: close\r\ncontent-type: application/json\r\n\r\n".encode())
        for part in answer.parts:
            writer.write(part.encode())
            await writer.drain()
            await asyncio.sleep(0)
        if answer.hang:
            await reader.read()
            self.left.set()
        writer.close()


@asynccontextmanager
async def serving(answers: dict[str, Answer]) -> AsyncIterator[FakeServer]:
    fake = FakeServer(answers)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    async with server:
        fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield fake
