"""Continuous streams: a fixed number at once, each followed by the next. Every stream must end with a complete answer."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

#: For one stream; a draining replica must let it end.
STREAM_SECONDS = 60.0
#: Before a refused request is retried.
RETRY_SECONDS = 0.5
WORDS = " ".join(f"word{number}" for number in range(40))


class _TryAgainError(Exception):
    pass


@dataclass(slots=True)
class StreamLoad:
    url: str
    key: str
    model: str
    completed: int = 0
    #: Streams that began and did not complete, and answers that no client retries.
    failed: list[str] = field(default_factory=list)
    #: Requests that got a 503 before anything was sent; our SDKs retry these.
    refused: list[str] = field(default_factory=list)
    is_ending: bool = False
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_for(self, more: int) -> None:
        """Wait until this many more streams have completed or failed."""
        wanted = self.completed + len(self.failed) + more
        async with asyncio.timeout(STREAM_SECONDS * more):
            while self.completed + len(self.failed) < wanted:
                self._ended.clear()
                await self._ended.wait()

    async def keep_one_going(self, client: httpx.AsyncClient) -> None:
        while not self.is_ending:
            try:
                async with asyncio.timeout(STREAM_SECONDS):
                    await self._stream(client)
                self.completed += 1
            except _TryAgainError as error:
                self.refused.append(str(error))
                await asyncio.sleep(RETRY_SECONDS)
            except (httpx.HTTPError, TimeoutError, ValueError) as error:
                self.failed.append(f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.05)
            self._ended.set()

    async def _stream(self, client: httpx.AsyncClient) -> None:
        body = {"model": self.model, "messages": [{"role": "user", "content": WORDS}], "stream": True}
        text, reason = "", None
        async with client.stream("POST", f"{self.url}/v1/chat/completions", json=body) as answer:
            if answer.status_code == 503:
                raise _TryAgainError((await answer.aread())[:200])
            if answer.status_code != 200:
                raise ValueError(f"status {answer.status_code}: {(await answer.aread())[:300]!r}")
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    if reason != "stop" or "word39" not in text:
                        raise ValueError(f"it ended with {reason} after {text[-40:]!r}")
                    return
                if line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    for choice in event.get("choices", ()):
                        text += choice["delta"].get("content") or ""
                        reason = choice.get("finish_reason") or reason
        raise ValueError(f"it was cut after {text[-40:]!r}")


@asynccontextmanager
async def streams(url: str, key: str, model: str, at_once: int) -> AsyncIterator[StreamLoad]:
    """Keep this many streams running during the block, and let the last ones end."""
    load = StreamLoad(url, key, model)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(headers=headers, timeout=STREAM_SECONDS, trust_env=False) as client, asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(load.keep_one_going(client))
        try:
            yield load
        finally:
            load.is_ending = True


async def ask(url: str, key: str, model: str, question: str = "Say hello") -> str:
    """Make one chat call without streaming."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 12}
    async with httpx.AsyncClient(timeout=180, trust_env=False) as client:
        answer = await client.post(f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])
