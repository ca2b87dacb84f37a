"""Workers that the platform starts and stops automatically, with the hook that is included: from zero to as many as 200 streams need,
and back to zero. No stream fails."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from services.gateway.facts import tiers
from tests import people, stacks
from tests.chaos import streams
from tests.stacks import REPOSITORY, RunningStack, until

POOLS = """\
pools:
  - name: echo
    models: [echo]
    min: 0
    max: 4
    start_seconds: 20
    idle_seconds: 20
    price_per_hour: 1
    hook: {{exec: [{script}, {home}, "0", --backend, echo]}}
"""
SETTINGS = {
    "RESPONSE_CACHE": "off", "TIER_FREE": ",".join(f"{name}=unlimited" for name in tiers.NUMBERS), "DEFAULT_RATE_LIMIT": "1000000",
    "HYPERSWARM": "0", "ECHO_SLOTS": "64", "ECHO_TOKEN_MS": "200", "QUEUE_SECONDS": "120", "QUEUE_PER_USER": "1000",
}  # fmt: skip


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[RunningStack]:
    """A stack with a pool of echo workers, none of which runs."""
    pools = tmp_path / "pools.yaml"
    pools.write_text("pools: []\n", encoding="utf-8")
    async with stacks.stack(POOLS_FILE=str(pools), **SETTINGS) as running:
        pools.write_text(POOLS.format(script=REPOSITORY / "deploy/scale/local.sh", home=running.home), encoding="utf-8")
        try:
            yield running
        finally:
            # The workers outlive the stack, as workers on other machines do.
            for file in (running.home / "run" / "pool-echo").glob("*.pid"):
                with suppress(ProcessLookupError):
                    os.kill(int(file.read_text()), signal.SIGKILL)


async def pool(stack: RunningStack) -> dict[str, Any]:
    done = await stack.aicli("scale", "status", "--json")
    assert done.status == 0, done.err
    found: list[dict[str, Any]] = json.loads(done.out)
    return found[0] if found else {}


@pytest.mark.nightly("long")
@pytest.mark.timeout(1200)
async def test_pool_follows_the_load_from_zero_and_back_without_a_failed_stream(stack: RunningStack) -> None:
    async def shows(ready: int) -> bool:
        found = await pool(stack)
        return bool(found) and found["fresh"] and found["ready"] == ready

    async def loaded() -> bool:
        return '"pools": ["echo"]' in stack.log("gateway")

    async def shrinks() -> bool:
        return int((await pool(stack))["ready"]) < 4

    await until(lambda: shows(0), seconds=60, what="the pool is read, and empty")
    await until(loaded, seconds=60, what="the gateway has read it too, and lets requests wait for workers")
    async with people.api_client(stack) as client:
        ann = await client.register("ann")
        async with streams.running(stack, ann, count=200) as many:
            await until(lambda: shows(4), seconds=120, what="four workers are ready")
            await until(lambda: asyncio.sleep(0, many.exact >= 400), seconds=120, what="every stream was answered twice")
        assert many.wrong == []
        async with streams.running(stack, ann, count=10) as few:
            await until(shrinks, seconds=420, what="a worker is stopped while some streams run")
            await until(lambda: asyncio.sleep(0, few.exact >= 20), seconds=60, what="streams go on")
        assert few.wrong == []
        await until(lambda: shows(0), seconds=420, what="all workers are stopped")
        async with streams.running(stack, ann, count=1) as again:
            await until(lambda: asyncio.sleep(0, again.exact >= 1), seconds=60, what="the next request starts one")
        assert again.wrong == []
    calls = json.loads((await stack.aicli("scale", "history", "--last", "100", "--json")).out)
    assert {call["state"] for call in calls} == {"done"}, calls
    assert calls[-1]["current"] == 0
    assert max(call["wanted"] for call in calls) == 4
    assert [call for call in calls if call["wanted"] == 0]
