"""An OpenAI-compatible server with one model that repeats its prompt word by word at a set speed: for workers whose answers a test
interrupts, under a name that no other worker serves."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class SlowModel:
    name: str
    word_seconds: float
    url: str = ""
    #: Answers in progress.
    running: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = next((int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length")), 0)
            asked = json.loads(await reader.readexactly(length)) if length else None
            kind = b"application/json" if asked is None else b"text/event-stream"
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: " + kind + b"\r\n\r\n")
            if asked is None:
                writer.write(json.dumps({"data": [{"id": self.name}]}).encode())
            else:
                await self._answer(asked["messages"][-1]["content"].split(), writer)
        writer.close()

    async def _answer(self, words: list[str], writer: asyncio.StreamWriter) -> None:
        self.running += 1
        try:
            for word in words:
                await _say(writer, {"choices": [{"delta": {"content": f"{word} "}}]})
                await asyncio.sleep(self.word_seconds)
            await _say(writer, {"choices": [{"delta": {}, "finish_reason": "stop"}]})
            await _say(writer, {"choices": [], "usage": {"prompt_tokens": len(words), "completion_tokens": len(words)}})
        finally:
            self.running -= 1


async def _say(writer: asyncio.StreamWriter, event: Any) -> None:
    writer.write(f"data: {json.dumps(event)}\n\n".encode())
    await writer.drain()


@asynccontextmanager
async def serving(name: str, *, word_seconds: float = 0.02) -> AsyncIterator[SlowModel]:
    model = SlowModel(name, word_seconds)
    async with await asyncio.start_server(model.serve, "127.0.0.1", 0) as server:
        model.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield model
