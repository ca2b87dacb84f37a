"""A stack for benches of the gateway: tenants whose limits stop nothing, an instant upstream, more workers, and what a process holds."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from bench import openai_upstream
from services.gateway.limits import tiers
from shared.types import Credential
from tests import people
from tests.stacks import RunningStack
from tests.testnet import free_port

TENANTS = 50
#: All limits are counted and none is reached; the ledger takes every request from an account without an end.
UNREACHED = {
    # Answers shall be made, not remembered.
    "RESPONSE_CACHE": "off",
    "TIER_FREE": ",".join([*(f"{name}=1000000000" for name in tiers.LIMITS), "credits=unlimited"]),
    "DEFAULT_RATE_LIMIT": "1000000000",
    "PREMIUM_RATE_LIMIT": "1000000000",
}
START_SECONDS = 15.0
#: argon2 fills a core for each of them.
AT_ONCE = 4


async def register(running: RunningStack, count: int = TENANTS) -> tuple[Credential, ...]:
    """A key of each of so many new users."""
    turn = asyncio.Semaphore(AT_ONCE)
    async with people.api_client(running) as api_client:

        async def one(number: int) -> Credential:
            async with turn:
                return (await api_client.register(f"tenant{number}")).key.secret

        return tuple(await asyncio.gather(*map(one, range(count))))


@asynccontextmanager
async def upstream() -> AsyncIterator[int]:
    """The port of an instant upstream."""
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
    """Settings by which the stack's first worker serves openai_upstream.MODEL."""
    return {"INFERENCE_BACKEND": "openai", "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream_port}/v1", "ENGINE_SLOTS": "256"}


@asynccontextmanager
async def echo_workers(running: RunningStack, count: int, token_ms: float, **settings: str) -> AsyncIterator[None]:
    """So many more workers of the model `echo`, as machines that lend themselves."""
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
            # A full pipe would hold it up.
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
    line = next(line for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024 / 1e6


async def gateway_pid(running: RunningStack) -> int:
    pid = (await running.pids())["gateway"]
    assert pid is not None
    return pid


def gateway_port(running: RunningStack) -> int:
    return int(running.environment["GATEWAY_SERVICE_PORT"])


MODEL = openai_upstream.MODEL
