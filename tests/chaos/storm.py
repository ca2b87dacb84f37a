"""Cause faults at random moments, up to two at once, under a constant load, and check what must hold at the end.

    python -m tests.chaos.storm [--seed N] [--minutes 10] [--replicas 2]

Two processes of every service run, or more: the stack's own, which is broken, as are NATS and the stores, and replicas made as
docs/howto/run-one-service.md says, which must survive, although a tenth of the items of their background work fails. Clients use any
gateway, and send a request that failed once more. While parts are broken, a request may fail with an expected error. But no answer may be
wrong, no request may hang, and at the end the books must be exact, nothing may be reserved, no slot taken, nothing refused by NATS, and no
key contested; every line of a batch has ended once. With the retry, 99.9 % of the requests must be answered, and some request at least
every 15 s. No policy may change, no key be answered whose policy forbids it or can't be read, and no machine read a model that its owner
may not read. The exit status is 1 if anything was wrong.
"""

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import redis.asyncio as redis

from shared.api import gateway
from shared.timing import restart_policy
from stack import stack_plan
from stack.servers import replica_folder
from tests import replicas
from tests.chaos import clients, history, oddities, scenarios_servers, world
from tests.chaos.clients import Clients, Manner
from tests.chaos.invariants import Allowed
from tests.chaos.oddities import Oddities
from tests.chaos.oracle import CONNECTION_LOST, GAVE_UP, Door
from tests.chaos.scenarios_servers import killed, stalled
from tests.chaos.world import TOKEN_MS, Outcome, World
from tests.replicas import Replica
from tests.stacks import RunningStack, until

#: Pause between two faults of one of the two tasks that break things.
PAUSE_SECONDS = (1.0, 8.0)
HANGS_FOR_SECONDS = 3.0
READY_SECONDS = 60.0
#: With replicas, a request is answered at least this often.
MAX_OUTAGE_SECONDS = 15.0
#: Error codes allowed while parts are broken.
CODES = scenarios_servers.AWAY | {
    CONNECTION_LOST, GAVE_UP, "cancelled", "deadline_exceeded", "draining", "link_lost", "not_reachable", "overloaded", "worker_lost",
}  # fmt: skip
#: All requests are harmless. But a gateway that has just begun doesn't know that other workers were lost, too.
POISON, MAX_POISONED = "poison", 0.001


async def _worker_is(world: World, number: signal.Signals) -> None:
    worker = world.rng.choice(world.workers)
    if worker.process is None or not worker.alive:
        return
    worker.signal(number)
    await asyncio.to_thread(worker.process.wait, READY_SECONDS)
    await asyncio.sleep(world.rng.uniform(0, HANGS_FOR_SECONDS))
    worker.start()


async def _worker_dies(world: World) -> None:
    await _worker_is(world, signal.SIGKILL)


async def _worker_stops(world: World) -> None:
    await _worker_is(world, signal.SIGTERM)


async def _worker_hangs(world: World) -> None:
    worker = world.rng.choice(world.workers)
    worker.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(HANGS_FOR_SECONDS)
    finally:
        worker.signal(signal.SIGCONT)


async def _valkey_forgets(world: World) -> None:
    async with redis.Redis.from_url(stack_plan.valkey_of(world.stack.place).url) as valkey:
        await valkey.flushall()


def _ended(name: str, number: signal.Signals = signal.SIGKILL) -> "Fault":
    """Return a fault with a long time limit: the supervisor pauses for up to half a minute before it restarts what ends so often."""
    return killed(name, number, seconds=restart_policy.BACKOFF.longest_seconds + 2 * READY_SECONDS)


Fault = Callable[[World], Awaitable[object]]
#: Part -> the ways to break it. A part is broken only once at a time.
FAULTS: dict[str, tuple[Fault, ...]] = {
    "worker": (_worker_dies, _worker_dies, _worker_stops, _worker_hangs),
    "gateway": (_ended("gateway"), _ended("gateway", signal.SIGTERM), stalled("gateway", HANGS_FOR_SECONDS)),
    "auth": (_ended("auth"),),
    "nats": (_ended("nats"),),
    "postgres": (_ended("postgres", signal.SIGINT), _ended("postgres", signal.SIGQUIT), stalled("postgres", HANGS_FOR_SECONDS)),
    "valkey": (_ended("valkey"), _valkey_forgets, stalled("valkey", HANGS_FOR_SECONDS)),
}
#: Below the limit at which the supervisor stops restarting a program that ends too often within its window.
MAX_ENDS = restart_policy.MAX_CRASHES - 2


@dataclass(slots=True)
class _Storm:
    world: World
    ends_at: float
    broken: Counter[str] = field(default_factory=Counter)
    _turns: dict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
    _broken_at: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    async def break_things(self) -> None:
        rng = self.world.rng
        while time.monotonic() < self.ends_at:
            await asyncio.sleep(rng.uniform(*PAUSE_SECONDS))
            what = rng.choice([what for what in FAULTS if self._may_break(what)])
            async with self._turns[what]:
                self.broken[what] += 1
                self._broken_at[what].append(time.monotonic())
                await rng.choice(FAULTS[what])(self.world)

    def _may_break(self, what: str) -> bool:
        since = time.monotonic() - restart_policy.WINDOW_SECONDS
        return what == "worker" or sum(at > since for at in self._broken_at[what]) < MAX_ENDS


async def _leave(seen: Clients, ends_at: float) -> None:
    """Send requests whose clients leave before the end of the answer."""
    number = 0
    while time.monotonic() < ends_at:
        number += 1
        await seen.ask(number, clients.DOORS[number % 2], Manner(leaves_within=30, retries=True))


async def run(world: World, seconds: float, gateways: Sequence[str], odd: Oddities) -> Outcome:
    began = time.monotonic()
    storm = _Storm(world, began + seconds)
    half = world.scale.clients // 2
    returning = Manner(returns=True, retries=True)
    transport = clients.AnyGateway(lambda: gateways, world.rng)
    balanced = httpx.AsyncClient(transport=transport, base_url=gateways[0], timeout=clients.DEADLINE_SECONDS)
    async with world.clients() as seen, balanced as seen.http:
        async with clients.busy(seen, half, Manner(retries=True)), clients.busy(seen, half, returning, (Door.GATEWAY,)):
            await clients.until_streaming(seen, half)
            async with asyncio.TaskGroup() as tasks:
                for _ in range(2):
                    tasks.create_task(storm.break_things())
                tasks.create_task(_leave(seen, storm.ends_at))
                tasks.create_task(odd.run(balanced, storm.ends_at))
            for worker in world.workers:
                worker.start()
            back_at = await world.workers_serve(seconds=READY_SECONDS)
            await clients.until_served(seen, since=time.monotonic())
        odd.end()
        # When a hanging gateway resumes, it delivers what a worker has made in the meantime, even to clients that have left.
        in_flight = round(2 * HANGS_FOR_SECONDS * 1000 / TOKEN_MS)
        allowed = Allowed(codes=CODES | {POISON}, gateway_died=True, in_flight_tokens=in_flight, deadline_seconds=clients.DEADLINE_SECONDS)
        outcome = await world.judge(
            "storm",
            f"faults at random for {seconds / 60:g} min",
            seen,
            allowed,
            fault_at=began,
            recovered_at=back_at,
            more=f"{dict(storm.broken)}; {odd.describe()}",
        )
        missed = await odd.judge()
        answered, outage = history.availability(seen.calls)[1], history.longest_outage(seen.calls)
    await _no_place_is_taken(world)
    if outcome.ends.get(POISON, 0) > MAX_POISONED * outcome.calls:
        missed.append(f"{outcome.ends[POISON]} harmless requests were refused as ones that end workers")
    if answered < history.AVAILABILITY:
        missed.append(f"only {answered:.3%} of the requests were answered, with one retry")
    if outage > MAX_OUTAGE_SECONDS:
        missed.append(f"no request was answered for {outage:.1f} s")
    return replace(outcome, violations=(*outcome.violations, *missed))


async def _no_place_is_taken(world: World) -> None:
    async def none_is() -> bool:
        async with world.stack.client() as mesh:
            rows = await mesh.rpc.call(gateway.list_nodes, gateway.ListNodes(), credential=world.people[0].key.secret)
        return not any(row.running or row.queued for row in rows.nodes)

    await until(none_is, seconds=world.scale.lease_seconds, what="no worker has a place taken")


def _wrong_at(stack: RunningStack, others: list[Replica]) -> list[str]:
    """Return the problems that the replicas and the logs show."""
    ended = [f"a replica of {one.service} has ended: {one.log[-500:]}" for one in others if one.process.poll() is not None]
    return ended + replicas.refusals(stack, others) + replicas.contests(stack, others)


async def _storm(seed: int, minutes: float, count: int) -> Outcome:
    async with world.opened(world.LONG, seed) as opened, AsyncExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="aimesh-storm-")))
        # The harness starts its own workers.
        names = {f"{service}-{number}": service for service in replica_folder.SERVICES for number in range(2, count + 1)}
        odd = await running.enter_async_context(oddities.opened(opened, folder))
        others = [odd.thief]
        for name, service in names.items():
            words = oddities.words(service)
            made = replicas.replica(opened.stack, service, folder=folder, name=name, settings=odd.settings, words=words)
            others.append(await running.enter_async_context(made))
        for other in others:
            await other.ready()
        gateways = [opened.stack.url("gateway"), *(other.url for other in others if other.service == "gateway")]
        outcome = await run(opened, 60 * minutes, gateways, odd)
        return replace(outcome, violations=(*outcome.violations, *_wrong_at(opened.stack, others)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--replicas", type=int, default=2, choices=range(2, 6))
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    outcome = asyncio.run(_storm(seed, options.minutes, options.replicas))
    print(f"{outcome.what}: {outcome.calls:,} requests, {outcome.ends}; broken: {outcome.more}; {outcome.books}")
    print(outcome.service_level)
    for what in outcome.violations[:50]:
        print(f"  {what}")
    print("all held" if not outcome.violations else f"{len(outcome.violations)} WRONG")
    return int(bool(outcome.violations))


if __name__ == "__main__":
    sys.exit(main())
