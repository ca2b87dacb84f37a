"""What the scenarios break: a whole stack and the harness's own workers; also its tenants, and the verdict at the end.

async with world.opened(scale, seed) as world:
    outcome = await scenario(world)
"""

import asyncio
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import asyncpg
import httpx

from services.gateway.scheduling.worker_records import LOSSES_SECONDS
from shared import errors
from shared.api import gateway
from shared.limits import BY_NAME
from shared.timing import restart_policy
from tests import people, replicas, stacks, stopwatch
from tests.chaos import clients, faulty_worker, hasty_gateway, history, invariants, ledger
from tests.chaos.clients import Clients
from tests.chaos.invariants import Allowed
from tests.chaos.ledger import Books
from tests.people import Person
from tests.replicas import Replica
from tests.stacks import REPOSITORY, RunningStack, until
from tests.testnet import free_port

WORKERS = 3
#: Per worker: three have as many slots as the largest crowd has streams, and a larger burst meets full queues.
SLOTS, QUEUE = 64, 16
TOKEN_MS = 50
#: Every limit is counted but never reached.
UNREACHED = ",".join(f"{name}=1000000000" for name in BY_NAME)
START_SECONDS = 20.0
#: A call is in the books within this time after its end, unless its gateway died.
REST_SECONDS = 15.0
#: How long the supervisor counts an end, which it may notice late.
_COUNTED_SECONDS = restart_policy.WINDOW_SECONDS + 5
#: What a scenario meets while servers are away.
AWAY = (httpx.TransportError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
#: A reservation waits two seconds for PostgreSQL; on a busy machine, as in `make test`, that may be too short even without a fault.
BUSY = "ledger_unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The load and the times of a run."""

    clients: int
    tenants: int
    #: Range of the random pause before each fault.
    lead_seconds: tuple[float, float]
    #: How long a hang or an outage lasts.
    outage_seconds: float
    #: How long to wait for rest after a gateway died; its leases take two minutes to expire.
    lease_seconds: float
    #: Requests of a burst, all at once.
    burst: int
    #: Lines of all batches together.
    lines: int
    #: How long a gateway keeps lines; None: as long as the product says.
    line_lease_seconds: float | None = None
    #: How long a process is stopped that runs lines: longer than its leases.
    stop_seconds: float
    #: Of each customer.
    months: int
    #: How often a gateway works on bills; None: as often as the product says.
    bills_seconds: float | None = None


SHORT = Scale(
    clients=16, tenants=3, lead_seconds=(0.5, 1.5), outage_seconds=5, lease_seconds=REST_SECONDS, burst=300, lines=100,
    line_lease_seconds=5, stop_seconds=8, months=3, bills_seconds=1,
)  # fmt: skip
LONG = Scale(
    clients=50, tenants=10, lead_seconds=(2, 8), outage_seconds=20, lease_seconds=150, burst=600, lines=1000, stop_seconds=90, months=4,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of one scenario: a row of the table."""

    #: Its number in RELIABILITY.md, like F2.
    fault: str
    what: str
    calls: int
    #: How the calls ended.
    ends: dict[str, int]
    failing_seconds: float
    longest_pause: float
    #: Until everything worked again.
    recovered_seconds: float
    books: str
    violations: tuple[str, ...] = ()
    #: Figures that only this fault has.
    more: str = ""
    #: Average time to first text and of whole answers, and availability, over all calls.
    service_level: str = ""


@dataclass(slots=True)
class Worker:
    """A worker process of the harness, which scenarios may break."""

    stack: RunningStack
    number: int
    attempts: Path
    slots: int = SLOTS
    process: "subprocess.Popen[bytes] | None" = None
    #: When a lost one was started again.
    returned_at: float = -math.inf

    def start(self) -> None:
        if self.alive:
            return
        if self.process is not None:
            self.returned_at = time.monotonic()
        log = (self.stack.home / f"faulty-worker-{self.number}.log").open("ab")
        environment = {
            **self.stack.environment,
            "ECHO_TOKEN_MS": str(TOKEN_MS),
            "ENGINE_QUEUE": str(QUEUE),
            "ECHO_SLOTS": str(self.slots),
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
        """Kill it with SIGKILL."""
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
    #: Log file -> how much of it was checked.
    _read: dict[Path, int] = field(default_factory=dict)
    #: When each of the stack's programs was ended.
    _ends: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    # --- for scenarios -----------------------------------------------------------------------------------------------

    def clients(self) -> AbstractAsyncContextManager[Clients]:
        return clients.opened(self.stack, self.people, self.rng)

    async def lead(self) -> None:
        """Wait for the random moment of the fault."""
        await asyncio.sleep(self.rng.uniform(*self.scale.lead_seconds))

    async def workers_serve(self, count: int = WORKERS, *, seconds: float = START_SECONDS) -> float:
        """Wait until the gateway counts this many workers of the model, and return when it does."""

        async def serve() -> bool:
            async with self.stack.client() as mesh:
                found = await mesh.rpc.call(gateway.list_models, gateway.ListModels(), credential=self.people[0].key.secret)
            return sum(model.workers for model in found.models if model.name == clients.MODEL) == count

        ignoring = (errors.AimeshError, OSError)
        await until(serve, seconds=seconds, what=f"{count} workers serve", ignoring=ignoring)
        return time.monotonic()

    async def losses_are_old(self) -> None:
        """Wait until no gateway counts the workers that scenarios before this one have lost."""
        latest = max(worker.returned_at for worker in self.workers)
        await asyncio.sleep(latest + LOSSES_SECONDS - time.monotonic())

    def may_end(self, name: str) -> bool:
        """Return whether the supervisor would start the program again, also once more for another scenario."""
        return len(self._recent_ends(name)) < restart_policy.MAX_CRASHES - 2

    async def end(self, name: str, number: signal.Signals, *, seconds: float) -> None:
        """End one of the stack's programs, and wait until it is back."""
        self._ends[name].append(time.monotonic())
        old = await self.stack.signal(name, number)
        await self.stack.restarted(name, old, seconds=seconds)

    def _recent_ends(self, name: str) -> list[float]:
        """Return when we ended it, as far as the supervisor still counts it."""
        return [at for at in self._ends[name] if time.monotonic() - at < _COUNTED_SECONDS]

    async def mend(self) -> None:
        """Make everything run and serve again, for the next scenario, which may end each program once."""
        for name in self._ends:
            if len(recent := self._recent_ends(name)) >= restart_policy.MAX_CRASHES - 1:
                await asyncio.sleep(recent[0] + _COUNTED_SECONDS - time.monotonic())
        for worker in self.workers:
            worker.start()
        await self.workers_serve()
        await self._remember_moment()

    # --- the judge ---------------------------------------------------------------------------------------------------

    async def judge(
        self, fault: str, what: str, seen: Clients, allowed: Allowed, *, fault_at: float, recovered_at: float, more: str = ""
    ) -> Outcome:
        """Wait until all is at rest, then check the calls and the books."""
        books, tired = await self._at_rest(seen, allowed)
        judged = [call for call in seen.calls if stopwatch.bounds_hold or call.ends != (BUSY,) or BUSY in allowed.codes]
        found = invariants.violations(judged, books, allowed) + tired + await self.verify()
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
        """Return the books once nothing is open and they have every success, and what was still missing after a while."""
        seconds = self.scale.lease_seconds if allowed.gateway_died else REST_SECONDS
        owners = [person.id for person in self.people]
        wanted = {call.request_id for call in seen.calls if call.succeeded and call.request_id is not None}
        last = Books()
        # The leases expire two minutes after the gateway's death.
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

    async def verify(self) -> list[str]:
        """Return what the gateway's own check of all books finds, and new tracebacks."""
        done = await self.stack.aicli("admin", "ledger", "verify", "--json")
        report = done.json() if done.status == 0 else {}
        wrong = {name: report.get(name) for name in ("drift_micro", "sum_micro", "reserved_drift_micro", "overdue") if report.get(name)}
        found = [f"I3: aicli admin ledger verify: {wrong or done.err.strip()}"] if wrong or done.status else []
        return found + self._tracebacks()

    def _tracebacks(self) -> list[str]:
        """Return the new tracebacks in all logs. There must be none: a handled fault is logged as a sentence."""
        found = []
        for path in (*self.stack.place.logs.glob("*.log"), *self.stack.home.glob("*.log")):
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
    # Without Hyperswarm fewer processes share the cores; tests/chaos/outside tests its faults.
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


@asynccontextmanager
async def other_gateways(running: World, count: int, settings: Mapping[str, str], haste: Mapping[str, str]) -> AsyncIterator[list[Replica]]:
    """Let these gateways answer in place of the stack's own. ``haste``: settings of ``hasty_gateway``."""
    words = ("-m", hasty_gateway.__name__) if haste else ()
    async with AsyncExitStack() as entered:
        folder = Path(entered.enter_context(tempfile.TemporaryDirectory(prefix="aimesh-gateways-")))
        opened = [
            replicas.replica(running.stack, "gateway", folder=folder, name=f"other-{number}", settings={**settings, **haste}, words=words)
            for number in range(count)
        ]
        gateways = [await entered.enter_async_context(each) for each in opened]
        await asyncio.gather(*(gateway.ready() for gateway in gateways))
        own = await running.stack.signal("gateway", signal.SIGSTOP)
        entered.callback(signal_all, [own], signal.SIGCONT)
        yield gateways


#: Keys that no gateway has seen.
STRANGERS = 20


async def _people(stack: RunningStack, count: int) -> tuple[list[Person], list[str]]:
    async with people.api_client(stack) as api_client:
        tenants = [await api_client.register(f"tenant{number}") for number in range(count)]
        keys = [await api_client.make_key(tenants[number % count], f"stranger {number}") for number in range(STRANGERS)]
        return tenants, [str(key.secret) for key in keys]


def pids_below(pid: int) -> Sequence[int]:
    """Return a process and all its descendants, so that all can be stopped together."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += map(int, task.read_text(encoding="ascii").split())
    return found


def signal_all(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
