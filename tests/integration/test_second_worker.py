"""A worker started by hand: used within 3 s of its ready line, excluded within 6 s of its death."""

import asyncio
import json
import signal
import time
from typing import Any

import httpx
import pytest

from shared import errors
from shared.api import gateway
from tests.integration import asking
from tests.people import ApiClient, Person
from tests.stacks import RunningStack, total, until

pytestmark = pytest.mark.nightly("stacks")

USED_WITHIN_SECONDS, LEFT_OUT_WITHIN_SECONDS = 3, 6


async def _until_ready(worker: asyncio.subprocess.Process) -> dict[str, Any]:
    """Return its ready line, which contains its port and its node."""
    assert worker.stdout is not None
    async with asyncio.timeout(60):
        async for line in worker.stdout:
            said: dict[str, Any] = json.loads(line)
            if said["event"] == "ready":
                return said
    raise AssertionError("the worker ended before it was ready")


async def _tokens_there(port: int) -> float:
    async with httpx.AsyncClient(trust_env=False) as http:
        return total((await http.get(f"http://127.0.0.1:{port}/metrics")).text, "ai_platform_tokens_total", type="output")


async def _node(stack: RunningStack, node: str) -> dict[str, Any]:
    nodes = (await stack.aicli("nodes", "--json")).json()
    return next((row for row in nodes if row["id"] == node), {})


async def test_a_worker_by_hand_is_used_and_a_killed_one_is_left_out(stack: RunningStack, api_client: ApiClient, ann: Person) -> None:
    worker = await stack.start_aicli("worker", "--backend", "echo", ECHO_TOKEN_MS="5")
    try:
        said = await _until_ready(worker)
        ready_at = time.monotonic()

        async def used() -> bool:
            await asyncio.gather(*(asking.rpc(api_client.mesh, ann.key.secret, "hi") for _ in range(4)))
            return await _tokens_there(said["port"]) > 0

        await until(used, seconds=USED_WITHIN_SECONDS, what="the second worker is used")
        print(f"used {time.monotonic() - ready_at:.2f} s after its ready line")
        row = await _node(stack, said["id"])
        assert (row["role"], row["usable"], row["why_not"], row["models"]) == ("worker", True, "", ["echo"])

        worker.kill()
        killed_at = time.monotonic()

        async def left_out() -> bool:
            # The other worker takes over requests that still go to the dead one: none fails.
            await asyncio.gather(*(asking.rpc(api_client.mesh, ann.key.secret, "hi") for _ in range(4)))
            return not (await _node(stack, said["id"]))["usable"]

        await until(left_out, seconds=LEFT_OUT_WITHIN_SECONDS, what="the killed worker is left out")
        print(f"left out {time.monotonic() - killed_at:.2f} s after its death")
        row = await _node(stack, said["id"])
        assert row["why_not"]
        assert not row["alive"]
    finally:
        if worker.returncode is None:
            worker.kill()
        await worker.communicate()


async def test_a_worker_that_is_asked_to_stop_finishes_what_it_runs(stack: RunningStack, api_client: ApiClient, ann: Person) -> None:
    """After SIGTERM, the stack's only echo worker completes its answers, and the supervisor restarts it."""
    # An answer takes 5 s, so that all eight run at the same time even on a busy machine.
    count = 1000
    words = "word " * count
    running = [asyncio.create_task(asking.rpc(api_client.mesh, ann.key.secret, words, deadline_seconds=60)) for _ in range(8)]

    async def generating() -> bool:
        # Don't start aicli for this: on a busy machine, that may take as long as an answer.
        found = await api_client.mesh.rpc.call(gateway.list_nodes, gateway.ListNodes(), credential=ann.key.secret)
        return sum(row.running for row in found.nodes if "echo" in row.models) >= 8

    await until(generating, what="all eight run")
    old = await stack.signal("inference-echo", signal.SIGTERM)
    for answered in await asyncio.gather(*running):
        assert answered.completion_tokens == count
    await stack.restarted("inference-echo", old)

    async def used() -> bool:
        return (await asking.rpc(api_client.mesh, ann.key.secret, "hi")).text == "hi"

    await until(used, what="it is used again", ignoring=(errors.NotReachable, errors.LinkLost))
