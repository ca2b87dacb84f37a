"""Workers that die, hang, crash on a prompt or fail half of the time: F1, F2, F19, F20, F22, F25."""

import asyncio
import signal
import time
from dataclasses import replace
from pathlib import Path

from services.inference.supervision import engine_supervisor
from shared import errors
from shared.api import gateway
from shared.api.gateway import InferenceRequest
from shared.types import ModelName
from tests.chaos import clients, faulty_worker, world
from tests.chaos.clients import Manner
from tests.chaos.history import Call
from tests.chaos.invariants import Allowed
from tests.chaos.oracle import Door
from tests.chaos.world import Outcome, World
from tests.stacks import until

#: Limit for a recovery, counted from the kill.
BACK_SECONDS = 20.0
REAL_MODEL = ModelName("smollm2")
#: No request may reach a third worker.
MAX_POISONED = 2
#: The retry budget: a fifth of the requests, plus some retries per second.
BUDGET_SHARE, BUDGET_A_SECOND, BUDGET_WINDOW_SECONDS = 0.2, 10.0, 10.0


async def f1_worker_dies_before_the_first_token(world: World) -> Outcome:
    async with world.clients() as seen:
        async with clients.busy(seen, world.scale.clients, Manner(special=faulty_worker.LATE)):
            await clients.until_streaming(seen, world.scale.clients)
            await world.lead()
            fault_at = time.monotonic()
            worker = world.rng.choice(world.workers)
            worker.kill()
            served_at = await clients.until_served(seen, since=fault_at)
            worker.start()
            await world.workers_serve()
        return await world.judge(
            "F1", "kill -9 of a worker before the first token", seen, Allowed(since=fault_at), fault_at=fault_at, recovered_at=served_at
        )


async def f2_worker_dies_in_mid_stream(world: World) -> Outcome:
    async with world.clients() as seen:
        async with clients.busy(seen, world.scale.clients):
            await clients.until_streaming(seen, world.scale.clients)
            await world.lead()
            fault_at = time.monotonic()
            worker = world.rng.choice(world.workers)
            worker.kill()
            served_at = await clients.until_served(seen, since=fault_at)
            started_at = time.monotonic()
            worker.start()
            back_at = await world.workers_serve()
        return await world.judge(
            "F2", "kill -9 of a worker in mid-stream", seen, Allowed(since=fault_at), fault_at=fault_at, recovered_at=served_at,
            more=f"the new process is ready {back_at - started_at:.1f} s after its start",
        )  # fmt: skip


async def f19_engine_dies(world: World) -> Outcome:
    """Kill the real model's process: its worker continues, and callers of other models notice nothing."""
    worker = (await world.stack.pids())["inference"]
    assert worker is not None
    async with world.clients() as seen:
        async with clients.busy(seen, world.scale.clients // 2):
            await world.lead()
            fault_at = time.monotonic()
            await _ask_real_model(seen, kill=_engine_of(worker))

            async def answers() -> bool:
                return await _ask_real_model(seen) == ""

            await until(answers, seconds=BACK_SECONDS, what="the model answers again")
            back_at = time.monotonic()
        return await world.judge(
            "F19", "kill -9 of the engine of a real model", seen, Allowed(since=fault_at, until=fault_at), fault_at=fault_at,
            recovered_at=back_at, more="the model's own callers: one clear error, or a pause",
        )  # fmt: skip


async def _ask_real_model(seen: clients.Clients, kill: int | None = None) -> str:
    """Return the code of the failure; empty for an answer."""
    request = InferenceRequest(prompt="Tell me a story about a bridge.", model=REAL_MODEL, max_tokens=60 if kill else 4, temperature=0.0)
    asked = gateway.ProcessInferenceRequest(request)
    chunks = 0
    try:
        async with seen.mesh.rpc.stream(
            gateway.process_inference_request, asked, credential=seen.people[0].key.secret, deadline_seconds=BACK_SECONDS
        ) as answer:
            async for _ in answer:
                chunks += 1
                if chunks == 2 and kill is not None:
                    world.signal_all([kill], signal.SIGKILL)
    except errors.PeerError as error:
        return errors.code_of(error)
    return ""


def _engine_of(worker: int) -> int:
    program = engine_supervisor.PROGRAM[-1].encode()
    (engine,) = [pid for pid in world.pids_below(worker) if program in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return engine


async def f20_request_that_ends_engines(world: World) -> Outcome:
    before = world.attempts.stat().st_size
    outcome, poisoned = await _poisoned(world, faulty_worker.POISON, "a request that ends every engine it meets")
    met = world.attempts.stat().st_size - before
    wrong = [] if met <= MAX_POISONED else [f"F20: {met} engines were lost to one request"]
    if poisoned.ends != ("poison",):
        wrong.append(f"F20: the request that kills ended with {poisoned.ends}")
    return _with(outcome, wrong)


async def f20_request_that_ends_workers(world: World) -> Outcome:
    """Here nothing is left of the worker to report why it died."""
    outcome, poisoned = await _poisoned(world, faulty_worker.DEADLY, "a request that ends every worker it meets")
    wrong = [] if poisoned.failed and not poisoned.text else ["F20: the request that kills had an answer"]
    return _with(outcome, wrong)


async def _poisoned(world: World, special: str, what: str) -> tuple[Outcome, Call]:
    await world.losses_are_old()
    async with world.clients() as seen:
        async with clients.busy(seen, world.scale.clients // 2):
            await clients.until_streaming(seen, world.scale.clients // 2)
            fault_at = time.monotonic()
            poisoned = await seen.ask(0, Door.GATEWAY, Manner(special=special, words=(5, 5)))
            killed = sum(not worker.alive for worker in world.workers)
            for worker in world.workers:
                worker.start()
            back_at = await world.workers_serve()
            await clients.until_served(seen, since=back_at)
        # The poisonous request itself must fail; no other may, as long as a worker is left. One that was lost with the same two workers,
        # and got no further with the second one, can't be told from it.
        seen.calls.remove(poisoned)
        codes = frozenset({"worker_lost", "link_lost", "not_reachable"} if killed == len(world.workers) else {"poison"} if killed else ())
        suspects = sum(call.ends == ("poison",) for call in seen.calls)
        outcome = await world.judge(
            "F20", what, seen, Allowed(since=fault_at, until=back_at, codes=codes), fault_at=fault_at, recovered_at=back_at,
            more=f"refused as {poisoned.ends[0]}; {killed} workers died",
        )  # fmt: skip
    found = [f"F20: {killed} workers were lost to one request"] if killed > MAX_POISONED else []
    found += [f"F20: {suspects} other requests were refused, too"] if suspects > world.scale.clients // 10 else []
    return _with(outcome, found), poisoned


async def f22_half_of_the_attempts_fail(world: World) -> Outcome:
    count = 2 * world.scale.clients
    before = world.attempts.stat().st_size
    async with world.clients() as seen:
        fault_at = time.monotonic()
        async with clients.busy(seen, count, Manner(special=faulty_worker.FLAKY, words=(1, 5))):
            await asyncio.sleep(world.scale.outage_seconds)
        seconds = time.monotonic() - fault_at
        attempts = world.attempts.stat().st_size - before
        calls = len(seen.calls)
        codes = frozenset({"unavailable", "overloaded", "worker_lost"})
        outcome = await world.judge(
            "F22", "half of all attempts fail", seen, Allowed(codes=codes), fault_at=fault_at, recovered_at=fault_at,
            more=f"{attempts} attempts for {calls} requests",
        )  # fmt: skip
    # The budget per second accumulates for a window.
    allowed = calls * (1 + BUDGET_SHARE) + BUDGET_A_SECOND * (seconds + BUDGET_WINDOW_SECONDS)
    return _with(outcome, [] if attempts <= allowed else [f"F22: {attempts} attempts, where the budget allows {allowed:.0f}"])


async def f25_worker_hangs_and_wakes(world: World) -> Outcome:
    """After it resumes, its messages are for streams that other workers have taken over."""
    async with world.clients() as seen:
        async with clients.busy(seen, world.scale.clients):
            await clients.until_streaming(seen, world.scale.clients)
            await world.lead()
            fault_at = time.monotonic()
            worker = world.rng.choice(world.workers)
            worker.signal(signal.SIGSTOP)
            try:
                served_at = await clients.until_served(seen, since=fault_at)
                await asyncio.sleep(max(0.0, fault_at + world.scale.outage_seconds - time.monotonic()))
            finally:
                worker.signal(signal.SIGCONT)
            await world.workers_serve()
            await clients.until_served(seen, since=time.monotonic())
        return await world.judge(
            "F25", f"a worker that hangs for {world.scale.outage_seconds:g} s and wakes", seen, Allowed(since=fault_at), fault_at=fault_at,
            recovered_at=served_at,
        )  # fmt: skip


def _with(outcome: Outcome, wrong: list[str]) -> Outcome:
    return replace(outcome, violations=(*outcome.violations, *wrong))
