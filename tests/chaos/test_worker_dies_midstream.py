"""kill -9 and a long SIGSTOP of a worker in the middle of its answers: every answer is complete, to the token, and is counted once."""

import asyncio
import os
import signal
import statistics

import pytest

from shared.api import gateway
from shared.api.gateway import InferenceRequest
from shared.types import ModelName, Tier
from tests.chaos import streams
from tests.chaos.streams import Told
from tests.people import ApiClient, Person
from tests.stacks import RunningStack, until

#: A long run sets 20.
KILLS = int(os.environ.get("AIMESH_KILLS", "3"))
STREAMS = 50


@pytest.fixture
async def eve(api_client: ApiClient) -> Person:
    """A user without limits."""
    return await api_client.register("eve", Tier.ENTERPRISE)


async def test_answers_go_on_elsewhere_when_their_worker_is_killed(stack: RunningStack, eve: Person) -> None:
    before = await _resumed(stack)
    told = await streams.kill_workers(stack, eve, kills=KILLS, count=STREAMS)
    resumed = await _resumed(stack) - before
    _report(f"{KILLS} kills", told, resumed)
    assert told.wrong == []
    # The killed worker had its share of the streams; how many of them were in mid-answer is chance.
    assert resumed >= KILLS * STREAMS // 10
    await streams.each_is_counted_once(stack, eve, told)


async def test_what_a_worker_that_was_stopped_says_later_reaches_nobody(stack: RunningStack, eve: Person) -> None:
    before = await _resumed(stack)
    async with streams.worker(stack, ECHO_TOKEN_MS="60") as zombie, streams.running(stack, eve, count=20) as told:
        await streams.in_the_middle(told, zombie, 4)
        os.kill(zombie.process.pid, signal.SIGSTOP)
        try:
            met = set(told.running)

            async def went_on() -> bool:
                return bool(told.went_on & met & told.running.keys())

            await until(went_on, seconds=streams.DEADLINE_SECONDS, what="another worker went on with its answers")
        finally:
            # It resumes while other workers are still writing answers that it had begun.
            os.kill(zombie.process.pid, signal.SIGCONT)
        await until(lambda: streams.have_ended(told, met), seconds=streams.DEADLINE_SECONDS, what="those that it ran are over")
        await until(lambda: streams.is_busy(zombie, 1), seconds=30, what="the woken worker is used again")
    _report("a worker that was stopped", told, await _resumed(stack) - before)
    assert told.wrong == []
    assert await _resumed(stack) > before
    await streams.each_is_counted_once(stack, eve, told)


async def test_the_real_model_goes_on_to_the_token(stack: RunningStack, api_client: ApiClient, eve: Person) -> None:
    undisturbed = await _tell(api_client, eve)
    assert len(undisturbed) >= 20
    before = await _resumed(stack)
    async with streams.worker(stack, backend="llama", ENGINE_SLOTS="4") as victim:
        chunks: list[list[str]] = []
        running: list[asyncio.Task[list[str]]] = []

        async def answers_run_there() -> bool:
            if await victim.busy():
                return all(len(one) >= 3 for one in chunks)
            # The other worker has cached the prompt and is preferred, so add answers until it is full.
            if len(running) < MAX_ANSWERS:
                chunks.append([])
                running.append(tasks.create_task(_tell(api_client, eve, chunks[-1])))
            return False

        async with asyncio.TaskGroup() as tasks:
            await until(answers_run_there, seconds=60, what="all are in their middle, and one of them there")
            victim.kill()
    assert [task.result() for task in running] == [undisturbed] * len(chunks)
    assert await _resumed(stack) > before


#: Concurrent answers of the real model; more than a worker here has slots.
MAX_ANSWERS = 24


async def _tell(api_client: ApiClient, person: Person, into: list[str] | None = None) -> list[str]:
    into = [] if into is None else into
    request = InferenceRequest(
        prompt="Tell me a story about a bridge and a grüner Vogel.", model=ModelName("smollm2"), max_tokens=80, temperature=1.0, seed=7,
        ignore_eos=True,
    )  # fmt: skip
    asked = gateway.ProcessInferenceRequest(request)
    method = gateway.process_inference_request
    async with api_client.mesh.rpc.stream(method, asked, credential=person.key.secret, deadline_seconds=90) as answer:
        async for chunk in answer:
            if chunk.text:
                into.append(chunk.text)
        assert answer.end.usage.completion_tokens == 80
    return into


async def _resumed(stack: RunningStack) -> int:
    return int(await stack.metric("gateway", "ai_platform_retries_total", kind="resumption", outcome="answered"))


def _report(what: str, told: Told, resumed: int) -> None:
    """Print the figures for `pytest -rP`."""
    stalls = sorted(pause for pause in told.pauses if pause > 1.0)
    p95 = stalls[int(len(stalls) * 0.95)] if stalls else 0.0
    print(
        f"CHAOS {what}: {told.exact} answers exact, {len(told.wrong)} not, {resumed} resumed; pauses over 1 s: {len(stalls)}, "
        f"median {statistics.median(stalls) if stalls else 0.0:.2f} s, 95 % {p95:.2f} s, longest {max(stalls, default=0.0):.2f} s"
    )
