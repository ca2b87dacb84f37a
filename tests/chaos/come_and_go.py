"""Run three replicas of each service, most of them by ticket, and replace one after another, under the load of a storm.

    python -m tests.chaos.come_and_go [--seed N] [--minutes 10]

Every ten seconds a new replica joins with its ticket and its own key, and an older one of the same service ends: half of them by a
clean shutdown, half by kill -9. Clients use any gateway that runs. No answer may be wrong, no request may hang, and at the end the books
must be exact, NATS must have refused nothing, and no key may be contested. The exit status is 1 if anything was wrong.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx

from tests import replicas
from tests.chaos import clients, storm, world
from tests.chaos.clients import Clients, Manner
from tests.chaos.invariants import Allowed
from tests.chaos.oracle import Door
from tests.chaos.world import TOKEN_MS, Outcome, World
from tests.replicas import Replica

EVERY_SECONDS = 10.0
#: Replicas of each service, in addition to the stack's own process.
BESIDE = 2
#: Nodes per ticket: the place of a killed node becomes free a minute after its last message.
ACTIVE = 3 * BESIDE
#: Service -> the role of its tickets. Replicas of auth certify themselves.
BY_TICKET = {"gateway": "gateway", "inference": "worker", "metrics": "metrics", "web": "web"}


@dataclass(slots=True)
class Fleet:
    """The replicas in addition to the stack's own services."""

    world: World
    folder: Path
    tickets: dict[str, Path]
    #: All replicas that ever ran.
    started: list[Replica] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    _serving: dict[str, list[tuple[Replica, AsyncExitStack]]] = field(default_factory=dict)

    def gateways(self) -> list[str]:
        return [self.world.stack.url("gateway"), *(one.url for one, _ in self._serving.get("gateway", ()))]

    async def start(self, service: str) -> None:
        opened, name = AsyncExitStack(), f"{service}-{len(self.started)}"
        settings = {"RECOVERY_LOG_DIR": str(self.folder / f"{name}.recovery")} if service == "auth" else {}
        if service in self.tickets:
            settings["JOIN_TICKET_FILE"] = str(self.tickets[service])
        if service == "inference":
            settings |= {"ECHO_TOKEN_MS": str(TOKEN_MS), "ECHO_SLOTS": str(world.SLOTS)}
        started = await opened.enter_async_context(
            replicas.replica(self.world.stack, service, folder=self.folder, name=name, settings=settings)
        )
        self.started.append(started)
        await started.ready()
        self._serving.setdefault(service, []).append((started, opened))

    async def replace_one(self, service: str) -> None:
        """Start a replica and end the oldest one."""
        await self.start(service)
        ended, opened = self._serving[service][0]
        if is_killed := self.world.rng.random() < 0.5:
            ended.process.kill()
            await ended.ended()
        # A load balancer learns of a clean shutdown before it begins, and of a crash when it notices.
        del self._serving[service][0]
        await opened.aclose()
        self.ends[f"{service} {'killed' if is_killed else 'stopped'}"] += 1

    async def close(self) -> None:
        for serving in self._serving.values():
            for _, opened in serving:
                await opened.aclose()

    def wrong(self) -> list[str]:
        """Return the problems that the logs show."""
        tracebacks = [f"a traceback in {one.log_file.name}: {one.log[-2000:]}" for one in self.started if "Traceback" in one.log]
        return replicas.refusals(self.world.stack, self.started) + replicas.contests(self.world.stack, self.started) + tracebacks


@asynccontextmanager
async def fleet(opened: World, folder: Path) -> AsyncIterator[Fleet]:
    """Start two replicas of each service and wait until they are ready."""
    tickets = {}
    for service, role in BY_TICKET.items():
        words = ("--role", role, "--active", str(ACTIVE), "--uses", "unlimited", "--network", "127.0.0.0/8", "--json")
        made = await opened.stack.aicli("admin", "tickets", "create", *words)
        tickets[service] = folder / f"{service}.ticket"
        tickets[service].touch(mode=0o600)
        tickets[service].write_text(made.json()["ticket"], encoding="utf-8")
    running = Fleet(opened, folder, tickets)
    try:
        for service in replicas.ROLES:
            for _ in range(BESIDE):
                await running.start(service)
        yield running
    finally:
        await running.close()


async def run(opened: World, running: Fleet, seconds: float) -> Outcome:
    began, half = time.monotonic(), opened.scale.clients // 2
    async with opened.clients() as seen:
        transport = clients.AnyGateway(running.gateways, opened.rng)
        async with httpx.AsyncClient(transport=transport, base_url=seen.http.base_url, timeout=clients.DEADLINE_SECONDS) as http:
            seen.http = http
            async with clients.busy(seen, half), clients.busy(seen, half, Manner(returns=True), (Door.GATEWAY,)):
                await clients.until_streaming(seen, half)
                await _keep_replacing(opened, running, seen, began + seconds)
                back_at = await clients.until_served(seen, since=time.monotonic())
        in_flight = round(2 * storm.HANGS_FOR_SECONDS * 1000 / TOKEN_MS)
        allowed = Allowed(codes=storm.CODES, gateway_died=True, in_flight_tokens=in_flight, deadline_seconds=clients.DEADLINE_SECONDS)
        outcome = await opened.judge(
            "come and go",
            f"replicas of each service come and go for {seconds / 60:g} min",
            seen,
            allowed,
            fault_at=began,
            recovered_at=back_at,
            more=str(dict(running.ends)),
        )
    return replace(outcome, violations=(*outcome.violations, *running.wrong()))


async def _keep_replacing(opened: World, running: Fleet, seen: Clients, ends_at: float) -> None:
    """Replace a replica of each service in turn, in a different order each round."""
    due = time.monotonic()
    while time.monotonic() < ends_at:
        for service in opened.rng.sample(list(replicas.ROLES), len(replicas.ROLES)):
            if time.monotonic() >= ends_at:
                return
            due = max(due + EVERY_SECONDS, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            await running.replace_one(service)


async def come_and_go(scale: world.Scale, seed: int, minutes: float) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="aimesh-come-and-go-") as folder:
        async with world.opened(scale, seed) as opened, fleet(opened, Path(folder)) as running:
            return await run(opened, running, 60 * minutes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    outcome = asyncio.run(come_and_go(world.LONG, seed, options.minutes))
    print(f"{outcome.what}: {outcome.calls:,} requests, {outcome.ends}; {outcome.more}; {outcome.books}")
    for what in outcome.violations[:50]:
        print(f"  {what}")
    print("all held" if not outcome.violations else f"{len(outcome.violations)} WRONG")
    return int(bool(outcome.violations))


if __name__ == "__main__":
    sys.exit(main())
