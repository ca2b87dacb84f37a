"""Measure how many requests the ledger handles a second, and what a token of an answer without max_tokens costs the gateway.

PostgreSQL runs with its defaults (every commit reaches the disk); the gateway's own stores and recorder use a role with row-level security.
A request is a reservation, and then its row and settlement by the recorder, as in the gateway. The rival does the least possible: one
committed INSERT of a row for each request.
"""

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import asyncpg
import msgspec

from bench import calls, report
from bench.report import Options, Rows
from services.gateway import store
from services.gateway.billing.journal import Journal
from services.gateway.billing.ledger import QueryBatching
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.billing.reservations import GrantedReservation, InsufficientCredits, ReservationRequest, Spending
from services.gateway.billing.usage_recorder import UsageRecorder
from services.gateway.facts import tally
from services.gateway.facts.reader import Reader
from services.gateway.facts.request_record import RequestRow, ReservationState, RouteUse
from services.gateway.facts.upstream_prices import TargetHold, TargetSpending
from services.gateway.requests.caller import Caller
from services.gateway.requests.hold import STEP_TOKENS, Hold
from services.gateway.requests.request_validation import MAX_ANSWER_TOKENS
from services.gateway.store import GatewayStore
from shared.api.inference import Chunk
from shared.stores.database import Database
from shared.telemetry import Metrics
from shared.types import MicroCredits, RequestId, UserId
from tests.servers import PostgresServer, running
from tests.services.gateway.billing import test_ledger_store
from tests.services.gateway.billing.test_ledger_store import GATEWAY, MODEL, Books
from tests.services.gateway.requests.admitted_runs import admitted_run

CLIENTS = 32
TENANTS = 50
#: Two steps more than the first.
ANSWER_TOKENS = 10_000
#: Of all measurements in turn.
ROUNDS = 9
ROUTE = RouteUse("assistant", 1, "api-0", "api-0")
#: More credits than the bench uses, and more tokens.
BOUNDED = Spending(overage_micro=MicroCredits(10**15))
PLAN = Spending(10**12, MicroCredits(0), has_plan=True)
#: How many targets of the route have a ceiling.
FOUR_TARGETS = {"no ceiling": 0, "a ceiling": 1, "four ceilings": 4}

#: Makes a request of this tenant.
One = Callable[..., Awaitable[None]]
#: The targets of a route that has a daily ceiling for each.
CEILINGS = tuple(TargetHold("assistant", f"api-{number}", MODEL, MicroCredits(1), MicroCredits(10**15)) for number in range(4))


def reservation_of(request: RequestId, owner: UserId, spending: Spending) -> ReservationRequest:
    return msgspec.structs.replace(Books.wanted(owner, request), spending=spending)


def row_of(request: RequestId, owner: UserId, covered_tokens: int) -> RequestRow:
    """The plan covers all of it, or nothing."""
    row = test_ledger_store.row(owner, request, cost=0 if covered_tokens else 300)
    return msgspec.structs.replace(row, reservation=ReservationState.SETTLED, covered_tokens=covered_tokens)


@asynccontextmanager
async def _requests(opened: Database, ledger: LedgerStore) -> AsyncIterator[One]:
    """Yield a function that reserves and settles."""
    metrics = Metrics("bench")

    async def reserve(wanted: Sequence[ReservationRequest]) -> list[GrantedReservation | InsufficientCredits]:
        return await ledger.reserve(wanted, gateway=GATEWAY, lease_seconds=90)

    with TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "journal")
        recorder = UsageRecorder(GatewayStore(opened), journal, metrics.usage_queue_rows, metrics.settle_failures)
        async with recorder.running(), QueryBatching(reserve).running() as batches:

            async def one(
                owner: UserId, route: RouteUse | None = None, holds: tuple[TargetHold, ...] = (), spending: Spending = BOUNDED
            ) -> None:
                request = RequestId(uuid4())
                wanted = msgspec.structs.replace(reservation_of(request, owner, spending), holds=holds)
                granted = await batches.ask(wanted)
                assert isinstance(granted, GrantedReservation)
                assert bool(granted.plan_tokens) == spending.has_plan
                recorder.reserve()
                upstream = tuple(TargetSpending(hold.route, hold.target, hold.micro) for hold in holds[:1])
                pending = recorder.add(
                    msgspec.structs.replace(row_of(request, owner, min(granted.plan_tokens, 310)), route=route, spending=upstream)
                )
                await recorder.wait_until_saved(pending)
                await pending.written.wait()

            yield one


async def _measure(rows: Rows, _shared: None, options: Options) -> None:
    with running(partial(PostgresServer, durable=True)) as postgres:
        async with postgres.plain_role(postgres.url()) as url, store.opened(url) as opened:
            ledger = LedgerStore(opened)
            await ledger.ensure_default_price(100_000_000, 200_000_000)
            async with _requests(opened, ledger) as ours, asyncpg.create_pool(postgres.url(), min_size=10, max_size=10) as pool:
                await pool.execute("CREATE TABLE plain_rows (id uuid PRIMARY KEY, owner uuid, cost bigint)")

                async def plain(owner: UserId) -> None:
                    await pool.execute("INSERT INTO plain_rows VALUES ($1, $2, 300)", uuid4(), owner)

                await _measure_rates(rows, ours, plain, options.seconds / ROUNDS)
            await _measure_own_time(rows)


async def _measure_rates(rows: Rows, ours: One, plain: One, seconds: float) -> None:
    tenants = [UserId(uuid4()) for _ in range(TENANTS)]
    kinds: dict[str, tuple[One, list[UserId]]] = {"50": (ours, tenants), "plain": (plain, tenants), "1": (ours, tenants[:1])}
    kinds["plan"] = partial(ours, spending=PLAN), [UserId(uuid4()) for _ in range(TENANTS)]
    for name, ceilings in FOUR_TARGETS.items():
        kinds[name] = partial(ours, route=ROUTE, holds=CEILINGS[:ceilings]), tenants

    async def rate(one: One, owners: list[UserId]) -> float:
        turns = itertools.cycle(owners)
        return await calls.for_seconds(lambda: one(next(turns)), CLIENTS, seconds)

    rates = await report.take_turns({name: partial(rate, *kind) for name, kind in kinds.items()}, ROUNDS)
    for what, name, at_least in (("50 tenants", "50", 1000), ("one tenant", "1", 300)):
        claim = f"reserve + settle, {what}"
        rows.paired(claim, rates[name], "requests/s", "one committed INSERT", rates["plain"])
        rows.alone(claim, statistics.median(rates[name]), "requests/s", at_least=at_least)
    rows.paired("reserve + settle, tokens of a plan", rates["plan"], "requests/s", "without a plan", rates["50"], at_least=0.95)
    for name in FOUR_TARGETS:
        rows.paired(f"reserve + settle, four targets, {name}", rates[name], "requests/s", "one target", rates["50"], at_least=0.9)


async def _measure_own_time(rows: Rows) -> None:
    """The hold of an answer without max_tokens grows in steps, here at no cost."""

    async with asyncio.TaskGroup() as tasks:
        caller = Caller(admitted_run(), Reader(), time.monotonic)
        hold = Hold(held=STEP_TOKENS, most=MAX_ANSWER_TOKENS, answers=1)
        caller.bound(hold, lambda total: tasks.create_task(asyncio.sleep(0, total)), whole_until=None)
        at, began = tally.NOTHING, time.perf_counter()
        for token in range(ANSWER_TOKENS):
            chunk = Chunk("word", (token,))
            at = tally.count(at, chunk)
            assert await caller.take(1, chunk, at)
        took = time.perf_counter() - began
    rows.alone("the gateway's own time for each token of an answer without max_tokens", 1e6 * took / ANSWER_TOKENS, "us", at_most=20)


if __name__ == "__main__":
    report.run(__doc__, {"ledger": _measure}, limits=(600.0, 120.0), seconds=(4.0, 3.0))
