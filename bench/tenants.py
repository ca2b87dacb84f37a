"""A stack for benches of the gateway: tenants with unreachable limits, an instant upstream, and more workers."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

from bench import http_load, openai_upstream, processes
from bench.http_load import Load, Outcome, Pace
from services.gateway.limits import tiers
from shared.types import Credential
from tests import people, stacks
from tests.chaos import streams
from tests.people import ApiClient
from tests.stacks import RunningStack
from tests.testnet import free_port

T = TypeVar("T")

MODEL = openai_upstream.MODEL
TENANTS = 50
#: All limits are counted and none is reached; every account has unlimited credits in the ledger.
UNREACHED = {
    # Cached answers would not be measured.
    "RESPONSE_CACHE": "off",
    "TIER_FREE": ",".join([*(f"{name}=1000000000" for name in tiers.LIMITS), "credits=unlimited"]),
    "DEFAULT_RATE_LIMIT": "1000000000",
    "PREMIUM_RATE_LIMIT": "1000000000",
}
#: Statuses of a request that the gateway rejects because there are too many.
REFUSALS = frozenset({429, 503})
#: argon2 uses a whole core for each registration.
AT_ONCE = 4


def stack(**settings: object) -> AbstractAsyncContextManager[RunningStack]:
    """Run a stack with an echo worker and limits that nobody reaches."""
    given = {name: str(value) for name, value in settings.items()}
    return stacks.stack(**{**UNREACHED, "AIMESH_ECHO": "1", "LOG_LEVEL": "warning", **given})


async def register_each(running: RunningStack, count: int, one: Callable[[ApiClient, int], Awaitable[T]]) -> list[T]:
    """Register users, a few at a time."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def in_turn(number: int) -> T:
        async with turn:
            return await one(api_client, number)

    async with people.api_client(running) as api_client:
        return await asyncio.gather(*map(in_turn, range(count)))


async def register(running: RunningStack, count: int = TENANTS) -> list[Credential]:
    """Register new users. Return a key of each."""

    async def one(api_client: ApiClient, number: int) -> Credential:
        return (await api_client.register(f"tenant{number}")).key.secret

    return await register_each(running, count, one)


@asynccontextmanager
async def upstream() -> AsyncIterator[int]:
    """Run an instant upstream. Yields its port."""
    port = free_port()
    async with processes.other(sys.executable, "-m", "bench.openai_upstream", port):
        yield port


def served_by(upstream_port: int) -> dict[str, str]:
    """Return settings that let the stack's first worker serve MODEL."""
    return {"INFERENCE_BACKEND": "openai", "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream_port}/v1", "ENGINE_SLOTS": "256"}


@asynccontextmanager
async def echo_worker(running: RunningStack, **settings: str) -> AsyncIterator[None]:
    """Run one more worker of the model `echo`, as on another machine."""
    # Its first lines say when it is ready.
    async with streams.worker(running, LOG_LEVEL="info", **settings) as worker, asyncio.TaskGroup() as tasks:
        assert worker.process.stdout is not None
        # A full pipe would block it.
        reading = tasks.create_task(worker.process.stdout.read())
        yield
        reading.cancel()


def chats(keys: Sequence[str], model: str, prompt: str, words: int, *, stream: bool) -> tuple[str, ...]:
    """Return a request with each key for an answer of so many words."""
    asked = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": words, "stream": stream}
    return tuple(http_load.post("/v1/chat/completions", json.dumps(asked), f"authorization: Bearer {key}") for key in keys)


async def load(
    port: int, keys: Sequence[str], pace: Pace, words: int, *, prompt_words: int = 0, model: str = "echo", stream: bool = True
) -> Outcome:
    """Send chats from another process. By default the prompt has as many words as the answer, which the echo worker makes of them."""
    requests = chats(keys, model, "tok " * (prompt_words or words), words, stream=stream)
    return await http_load.make(Load(port=port, requests=requests, pace=pace))


async def pid_of(running: RunningStack, program: str) -> int:
    pid = (await running.pids())[program]
    assert pid is not None, f"{program} does not run"
    return pid


def gateway_port(running: RunningStack) -> int:
    return int(running.environment["GATEWAY_SERVICE_PORT"])


async def first_byte(running: RunningStack, *words: str, **variables: str) -> float:
    """Run `aicli`. Return the seconds from the start of the process to the first byte of its answer."""
    start = time.perf_counter()
    process = await running.start_aicli(*words, has_input=False, **variables)
    assert process.stdout is not None
    first = await process.stdout.read(1)
    took = time.perf_counter() - start
    _, errors = await process.communicate()
    assert first, errors.decode()
    return took
