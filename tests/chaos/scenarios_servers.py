"""Services and servers that die, restart, stall or lose their data: F3, F4, F5, F7, F9, F11, F25 of the gateway."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace

import httpx
import redis.asyncio as redis

from stack import stack_plan
from tests import stopwatch
from tests.chaos import clients, world
from tests.chaos.clients import Manner
from tests.chaos.invariants import Allowed
from tests.chaos.oracle import Door
from tests.chaos.world import Outcome, World

#: Clients that send an idempotency key and reconnect.
RETURNING = Manner(returns=True)
HTTP = (Door.GATEWAY,)
READY_SECONDS = 15.0
#: After a recovery, new requests may fail for this long, because connection pools have to reconnect first.
SLACK_SECONDS = 5.0
#: While PostgreSQL is down, a new request waits and then gets a 503.
AWAY = frozenset({"unavailable", "ledger_unavailable"})

Break = Callable[[World], Awaitable[float]]


async def _broken(
    world: World, fault: str, what: str, breaks: Break, allowed: Allowed, *, manner: Manner | None = None, doors: tuple[Door, ...] = HTTP
) -> Outcome:
    """Run load before, during and after the fault, until all is well again; ``breaks`` returns when the broken part is back."""
    async with world.clients() as seen:
        async with clients.busy(seen, world.scale.clients, manner, doors):
            await clients.until_streaming(seen, world.scale.clients)
            await world.lead()
            fault_at = time.monotonic()
            back_at = await breaks(world)
            await clients.until_served(seen, since=back_at)
        allowed = replace(allowed, since=fault_at, until=back_at + stopwatch.patience(SLACK_SECONDS))
        return await world.judge(fault, what, seen, allowed, fault_at=fault_at, recovered_at=back_at)


def killed(name: str, number: signal.Signals = signal.SIGKILL, *, seconds: float = READY_SECONDS + 32) -> Break:
    async def breaks(world: World) -> float:
        await world.end(name, number, seconds=seconds)
        return time.monotonic()

    return breaks


def stalled(name: str, seconds: float) -> Break:
    async def breaks(the_world: World) -> float:
        pid = (await the_world.stack.programs())[name].pid
        assert pid is not None
        pids = world.pids_below(pid)
        world.signal_all(pids, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            world.signal_all(pids, signal.SIGCONT)
        return time.monotonic()

    return breaks


async def f3_gateway_dies(world: World) -> Outcome:
    """Clients with an idempotency key reconnect to the restarted gateway, and continue after the text that they have."""
    return await _broken(
        world, "F3", "kill -9 of the gateway, clients come back", killed("gateway"), Allowed(gateway_died=True), manner=RETURNING
    )


async def f4_worker_is_told_to_stop(world: World) -> Outcome:
    async def breaks(world: World) -> float:
        worker = world.rng.choice(world.workers)
        worker.signal(signal.SIGTERM)
        assert worker.process is not None
        await asyncio.to_thread(worker.process.wait, READY_SECONDS + 32)
        worker.start()
        return await world.workers_serve()

    return await _broken(world, "F4", "SIGTERM of a worker", breaks, Allowed())


async def f4_gateway_is_told_to_stop(world: World) -> Outcome:
    """Running answers finish; clients that arrive in the meantime retry."""
    allowed = Allowed(running_survive=True)
    return await _broken(world, "F4", "SIGTERM of the gateway", killed("gateway", signal.SIGTERM), allowed, manner=RETURNING)


async def f5_auth_dies(world: World) -> Outcome:
    told: Counter[int] = Counter()

    async def breaks(world: World) -> float:
        asking = asyncio.create_task(_ask_as_strangers(world, told))
        try:
            return await killed("auth")(world)
        finally:
            await asking

    outcome = await _broken(world, "F5", "kill -9 of auth", breaks, Allowed())
    wrong = {status: times for status, times in told.items() if status not in {200, 503, 504}}
    found = [f"F5: keys that nobody knows yet were told {wrong}"] if wrong else []
    return replace(outcome, violations=(*outcome.violations, *found), more=f"responses to unknown keys: {dict(told)}")


async def _ask_as_strangers(world: World, told: Counter[int]) -> None:
    """Use keys that the gateway has to ask auth about; a key is new only once per world."""
    async with world.stack.http() as http:
        for _ in range(5):
            if not world.strangers:
                return
            key = world.strangers.pop()
            try:
                told[(await http.get("/v1/models", headers={"authorization": f"Bearer {key}"})).status_code] += 1
            except httpx.TransportError:
                told[0] += 1
            await asyncio.sleep(clients.RETURN_SECONDS)


async def f7_nats_dies(world: World) -> Outcome:
    async def breaks(world: World) -> float:
        await killed("nats")(world)
        return await world.workers_serve()

    return await _broken(world, "F7", "kill -9 of NATS", breaks, Allowed())


async def f9_postgres_restarts(world: World) -> Outcome:
    allowed = Allowed(codes=AWAY, running_survive=True)
    return await _broken(world, "F9", "PostgreSQL restarts, fast", killed("postgres", signal.SIGINT), allowed)


async def f9_postgres_crashes(world: World) -> Outcome:
    allowed = Allowed(codes=AWAY, running_survive=True)
    return await _broken(world, "F9", "PostgreSQL restarts, immediate, with recovery", killed("postgres", signal.SIGQUIT), allowed)


async def f9_postgres_stalls(world: World) -> Outcome:
    seconds = world.scale.outage_seconds
    allowed = Allowed(codes=AWAY, running_survive=True)
    return await _broken(world, "F9", f"PostgreSQL hangs for {seconds:g} s", stalled("postgres", seconds), allowed)


async def f11_valkey_dies(world: World) -> Outcome:
    return await _broken(world, "F11", "kill -9 of Valkey", killed("valkey"), Allowed())


async def f11_valkey_stalls(world: World) -> Outcome:
    return await _broken(world, "F11", "Valkey hangs for 5 s", stalled("valkey", 5.0), Allowed())


async def f11_valkey_forgets(world: World) -> Outcome:
    async def breaks(world: World) -> float:
        async with redis.Redis.from_url(stack_plan.valkey_of(world.stack.place).url) as valkey:
            await valkey.flushall()
        return time.monotonic()

    return await _broken(world, "F11", "FLUSHALL of Valkey", breaks, Allowed())


async def f25_gateway_hangs_and_wakes(world: World) -> Outcome:
    """By the time it resumes, its workers have dropped its streams; its clients may have to reconnect."""
    seconds = world.scale.outage_seconds
    what = f"a gateway that hangs for {seconds:g} s and wakes"

    async def breaks(world: World) -> float:
        await stalled("gateway", seconds)(world)
        return await world.workers_serve()

    return await _broken(world, "F25", what, breaks, Allowed(), manner=RETURNING)
