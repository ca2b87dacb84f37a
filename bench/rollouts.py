"""Measure what 50 open rollouts cost while 1,000 requests a second are recorded: writing their outcomes, and judging them.

The rival is the same recording without open rollouts. Processor time is that of this process and of PostgreSQL.
"""

import asyncio
import gc
import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from uuid import uuid4

import psutil

from bench import report
from bench.ledger import row_of
from bench.report import Options, Rows
from services.gateway import store
from services.gateway.billing.request_record import RequestRow, RouteUse
from services.gateway.configuration.config_store import ConfigStore
from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.rollouts.rollout_evidence import Progress
from services.gateway.rollouts.rollout_rules import Rollout
from services.gateway.rollouts.rollout_runner import LOOK_SECONDS, RolloutRunner
from services.gateway.rollouts.rollout_store import OpenRollouts, RolloutStore
from services.gateway.store import GatewayStore
from shared.api.configuration import RolloutPlan, RolloutState
from shared.config_documents import Sticky
from shared.rpc.audit_reporting import AuditReporting
from shared.telemetry import Metrics
from shared.types import RequestId, UserId
from tests.servers import PostgresServer, running
from tests.services.gateway.fakes import FakeRpc

ROLLOUTS, PER_SECOND, BATCH = 50, 1_000, 100
TENANTS = [UserId(uuid4()) for _ in range(200)]


def _rows(numbers: Sequence[int]) -> list[RequestRow]:
    return [
        replace(
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
            runner = RolloutRunner(live, rollouts, AuditReporting(FakeRpc()), Metrics("bench"))
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
    rows.medians(f"recording {PER_SECOND} requests/s with {ROLLOUTS} rollouts", spent, "CPU seconds/s", "without", without)
    more = sorted(spent)[1] - sorted(without)[1]
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


if __name__ == "__main__":
    report.run(__doc__, {"rollouts": _measure}, limits=(300.0, 120.0), seconds=(20.0, 10.0))
