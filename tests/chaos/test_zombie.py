"""A worker that hangs for 5 s (SIGSTOP) and then continues as if nothing had happened."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from tests import stacks
from tests.chaos import judging, load
from tests.chaos.oracle import Door, Fault
from tests.people import Person
from tests.stacks import RunningStack, until

STOPPED_SECONDS = 5.0
#: A link that is silent for 3 s is lost; then the directory drops its node, too.
NOTICED_WITHIN_SECONDS = 5.0


@asynccontextmanager
async def _second_worker(stack: RunningStack) -> AsyncIterator[None]:
    worker = await stack.start_aicli("worker", "--backend", "echo", ECHO_TOKEN_MS="20")
    try:
        assert worker.stdout is not None
        async with asyncio.timeout(30):
            while json.loads(await worker.stdout.readline())["event"] != "ready":
                pass
        yield
    finally:
        worker.kill()
        await worker.communicate()


async def test_a_worker_that_hangs_is_gone_around_and_used_again_when_it_wakes(stack: RunningStack, ann: Person) -> None:
    row = (await stack.programs())["inference-echo"]
    assert row.pid is not None
    before = await stack.pids()
    async with _second_worker(stack), load.running(stack, ann) as history:
        await history.until_each_door_succeeds(5)
        stopped_at = time.monotonic()
        os.kill(row.pid, signal.SIGSTOP)
        try:
            # While it still hangs, other workers serve all requests.
            await history.until_each_door_succeeds(3, since=stopped_at + NOTICED_WITHIN_SECONDS, seconds=STOPPED_SECONDS + 5)
        finally:
            os.kill(row.pid, signal.SIGCONT)
        woken_at = time.monotonic()
        tokens = await _tokens_of(row.url)
        await until(lambda: _has_more(row.url, tokens), seconds=5, what="the woken worker is used again")
        used_at = time.monotonic()
        await history.until_each_door_succeeds(5, since=used_at)
    last = history.last_failure()
    print(
        f"CHAOS zombie: hung for {woken_at - stopped_at:.2f} s; the last request to fail began {last - stopped_at:.2f} s after its stop; "
        f"used {used_at - woken_at:.2f} s after it woke: {history.outcomes()}"
    )
    assert await stack.pids() == before
    fault = Fault(began=stopped_at, over=stopped_at + NOTICED_WITHIN_SECONDS, doors=frozenset(Door), codes=frozenset({"link_lost"}))
    await judging.judge(stack, ann, history, fault)


async def _tokens_of(url: str | None) -> float:
    async with httpx.AsyncClient(trust_env=False) as http:
        return stacks.total((await http.get(f"{url}/metrics")).text, "ai_platform_tokens_total", type="output")


async def _has_more(url: str | None, than: float) -> bool:
    # The worker may still send some of what it held when it was stopped.
    return await _tokens_of(url) > than + 10 * load.WORDS
