"""Run batches on a stack, and read from PostgreSQL how long each phase took."""

import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from bench import http_load
from tests.stacks import RunningStack, until

CHATS = "/v1/chat/completions"
_END_SECONDS = 1800.0
#: Of a request that uploads or downloads 200 MB.
_FILE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Phases:
    """How long a batch took, in seconds, and what it has made."""

    validated: float
    ran: float
    assembled: float
    lines: int
    failed: int
    output_tokens: int

    @property
    def lines_per_second(self) -> float:
        return self.lines / self.ran

    @property
    def tokens_per_second(self) -> float:
        return self.output_tokens / self.ran


@dataclass(frozen=True, slots=True)
class Batches:
    """The batches of one tenant, at one gateway."""

    stack: RunningStack
    http: httpx.AsyncClient

    async def order(self, bodies: Iterable[Mapping[str, object]]) -> str:
        """Begin a batch. Return its id."""
        file = await self.upload(b"".join(map(line_of, range(1 << 20), bodies)), "batch")
        order = {"input_file_id": file, "endpoint": CHATS, "completion_window": "24h"}
        made = (await self.http.post("/v1/batches", json=order)).raise_for_status().json()
        return str(made["id"])

    async def upload(self, content: bytes, purpose: str) -> str:
        files = {"file": ("lines.jsonl", content)}
        return str((await self.http.post("/v1/files", data={"purpose": purpose}, files=files)).raise_for_status().json()["id"])

    async def download(self, file: str) -> int:
        """Return how many bytes it has."""
        async with self.http.stream("GET", f"/v1/files/{file}/content") as response:
            return sum([len(piece) async for piece in response.raise_for_status().aiter_raw()])

    async def until_state(self, batch: str, is_it: Callable[[str], bool]) -> None:
        async def has_it() -> bool:
            return is_it((await self.http.get(f"/v1/batches/{batch}")).raise_for_status().json()["status"])

        await until(has_it, seconds=_END_SECONDS, what=f"the end of {batch}")

    async def cancel(self, batch: str) -> None:
        (await self.http.post(f"/v1/batches/{batch}/cancel")).raise_for_status()
        await self.until_state(batch, lambda state: state == "cancelled")

    async def run(self, bodies: Iterable[Mapping[str, object]]) -> Phases:
        batch = await self.order(bodies)
        await self.until_state(batch, lambda state: state in {"completed", "failed", "expired"})
        return await self.read()

    async def read(self) -> Phases:
        """Read the youngest batch, which has ended."""
        async with self.stack.database("gateway") as database:
            row = await database.fetchrow(
                "SELECT total, failed, output_tokens, extract(epoch FROM in_progress_at - created_at)::float8 AS validated,"
                " extract(epoch FROM finalizing_at - in_progress_at)::float8 AS ran,"
                " extract(epoch FROM ended_at - finalizing_at)::float8 AS assembled"
                " FROM jobs ORDER BY created_at DESC LIMIT 1"
            )
        return Phases(row["validated"], row["ran"], row["assembled"], row["total"], row["failed"], row["output_tokens"])

    async def count_tokens(self) -> int:
        """Return the tokens of all answers to lines until now."""
        async with self.stack.database("gateway") as database:
            return int(await database.fetchval("SELECT coalesce(sum(output_tokens), 0) FROM jobs"))


@asynccontextmanager
async def opened(stack: RunningStack, key: str, url: str | None = None) -> AsyncIterator[Batches]:
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url or stack.url("gateway"), headers=headers, timeout=_FILE_SECONDS, trust_env=False) as http:
        yield Batches(stack, http)


def line_of(number: int, body: Mapping[str, object]) -> bytes:
    return json.dumps({"custom_id": f"line-{number}", "method": "POST", "url": CHATS, "body": body}).encode() + b"\n"


def chat(model: str, prompt: str, words: int, **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": words, **more}


def as_request(body: Mapping[str, object], key: str) -> str:
    """Return the same, as a live request."""
    return http_load.post(CHATS, json.dumps(body), f"authorization: Bearer {key}")
