"""What the scenarios break: a whole stack, workers of the harness's own, tenants, and the judge at the end.

async with world.opened(scale, seed) as world:
    outcome = await scenario(world)
"""

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import asyncpg

from services.gateway.limits import tiers
from shared import errors
from shared.api import gateway
from tests import people, stacks, stopwatch
from tests.chaos import clients, faulty_worker, history, invariants, ledger
from tests.chaos.clients import Clients
from tests.chaos.invariants import Allowed
from tests.chaos.ledger import Books
from tests.people import Person
from tests.stacks import REPOSITORY, RunningStack, until
from tests.testnet import free_port

WORKERS = 3
#: Of one worker: three have as many slots as the largest crowd has streams, and a burst of more meets full queues.
SLOTS, QUEUE = 64, 16
TOKEN_MS = 50
#: Every limit is counted, and none is reached.
UNREACHED = ",".join([*(f"{name}=1000000000" for name in tiers.LIMITS), "credits=unlimited"])
START_SECONDS = 20.0
#: A call that ended is in the books within this time, unless its gateway died.
REST_SECONDS = 15.0
#: A reservation waits two seconds for PostgreSQL; on a busy machine, as in `make test`, that may be too short without any fault.
BUSY = "ledger_unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How hard a run is."""

    clients: int
    tenants: int
    #: Before a fault; drawn anew for each.
    lead_seconds: tuple[float, float]
    #: How long what hangs or is away does so.
    outage_seconds: float
    #: Without an answer for so long, an expired lease of a dead gateway is seen.
    lease_seconds: float
    #: At once, where a crowd comes.
    burst: int


SHORT = Scale(clients=16, tenants=3, lead_seconds=(0.5, 1.5), outage_seconds=5, lease_seconds=REST_SECONDS, burst=300)
LONG = Scale(clients=50, tenants=10, lead_seconds=(2, 8), outage_seconds=20, lease_seconds=150, burst=600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one scenario: a row of the table."""

    #: As RELIABILITY.md numbers it: F2.
    fault: str
    what: str
    calls: int
    #: How the calls ended.
    ends: dict[str, int]
    failing_seconds: float
    longest_pause: float
    #: Until all was as before.
    recovered_seconds: float
    books: str
    violations: tuple[str, ...] = ()
    #: Figures of this fault alone.
    more: str = ""
    #: Average response time and availability, over all calls.
    service_level: str = ""


@dataclass(slots=True)
class Worker:
    """A process of the harness's own, which it may break as it likes."""

    stack: RunningStack
    number: int
    attempts: Path
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        if self.alive:
            return
        log = (self.stack.home / f"faulty-worker-{self.number}.log").open("ab")
        environment = {
            **self.stack.environment,
            "ECHO_TOKEN_MS": str(TOKEN_MS),
            "ENGINE_QUEUE": str(QUEUE),
            "ECHO_SLOTS": str(SLOTS),
            faulty_worker.ATTEMPTS_FILE: str(self.attempts),
            "CHAOS_PORT": str(free_port()),
        }
        words = [sys.executable, "-m", "tests.chaos.faulty_worker"]
        with log:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=REPOSITORY, env=environment)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()


@dataclass(slots=True)
class World:
    stack: RunningStack
    workers: list[Worker]
    people: list[Person]
    strangers: list[str]
    scale: Scale
    rng: random.Random
    attempts: Path
    _began: datetime | None = field(default=None)
    #: How much of each log was looked at.
    _read: dict[Path, int] = field(default_factory=dict)

    # --- for scenarios -----------------------------------------------------------------------------------------------

    def clients(self) -> AbstractAsyncContextManager[Clients]:
        return clients.opened(self.stack, self.people, self.rng)

    async def lead(self) -> None:
        """Until the moment of the fault, which nobody knows before."""
        await asyncio.sleep(self.rng.uniform(*self.scale.lead_seconds))

    async def workers_serve(self, count: int = WORKERS, *, seconds: float = START_SECONDS) -> float:
        """The moment from which the gateway counts so many workers of the model."""

        async def serve() -> bool:
            async with self.stack.client() as mesh:
                found = await mesh.rpc.call(gateway.list_models, gateway.ListModels(), credential=self.people[0].key.secret)
            return sum(model.workers for model in found.models if model.name == clients.MODEL) == count

        ignoring = (errors.AimeshError, OSError)
        await until(serve, seconds=seconds, what=f"{count} workers serve", ignoring=ignoring)
        return time.monotonic()

    async def mend(self) -> None:
        """Everything runs and serves, for the next scenario."""
        for worker in self.workers:
            worker.start()
        await self.workers_serve()
        await self._remember_moment()

    # --- the judge ---------------------------------------------------------------------------------------------------

    async def judge(
        self, fault: str, what: str, seen: Clients, allowed: Allowed, *, fault_at: float, recovered_at: float, more: str = ""
    ) -> Outcome:
        """When all is at rest: the calls and the books together before the oracle."""
        books, tired = await self._at_rest(seen, allowed)
        judged = [call for call in seen.calls if stopwatch.bounds_hold or call.ends != (BUSY,) or BUSY in allowed.codes]
        found = invariants.violations(judged, books, allowed) + tired + await self._verified() + self._tracebacks()
        return Outcome(
            fault=fault,
            what=what,
            calls=len(seen.calls),
            ends=history.outcomes(seen.calls),
            failing_seconds=history.failing_seconds(seen.calls, fault_at),
            longest_pause=history.longest_pause(seen.calls, fault_at),
            recovered_seconds=max(0.0, recovered_at - fault_at),
            books=books.summary(),
            violations=tuple(found),
            more=more,
            service_level=history.service_level(seen.calls),
        )

    async def _at_rest(self, seen: Clients, allowed: Allowed) -> tuple[Books, list[str]]:
        """The books, once nothing is open and every success is in them; what still was not, after a while."""
        seconds = self.scale.lease_seconds if allowed.gateway_died else REST_SECONDS
        owners = [person.id for person in self.people]
        wanted = {call.request_id for call in seen.calls if call.succeeded and call.request_id is not None}
        last = Books()
        # They end two minutes after the gateway.
        leases_outlast_this = allowed.gateway_died and self.scale.lease_seconds <= REST_SECONDS

        async def rests() -> bool:
            nonlocal last
            last = await ledger.read(self.stack, owners, self._began)
            is_recorded = allowed.gateway_died or wanted <= last.logged.keys()
            return (leases_outlast_this or last.open == 0) and is_recorded and await self._in_flight() == 0

        try:
            await until(rests, seconds=seconds, what="at rest", ignoring=(errors.AimeshError, OSError, asyncpg.PostgresError))
        except AssertionError:
            return last, [f"I5: {last.open} reservations open, {await self._in_flight()} requests in flight after {seconds:g} s of rest"]
        return last, []

    async def _in_flight(self) -> int:
        async with self.stack.client() as mesh:
            return (await mesh.rpc.call(gateway.get_service_health, gateway.GetServiceHealth())).in_flight

    async def _verified(self) -> list[str]:
        """The gateway's own check of all books; an older gateway has none."""
        done = await self.stack.aicli("admin", "ledger", "verify", "--json")
        if done.status == 2 and "No such command" in done.err:
            return []
        report = done.json() if done.status == 0 else {}
        wrong = {name: report.get(name) for name in ("drift_micro", "sum_micro", "reserved_drift_micro", "overdue") if report.get(name)}
        return [f"I3: aicli admin ledger verify: {wrong or done.err.strip()}"] if wrong or done.status else []

    def _tracebacks(self) -> list[str]:
        """Nobody's log has one, whatever was broken: a fault that is handled is a sentence there."""
        found = []
        for path in (*self.stack.place.logs.glob("*.log"), *self.stack.home.glob("faulty-worker-*.log")):
            text = path.read_text(encoding="utf-8", errors="replace")
            new, self._read[path] = text[self._read.get(path, 0) :], len(text)
            before, mark, after = new.partition("Traceback")
            if mark:
                found.append(f"a traceback in {path.name}: {before[-300:]}{mark}{after[:3000]}")
        return found

    async def _remember_moment(self) -> None:
        async with self.stack.database("gateway") as database:
            self._began = await database.fetchval("SELECT now()")


@asynccontextmanager
async def opened(scale: Scale, seed: int) -> AsyncIterator[World]:
    # Without Hyperswarm there are fewer processes on the cores; tests/chaos/outside has its faults.
    settings = {"RESPONSE_CACHE": "off", "TIER_FREE": UNREACHED, "DEFAULT_RATE_LIMIT": "1000000000", "HYPERSWARM": "0", "LOG_LEVEL": "info"}
    async with stacks.stack(**settings) as stack:
        folder = Path(tempfile.mkdtemp(prefix="aimesh-chaos-"))
        attempts = folder / "attempts"
        attempts.touch()
        workers = [Worker(stack, number, attempts) for number in range(WORKERS)]
        try:
            for worker in workers:
                worker.start()
            tenants, strangers = await _people(stack, scale.tenants)
            world = World(stack, workers, tenants, strangers, scale, random.Random(seed), attempts)
            await world.mend()
            yield world
        finally:
            for worker in workers:
                if worker.alive:
                    worker.signal(signal.SIGCONT)
                    worker.kill()
            shutil.rmtree(folder, ignore_errors=True)


#: Keys that no gateway has seen.
STRANGERS = 20


async def _people(stack: RunningStack, count: int) -> tuple[list[Person], list[str]]:
    async with people.api_client(stack) as api_client:
        tenants = [await api_client.register(f"tenant{number}") for number in range(count)]
        keys = [await api_client.make_key(tenants[number % count], f"stranger {number}") for number in range(STRANGERS)]
        return tenants, [str(key.secret) for key in keys]


def pids_below(pid: int) -> Sequence[int]:
    """A process and all that it started, so that all can be stopped together."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += map(int, task.read_text(encoding="ascii").split())
    return found


def signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
