"""A stack for benches of the gateway: tenants with unreachable limits, an instant upstream, and more workers."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from bench import openai_upstream, processes
from services.gateway.limits import tiers
from shared.types import Credential
from tests import people
from tests.stacks import RunningStack
from tests.testnet import free_port

TENANTS = 50
#: All limits are counted and none is reached; every account has unlimited credits in the ledger.
UNREACHED = {
    # Cached answers would not be measured.
    "RESPONSE_CACHE": "off",
    "TIER_FREE": ",".join([*(f"{name}=1000000000" for name in tiers.LIMITS), "credits=unlimited"]),
    "DEFAULT_RATE_LIMIT": "1000000000",
    "PREMIUM_RATE_LIMIT": "1000000000",
}
START_SECONDS = 15.0
#: argon2 uses a whole core for each registration.
AT_ONCE = 4


async def register(running: RunningStack, count: int = TENANTS) -> tuple[Credential, ...]:
    """Register new users. Return a key of each."""
    turn = asyncio.Semaphore(AT_ONCE)
    async with people.api_client(running) as api_client:

        async def one(number: int) -> Credential:
            async with turn:
                return (await api_client.register(f"tenant{number}")).key.secret

        return tuple(await asyncio.gather(*map(one, range(count))))


@asynccontextmanager
async def upstream() -> AsyncIterator[int]:
    """Run an instant upstream. Yields its port."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.openai_upstream", str(port), stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            assert await process.stdout.readline() == b"ready\n"
        yield port
    finally:
        process.kill()
        await process.wait()


def served_by(upstream_port: int) -> dict[str, str]:
    """Return settings that let the stack's first worker serve openai_upstream.MODEL."""
    return {"INFERENCE_BACKEND": "openai", "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream_port}/v1", "ENGINE_SLOTS": "256"}


@asynccontextmanager
async def echo_workers(running: RunningStack, count: int, token_ms: float, **settings: str) -> AsyncIterator[None]:
    """Run more workers of the model `echo`, as on other machines."""
    async with AsyncExitStack() as opened:
        for _ in range(count):
            await opened.enter_async_context(_echo_worker(running, ECHO_TOKEN_MS=str(token_ms), **settings))
        yield


@asynccontextmanager
async def _echo_worker(running: RunningStack, **settings: str) -> AsyncIterator[None]:
    worker = await running.start_aicli("worker", "--backend", "echo", **{**settings, "LOG_LEVEL": "info"})
    try:
        assert worker.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            while json.loads(await worker.stdout.readline())["event"] != "ready":
                pass
        async with asyncio.TaskGroup() as tasks:
            # A full pipe would block it.
            tasks.create_task(worker.stdout.read())
            yield
            worker.kill()
    finally:
        if worker.returncode is None:
            worker.kill()
        await worker.wait()


def chat_body(model: str, prompt: str, max_tokens: int, *, stream: bool) -> str:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "stream": stream})


def resident_mb(pid: int) -> float:
    return processes.resident_bytes(pid) / 1e6


async def pid_of(running: RunningStack, program: str) -> int:
    pid = (await running.pids())[program]
    assert pid is not None, f"{program} does not run"
    return pid


async def gateway_pid(running: RunningStack) -> int:
    return await pid_of(running, "gateway")


def gateway_port(running: RunningStack) -> int:
    return int(running.environment["GATEWAY_SERVICE_PORT"])


MODEL = openai_upstream.MODEL
