"""A stack for benches of the gateway: tenants with unreachable limits, an instant upstream, more workers, and loads that take turns."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from bench import http_load, openai_upstream, processes, report
from bench.http_load import Load, Outcome, Pace, Steady
from bench.report import Options
from shared.limits import BY_NAME
from shared.types import Credential
from tests import people, stacks
from tests.chaos import streams
from tests.stacks import RunningStack
from tests.testnet import free_port

Key = TypeVar("Key", bound=Hashable)

MODEL = openai_upstream.MODEL
TENANTS = 50
#: All limits are counted and none is reached. MONEY is off, so that the ledger refuses nothing.
UNREACHED = {
    # Cached answers would not be measured.
    "RESPONSE_CACHE": "off",
    "TIER_FREE": ",".join(f"{name}=1000000000" for name in BY_NAME),
    "DEFAULT_RATE_LIMIT": "1000000000",
    "PREMIUM_RATE_LIMIT": "1000000000",
}
#: Statuses of a request that the gateway rejects because there are too many.
REFUSALS = frozenset({429, 503})
#: argon2 uses a whole core for each registration.
REGISTRATIONS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Tenants:
    """A stack, and a key of each tenant."""

    running: RunningStack
    keys: Sequence[Credential]
    port: int
    #: Of all programs.
    pids: Mapping[str, int]

    def memory_mb(self) -> float:
        """Return the memory of the gateway."""
        return processes.resident_mb(self.pids["gateway"])

    async def configure(self, document: str) -> None:
        applied = await self.running.aicli("admin", "config", "apply", "-f", "-", stdin=document)
        assert applied.status == 0, applied


@asynccontextmanager
async def opened(count: int = TENANTS, /, **settings: object) -> AsyncIterator[Tenants]:
    """Run a stack with an echo worker, limits that nobody reaches, and these tenants."""
    given = {name: str(value) for name, value in settings.items()}
    async with stacks.stack(**{**UNREACHED, "AIMESH_ECHO": "1", "LOG_LEVEL": "warning", **given}) as running:
        keys = await register(running, count)
        pids = {name: pid for name, pid in (await running.pids()).items() if pid is not None}
        yield Tenants(running, keys, int(running.environment["GATEWAY_SERVICE_PORT"]), pids)


async def register(running: RunningStack, count: int = TENANTS) -> list[Credential]:
    """Register new users, a few at a time. Return a key of each."""
    turn = asyncio.Semaphore(REGISTRATIONS_AT_ONCE)

    async def one(number: int) -> Credential:
        async with turn:
            return (await api_client.register(f"tenant{number}")).key.secret

    async with people.api_client(running) as api_client:
        return await asyncio.gather(*map(one, range(count)))


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


# --- loads ---------------------------------------------------------------------------------------------------------------


def chats(keys: Sequence[str], model: str, prompt: str, words: int, *, stream: bool, **more: object) -> tuple[str, ...]:
    """Return a request with each key for an answer of so many words."""
    asked = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": words, "stream": stream, **more}
    return tuple(http_load.post("/v1/chat/completions", json.dumps(asked), f"authorization: Bearer {key}") for key in keys)


async def load(port: int, keys: Sequence[str], pace: Pace, words: int, *, prompt_words: int = 0) -> Outcome:
    """Stream from the echo worker. By default the prompt has as many words as the answer, which the worker makes of them."""
    requests = chats(keys, "echo", "tok " * (prompt_words or words), words, stream=True)
    return await http_load.make(Load(port=port, requests=requests, pace=pace))


@dataclass(frozen=True, slots=True)
class Turn:
    """A load that takes turns with others."""

    port: int
    requests: Sequence[str]
    at_once: int
    #: The programs whose processor time it costs.
    pids: Mapping[str, int] = field(default_factory=dict)
    #: Called before each turn.
    prepare: Callable[[], Awaitable[None]] | None = None

    async def measure(self, name: object, seconds: float) -> dict[str, float]:
        """Return rates a second, and processor time in µs for each request. If a request fails, the figures are invalid: AssertionError."""
        if self.prepare is not None:
            await self.prepare()
        before = {program: processes.spent_ms(pid) for program, pid in self.pids.items()}
        outcome = await http_load.make(Load(port=self.port, requests=tuple(self.requests), pace=Steady(self.at_once, seconds)))
        spent = {program: 1000 * (processes.spent_ms(self.pids[program]) - ms) / len(outcome.answers) for program, ms in before.items()}
        assert len(outcome.good) == len(outcome.answers), f"{name}: {outcome.statuses}"
        tokens = sum(answer.pieces for answer in outcome.good) / outcome.seconds
        return {"rate": outcome.rate(), "tokens": tokens, "p50": outcome.percentile(0.5), **spent, "everywhere": sum(spent.values())}


async def take_turns(turns: Mapping[Key, Turn], options: Options) -> dict[Key, dict[str, list[float]]]:
    """Measure each of them for ``seconds`` in each of ``rounds``. Return the figures of all rounds, by turn."""
    ways = {key: partial(turn.measure, key, options.seconds) for key, turn in turns.items()}
    return report.by_name(await report.take_turns(ways, options.rounds))
