"""Measure how many requests the ledger handles a second, and check that it never grants more than there is.

PostgreSQL runs with its defaults (every commit reaches the disk); the gateway's own stores and recorder use a role with row-level security.
A request is a reservation, and then its row and settlement by the recorder, as in the gateway. The rival does the least possible: one
committed INSERT of a row for each request.
"""

import asyncio
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
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
from services.gateway.billing.request_record import RequestRow, ReservationState, RouteUse
from services.gateway.billing.reservations import GrantedReservation, HoldExtension, InsufficientCredits, ReservationRequest
from services.gateway.billing.usage_recorder import UsageRecorder
from services.gateway.limits.upstream_prices import TargetHold, TargetSpending
from services.gateway.prompt_admission import MAX_ANSWER_TOKENS
from services.gateway.relay import AnswerItem
from services.gateway.requests import bounded_answers
from services.gateway.requests.bounded_answers import STEP_TOKENS, AnswerBounds
from services.gateway.store import GatewayStore
from shared.api.inference import Chunk
from shared.stores.database import Database
from shared.telemetry import Metrics
from shared.types import MicroCredits, ModelName, NodeId, RequestId, RequestStatus, TenantId, UserId
from tests.servers import PostgresServer, running

CLIENTS = 32
TENANTS = 50
#: Room for 7 of 64.
ROOM, EACH, AT_ONCE = 3500, 500, 64
#: Tokens of an answer within the first step, and of one with two more.
SHORT, LONG = 3500, 10_000
MODEL = ModelName("smollm2")
GATEWAY = NodeId("U" * 56)
PLENTY = MicroCredits(10**15)

#: Of all measurements in turn.
ROUNDS = 9
ROUTE = RouteUse("assistant", 1, "api-0", "api-0")
#: How many targets of the route have a ceiling.
FOUR_TARGETS = {"no ceiling": 0, "a ceiling": 1, "four ceilings": 4}

#: Makes a request of this tenant.
One = Callable[..., Awaitable[None]]
#: The targets of a route that has a daily ceiling for each.
CEILINGS = tuple(TargetHold("assistant", f"api-{number}", MODEL, MicroCredits(1), PLENTY) for number in range(4))


def reservation_of(request: RequestId, owner: UserId, monthly: MicroCredits = PLENTY) -> ReservationRequest:
    return ReservationRequest(
        request_id=request, owner=TenantId(owner), key_id=None, model=MODEL, price_id=1, prompt_tokens=10, max_tokens=EACH,
        least_tokens=EACH, answers=1, fixed_micro=MicroCredits(0), micro_per_million=1_000_000, monthly_micro=monthly,
        key_budget_micro=None,
    )  # fmt: skip


def row_of(request: RequestId, owner: UserId) -> RequestRow:
    return RequestRow(
        id=request, user_id=owner, api_key_id=None, prompt_hash=None, model_used=MODEL, response_time_ms=10, prompt_tokens=10,
        completion_tokens=290, status=RequestStatus.SUCCESS, error_code=None, created_at=datetime.now(UTC),
        cost_micro=MicroCredits(300), reservation=ReservationState.SETTLED,
    )  # fmt: skip


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

            async def one(owner: UserId, route: RouteUse | None = None, holds: tuple[TargetHold, ...] = ()) -> None:
                request = RequestId(uuid4())
                wanted = msgspec.structs.replace(reservation_of(request, owner), holds=holds)
                assert isinstance(await batches.ask(wanted), GrantedReservation)
                recorder.reserve()
                spending = tuple(TargetSpending(hold.route, hold.target, hold.micro) for hold in holds[:1])
                pending = recorder.add(msgspec.structs.replace(row_of(request, owner), route=route, spending=spending))
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
            await _measure_steps(rows, ledger, options.seconds / ROUNDS)
            await _measure_races(rows, ledger, options.rounds)
            async with asyncpg.create_pool(url, min_size=1, max_size=1, server_settings={"search_path": "gateway"}) as pool:
                await _measure_site_lease(rows, ledger, pool, options.seconds / ROUNDS)


async def _measure_site_lease(rows: Rows, ledger: LedgerStore, pool: asyncpg.Pool, seconds: float) -> None:
    """Compare the reserve statement with itself without its check, as it is for a database that has no lease and for one that has."""
    tenants = itertools.cycle([UserId(uuid4()) for _ in range(TENANTS)])
    with_check = await pool.fetchval("SELECT pg_get_functiondef('site_may_reserve'::regproc)")
    without_check = "CREATE OR REPLACE FUNCTION site_may_reserve() RETURNS boolean LANGUAGE sql AS 'SELECT true'"
    lease = "INSERT INTO site_lease (term, site, state, changed_at) VALUES (1, 'here', 'active', now())"
    strict = lease.replace("changed_at)", "changed_at, ends_at)").replace("now())", "now(), now() + interval '1 hour')")
    kinds = {
        "without": (without_check, ""),
        "no lease": (with_check, ""),
        "a lease": (with_check, lease),
        "a strict lease": (with_check, strict),
    }
    rates = defaultdict[str, list[float]](list)

    async def one() -> None:
        await ledger.reserve([reservation_of(RequestId(uuid4()), next(tenants))], gateway=GATEWAY, lease_seconds=90)

    for number in range(4 * ROUNDS):
        for name, (function, row) in report.in_turn(list(kinds.items()), number):
            await pool.execute(f"{function}; DELETE FROM site_lease; {row}")
            rate, _ = await calls.for_seconds(one, 4, seconds / 2)
            rates[name].append(rate)
    for name in ("no lease", "a lease", "a strict lease"):
        rows.paired(f"reserve, site check, {name}", rates[name], "requests/s", "without the check", rates["without"], at_least=0.97)


async def _measure_rates(rows: Rows, ours: One, plain: One, seconds: float) -> None:
    tenants = [UserId(uuid4()) for _ in range(TENANTS)]
    rates, waits = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    kinds: tuple[tuple[str, One, list[UserId]], ...] = (
        ("50", ours, tenants),
        ("plain", plain, tenants),
        ("1", ours, tenants[:1]),
        *((name, partial(ours, route=ROUTE, holds=CEILINGS[:ceilings]), tenants) for name, ceilings in FOUR_TARGETS.items()),
    )
    for number in range(ROUNDS):
        for name, one, owners in report.in_turn(kinds, number):
            turns = itertools.cycle(owners)
            rate, took = await calls.for_seconds(lambda one=one, turns=turns: one(next(turns)), CLIENTS, seconds)  # type: ignore[misc]
            rates[name].append(rate)
            waits[name] += took
    for what, name, at_least in (("50 tenants", "50", 1000), ("one tenant", "1", 300)):
        claim = f"reserve + settle, {what}"
        rows.medians(claim, rates[name], "requests/s", "one committed INSERT", rates["plain"])
        rows.alone(claim, statistics.median(rates[name]), "requests/s", at_least=at_least)
    for name in FOUR_TARGETS:
        rows.paired(f"reserve + settle, four targets, {name}", rates[name], "requests/s", "one target", rates["50"], at_least=0.9)
    for name in ("50", "1"):
        rows.waits(f"reserve + settle, {name} tenants, {CLIENTS} at once", waits[name])


async def _measure_steps(rows: Rows, ledger: LedgerStore, seconds: float) -> None:
    """Count the extensions of an answer without max_tokens, and how long one takes."""

    async def answer(length: int) -> AsyncGenerator[AnswerItem]:
        for token in range(length):
            yield Chunk("word", (token,))

    took = 0.0
    async with asyncio.TaskGroup() as tasks:
        for length in (SHORT, LONG):
            asked: list[int] = []

            def extend(total: int, asked: list[int] = asked) -> asyncio.Task[int]:
                asked.append(total)
                return tasks.create_task(asyncio.sleep(0, total))

            began = time.perf_counter()
            bounds = AnswerBounds(held=STEP_TOKENS, most=MAX_ANSWER_TOKENS, answers=1)
            delivered = sum([1 async for _ in bounded_answers.bounded(answer(length), bounds, extend)])
            took = time.perf_counter() - began
            assert delivered == length
            rows.alone(f"extensions of an answer of {length} tokens", len(asked), "calls", at_most=length // STEP_TOKENS)
        rows.alone("the gateway's own time for each token of it", 1e6 * took / LONG, "us", at_most=20)
    owner, totals = UserId(uuid4()), itertools.count(EACH + 1)
    running_request = reservation_of(RequestId(uuid4()), owner)
    await ledger.reserve([running_request], gateway=GATEWAY, lease_seconds=90)

    async def one() -> None:
        extension = HoldExtension(
            request_id=running_request.request_id, owner=running_request.owner, max_tokens=next(totals), least_more=1, answers=1,
            micro_per_million=1_000_000, monthly_micro=PLENTY, key_budget_micro=None,
        )  # fmt: skip
        await ledger.extend_holds([extension])

    _, took_each = await calls.for_seconds(one, 1, seconds)
    rows.waits("extend", took_each)


async def _measure_races(rows: Rows, ledger: LedgerStore, rounds: int) -> None:
    """Ask at once for more than there is, as from several gateways: each in its own statement."""
    wrong = 0
    for _ in range(rounds):
        owner = UserId(uuid4())
        asked = [reservation_of(RequestId(uuid4()), owner, MicroCredits(ROOM)) for _ in range(AT_ONCE)]
        answers = await asyncio.gather(*(ledger.reserve([one], gateway=GATEWAY, lease_seconds=90) for one in asked))
        wrong += sum(isinstance(answer, GrantedReservation) for (answer,) in answers) != ROOM // EACH
    rows.alone(f"of {AT_ONCE} at once with room for 7: rounds of {rounds} that granted another number", wrong, "rounds", at_most=0)
    books = await ledger.verify(grace_seconds=1000)
    rows.alone("drift of the books afterwards", books.drift_micro + abs(books.sum_micro), "micro-credits", at_most=0)


if __name__ == "__main__":
    report.run(__doc__, {"ledger": _measure}, limits=(600.0, 120.0), seconds=(4.0, 3.0), rounds=(1000, 100))
