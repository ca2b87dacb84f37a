"""Both clients behind one interface, so that each test covers both."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import aimesh
import pytest
from aimesh.retry_policy import RetryRules

from tests.sdk.python import scripted_server
from tests.sdk.python.scripted_server import Reply, Server

QUICK = RetryRules(max_retries=2, first_pause_seconds=0.01, longest_pause_seconds=0.02)
KEY = "aip_live_x"


@dataclass
class Got:
    texts: list[str]
    answer: aimesh.Answer | None


class EitherClient(Protocol):
    """Either client, as these tests use it."""

    async def inference(self, prompt: str, **more: Any) -> aimesh.Answer: ...

    async def read(self, prompt: str, *, most: int | None = None, dawdle: int = 0, seen: list[str] | None = None, **more: Any) -> Got:
        """Collect the pieces, in `seen`, too, if it is passed."""

    async def pieces(self, prompt: str) -> tuple[list[aimesh.AnswerPiece], aimesh.Answer]: ...

    async def do(self, name: str, *arguments: Any) -> Any: ...


class WithThreads:
    def __init__(self, client: aimesh.Client) -> None:
        client._context = replace(client._context, retry_rules=QUICK)
        self._client = client

    async def inference(self, prompt: str, **more: Any) -> aimesh.Answer:
        return await asyncio.to_thread(self._client.inference, prompt, **more)

    async def read(self, prompt: str, *, most: int | None = None, dawdle: int = 0, seen: list[str] | None = None, **more: Any) -> Got:
        return await asyncio.to_thread(self._read, prompt, most, dawdle, [] if seen is None else seen, **more)

    def _read(self, prompt: str, most: int | None, dawdle: int, texts: list[str], **more: Any) -> Got:
        with self._client.stream(prompt, **more) as stream:
            for piece in stream:
                texts.append(piece)
                if len(texts) == most:
                    return Got(texts, None)
                for _ in range(dawdle):
                    time.sleep(0.05)
            assert stream.text == "".join(texts)
            return Got(texts, stream.answer)

    async def pieces(self, prompt: str) -> tuple[list[aimesh.AnswerPiece], aimesh.Answer]:
        with self._client.stream(prompt) as stream:
            return list(stream.pieces()), stream.answer

    async def do(self, name: str, *arguments: Any) -> Any:
        return await asyncio.to_thread(getattr(self._client, name), *arguments)


class WithAsyncio:
    def __init__(self, client: aimesh.AsyncClient) -> None:
        client._context = replace(client._context, retry_rules=QUICK)
        self._client = client

    async def inference(self, prompt: str, **more: Any) -> aimesh.Answer:
        return await self._client.inference(prompt, **more)

    async def read(self, prompt: str, *, most: int | None = None, dawdle: int = 0, seen: list[str] | None = None, **more: Any) -> Got:
        texts = [] if seen is None else seen
        async with self._client.stream(prompt, **more) as stream:
            async for piece in stream:
                texts.append(piece)
                if len(texts) == most:
                    return Got(texts, None)
                for _ in range(dawdle):
                    await asyncio.sleep(0.05)
            assert stream.text == "".join(texts)
            return Got(texts, stream.answer)

    async def pieces(self, prompt: str) -> tuple[list[aimesh.AnswerPiece], aimesh.Answer]:
        async with self._client.stream(prompt) as stream:
            return [piece async for piece in stream.pieces()], stream.answer

    async def do(self, name: str, *arguments: Any) -> Any:
        return await getattr(self._client, name)(*arguments)


@dataclass
class Stage:
    kind: str
    server: Server
    client: EitherClient


@contextlib.asynccontextmanager
async def staged(kind: str, *replies: Reply) -> AsyncIterator[Stage]:
    with scripted_server.serving(*replies) as server:
        if kind == "threads":
            with aimesh.Client(KEY, server.url) as client:
                yield Stage(kind, server, WithThreads(client))
        else:
            async with aimesh.AsyncClient(KEY, server.url) as async_client:
                yield Stage(kind, server, WithAsyncio(async_client))


both = pytest.mark.parametrize("kind", ["threads", "asyncio"])
