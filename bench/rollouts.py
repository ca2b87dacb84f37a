"""Measure what 50 open rollouts cost while 1,000 requests a second are recorded: writing their outcomes, and judging them. Measure how fast
gateways use a change of the configuration, and what the largest configuration costs them.

The rival is the same recording without open rollouts. Processor time is that of this process and of PostgreSQL.
"""

import asyncio
import gc
import itertools
import random
import time
import tracemalloc
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import AsyncExitStack
from statistics import median
from uuid import uuid4

import msgspec
import psutil

from bench import report
from bench.ledger import row_of
from bench.report import Options, Rows
from services.gateway import store
from services.gateway.billing.request_record import RequestRow, RouteUse
from services.gateway.config_snapshot import DocumentKey
from services.gateway.configuration.config_store import ConfigStore
from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.rollouts.rollout_evidence import Progress
from services.gateway.rollouts.rollout_rules import Rollout
from services.gateway.rollouts.rollout_runner import LOOK_SECONDS, RolloutRunner
from services.gateway.rollouts.rollout_store import OpenRollouts, RolloutStore
from services.gateway.store import GatewayStore
from shared import config_documents
from shared.api.configuration import RolloutPlan, RolloutState
from shared.config_documents import ConfigKind, Document, GuardAction, GuardKind, Sticky
from shared.rpc.audit_reporting import AuditReporting
from shared.telemetry import Metrics
from shared.types import RequestId, UserId
from tests.servers import PostgresServer, running
from tests.services.gateway.fakes import FakeRpc

ROLLOUTS, PER_SECOND, BATCH = 50, 1_000, 100
ROUTES, POLICIES, GATEWAYS = 500, 2_000, 3
TENANTS = [UserId(uuid4()) for _ in range(200)]


def _rows(numbers: Sequence[int]) -> list[RequestRow]:
    return [
        msgspec.structs.replace(
            row_of(RequestId(uuid4()), TENANTS[number % len(TENANTS)]),
            route=RouteUse(f"route-{number % ROLLOUTS}", 1, "next" if number % 7 == 0 else "local", "local", is_compared=True),
            first_token_ms=100,
            variant_failed=number % 97 == 0,
        )
        for number in numbers
    ]


def _spent_seconds() -> float:
    """Of this process and its children, PostgreSQL's sessions among them."""
    me = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in (me, *me.children(recursive=True)))


async def _record(requests: GatewayStore, seconds: float) -> float:
    """Record requests for so long; return the processor time of one second."""
    numbers = itertools.count()
    before, began = _spent_seconds(), time.monotonic()
    for batch in range(round(seconds * PER_SECOND / BATCH)):
        await requests.write_requests(_rows(list(itertools.islice(numbers, BATCH))))
        await asyncio.sleep(max(0.0, began + (batch + 1) * BATCH / PER_SECOND - time.monotonic()))
    return (_spent_seconds() - before) / (time.monotonic() - began)


async def _measure(rows: Rows, _shared: None, options: Options) -> None:
    with running(PostgresServer) as postgres:
        async with store.opened(postgres.url()) as database:
            requests, rollouts, tables = GatewayStore(database), RolloutStore(database), ConfigStore(database)
            live = LiveConfiguration(tables)
            await live.reload()
            runner = RolloutRunner(live, rollouts, AuditReporting(FakeRpc()), Metrics("bench"), {})
            # As a gateway does.
            gc.freeze()
            without = [await _record(requests, options.seconds) for _ in range(3)]
            await _start(tables)
            await live.reload()
            async with asyncio.TaskGroup() as tasks:
                looks = tasks.create_task(runner.run())
                spent = [await _record(requests, options.seconds) for _ in range(3)]
                looks.cancel()
            found = await rollouts.find(only_open=True, limit=ROLLOUTS)
            judged = sum(rollout.progress.candidate.requests + rollout.progress.baseline.requests for rollout in found)
    more = median(spent) - median(without)
    rows.alone(f"outcomes and looks of {ROLLOUTS} rollouts, {PER_SECOND} requests/s", 100 * more, "% of a core", at_most=3)
    waiting = PER_SECOND * (LOOK_SECONDS + 1)
    rows.alone("outcomes not judged", 3 * PER_SECOND * options.seconds - judged, "outcomes", at_most=waiting)


async def _start(tables: ConfigStore) -> None:
    async with tables.lock() as locked:
        opened = OpenRollouts(locked.transaction)
        now = await opened.read_clock()
        for number in range(ROLLOUTS):
            rollout = Rollout(
                id=uuid4(),
                route=f"route-{number}",
                sticky=Sticky.CONVERSATION,
                plan=RolloutPlan("next", "local"),
                state=RolloutState.RUNNING,
                progress=Progress(step_began_at=now, outcome_at=now, first_token_limit_ms=500),
                started_at=now,
            )
            await opened.start(rollout)


def _largest() -> dict[DocumentKey, Document]:
    """As many routes and policies as there may be."""
    targets = tuple(config_documents.TargetDocument(name=f"target-{number}", model="smollm2", share=25.0) for number in range(4))
    guard = config_documents.GuardDocument(
        prompt={GuardKind.EMAIL: GuardAction.MASK, GuardKind.CARD: GuardAction.REFUSE}, countries=("DE", "US")
    )
    policy = config_documents.PolicyDocument(models=("assistant", "embed-*"), external=("openai",), guard=guard)
    routes = {(ConfigKind.ROUTE, f"route-{number}"): config_documents.RouteDocument(targets=targets) for number in range(ROUTES)}
    return {**routes, **{(ConfigKind.POLICY, f"organization:{uuid4()}"): policy for _ in range(POLICIES)}}


async def _longest_step(work: Coroutine[None, None, None]) -> float:
    """Return the milliseconds of processor time for which the event loop served nobody else."""
    longest, last = 0.0, time.thread_time()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work)
        while not task.done():
            await asyncio.sleep(0)
            longest, last = max(longest, time.thread_time() - last), time.thread_time()
    return 1000 * longest


async def _configuration(rows: Rows, _shared: None, options: Options) -> None:
    with running(PostgresServer) as postgres:
        async with AsyncExitStack() as stack:
            tables = [ConfigStore(await stack.enter_async_context(store.opened(postgres.url()))) for _ in range(GATEWAYS)]
            async with tables[0].lock() as locked:
                await locked.write(_largest(), origin="applied")
            gc.freeze()
            tracemalloc.start()
            live = LiveConfiguration(tables[0])
            await live.reload()
            rows.alone("configuration of 500 routes and 2,000 policies", tracemalloc.get_traced_memory()[0] / 1e6, "MB", at_most=30)
            tracemalloc.stop()
            spent, steps = [], []
            for _ in range(10):
                before = time.thread_time()
                steps.append(await _longest_step(LiveConfiguration(tables[0]).reload()))
                spent.append(1000 * (time.thread_time() - before))
            rows.alone("reading it, processor time", median(spent), "ms", at_most=200)
            rows.alone("reading it, longest step of the event loop", median(steps), "ms", at_most=20)
            for name, changes, most in (("with notifications", 100, 2000), ("without notifications", options.polls, 10_000)):
                gateways = [LiveConfiguration(one) for one in tables]
                for one in tables if most > 2000 else ():
                    one.watch = _never  # type: ignore[method-assign]
                waited = await _propagate(gateways, tables[0], changes)
                claim = f"a change is used by {GATEWAYS} gateways, {name}: p99 of {changes}"
                rows.alone(claim, 1000 * report.percentile(waited, 0.99), "ms", at_most=most)


async def _never() -> AsyncGenerator[None]:
    await asyncio.Event().wait()
    yield


async def _propagate(gateways: Sequence[LiveConfiguration], tables: ConfigStore, changes: int) -> list[float]:
    """Change one document again and again; return the seconds until all gateways use it."""
    waited = []
    for gateway in gateways:
        await gateway.reload()
    async with asyncio.TaskGroup() as tasks:
        watching = [tasks.create_task(gateway.watch()) for gateway in gateways]
        for number in range(changes):
            # Without notifications, this is just behind the polls of all: the worst case.
            await asyncio.sleep(random.uniform(0.0, 0.2))
            async with tables.lock() as locked:
                wanted = locked.revision + 1
                await locked.write(
                    {(ConfigKind.DEFAULT_MODEL, config_documents.DEFAULT_MODEL): config_documents.DefaultModelDocument(f"m{number}")},
                    origin="applied",
                )
            began = time.monotonic()
            while min(gateway.config.revision for gateway in gateways) < wanted:  # noqa: ASYNC110 - they tell nobody
                await asyncio.sleep(0.002)
            waited.append(time.monotonic() - began)
        for task in watching:
            task.cancel()
    return waited


if __name__ == "__main__":
    parts = {"rollouts": _measure, "configuration": _configuration}
    report.run(__doc__, parts, limits=(400.0, 200.0), seconds=(20.0, 10.0), polls=(20, 5))
