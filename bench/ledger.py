"""Measure how many requests the ledger handles a second, and check that it never grants more than there is.

    python -m bench.ledger [--quick] [--seconds 4] [--rounds 1000] [--json FILE]

PostgreSQL runs with its defaults (every commit reaches the disk); the gateway's own stores and recorder use a role with row-level security.
A request is a reservation, and then its row and settlement by the recorder, as in the gateway. The rival does the least possible: one
committed INSERT of a row for each request.
"""

import asyncio
import itertools
import statistics
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import asyncpg

from bench import calls, report
from services.gateway import store
from services.gateway.billing.journal import Journal
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.billing.query_batching import QueryBatching
from services.gateway.billing.request_record import RequestRow, ReservationState
from services.gateway.billing.reservations import GrantedReservation, InsufficientCredits, ReservationRequest
from services.gateway.billing.usage_recorder import UsageRecorder
from services.gateway.store import GatewayStore
from shared.telemetry import Metrics
from shared.types import MicroCredits, ModelName, NodeId, RequestId, RequestStatus, UserId
from tests.servers import PostgresServer, running

CLIENTS = 32
TENANTS = 50
#: Room for 7 of 64.
ROOM, EACH, AT_ONCE = 3500, 500, 64
_MODEL = ModelName("smollm2")
_GATEWAY = NodeId("U" * 56)
_PLENTY = MicroCredits(10**15)

One = Callable[[UserId], Awaitable[None]]


async def _measure(table: report.Table, seconds: float, rounds: int) -> None:
    with running(lambda folder: PostgresServer(folder, durable=True)) as postgres, TemporaryDirectory() as folder:
        await _measure_ledger(table, postgres, Path(folder), seconds, rounds)


async def _measure_ledger(table: report.Table, postgres: PostgresServer, folder: Path, seconds: float, rounds: int) -> None:
    table.expect(("rates", "races"))
    tenants = [UserId(uuid4()) for _ in range(TENANTS)]
    async with (
        postgres.plain_role(postgres.url()) as url,
        store.opened(url) as opened,
        asyncpg.create_pool(postgres.url(), min_size=10, max_size=10) as pool,
    ):
        requests, ledger = GatewayStore(opened), LedgerStore(opened)
        await ledger.ensure_default_price(100_000_000, 200_000_000)
        await pool.execute("CREATE TABLE plain_rows (id uuid PRIMARY KEY, owner uuid, cost bigint)")

        async def reserve(wanted: Sequence[ReservationRequest]) -> list[GrantedReservation | InsufficientCredits]:
            return await ledger.reserve(wanted, gateway=_GATEWAY, lease_seconds=90)

        metrics = Metrics("bench")
        recorder = UsageRecorder(requests, Journal(folder / "journal"), metrics.usage_queue_rows, metrics.settle_failures)
        async with recorder.running(), QueryBatching(reserve).running() as batches:

            async def ours(owner: UserId) -> None:
                request = RequestId(uuid4())
                answer = await batches.ask(_wanted(request, owner, _PLENTY))
                assert isinstance(answer, GrantedReservation)
                recorder.reserve()
                pending = recorder.add(_row(request, owner, 300))
                await recorder.written(pending)
                assert pending.written.is_set()

            async def plain(owner: UserId) -> None:
                await pool.execute("INSERT INTO plain_rows VALUES ($1, $2, 300)", uuid4(), owner)

            rates: dict[str, list[float]] = {"50": [], "1": [], "plain": []}
            waits: dict[str, list[float]] = {"50": [], "1": [], "plain": []}
            for _ in range(3):
                for name, one, owners in (("50", ours, tenants), ("plain", plain, tenants), ("1", ours, tenants[:1])):
                    rate, took = await _rate(one, owners, seconds / 3)
                    rates[name].append(rate)
                    waits[name] += took
            with table.part("rates") as rows:
                rows.extend(_rows(rates, waits))
        with table.part("races") as rows:
            wrong = await _races(ledger, rounds)
            books = await ledger.verify(grace_seconds=1000)
            claim = f"of {AT_ONCE} at once with room for 7: rounds of {rounds} that granted another number"
            rows.append(report.alone(claim, wrong, "rounds", at_most=0))
            drift = books.drift_micro + abs(books.sum_micro)
            rows.append(report.alone("drift of the books afterwards", drift, "micro-credits", at_most=0))


def _rows(rates: dict[str, list[float]], waits: dict[str, list[float]]) -> list[report.Row]:
    rows = []
    for what, name, at_least in (("50 tenants", "50", 1000), ("one tenant", "1", 300)):
        claim = f"reserve + settle, {what}"
        rows.append(calls.compare(claim, rates[name], "requests/s", "one committed INSERT", rates["plain"]))
        rows.append(report.alone(claim, statistics.median(rates[name]), "requests/s", at_least=at_least))
    return [
        *rows,
        *(row for name in ("50", "1") for row in calls.latency_rows(f"reserve + settle, {name} tenants, {CLIENTS} at once", waits[name])),
    ]


async def _rate(one: One, owners: list[UserId], seconds: float) -> tuple[float, list[float]]:
    turns = itertools.cycle(owners)
    return await calls.for_seconds(lambda _caller: one(next(turns)), CLIENTS, seconds)


async def _races(ledger: LedgerStore, rounds: int) -> int:
    """Return the number of rounds with a wrong number of grants."""
    wrong = 0
    for _ in range(rounds):
        owner = UserId(uuid4())
        asked = [_wanted(RequestId(uuid4()), owner, MicroCredits(ROOM)) for _ in range(AT_ONCE)]
        # As from several gateways: each in its own statement.
        answers = await asyncio.gather(*(ledger.reserve([one], gateway=_GATEWAY, lease_seconds=90) for one in asked))
        wrong += sum(isinstance(answer, GrantedReservation) for (answer,) in answers) != ROOM // EACH
    return wrong


def _wanted(request: RequestId, owner: UserId, monthly: MicroCredits) -> ReservationRequest:
    return ReservationRequest(
        request_id=request,
        owner=owner,
        key_id=None,
        model=_MODEL,
        price_id=1,
        prompt_tokens=10,
        max_tokens=EACH,
        least_tokens=EACH,
        answers=1,
        fixed_micro=MicroCredits(0),
        micro_per_million=1_000_000,
        monthly_micro=monthly,
        key_budget_micro=None,
    )


def _row(request: RequestId, owner: UserId, cost: int) -> RequestRow:
    return RequestRow(
        id=request,
        user_id=owner,
        api_key_id=None,
        prompt_hash=None,
        model_used=_MODEL,
        response_time_ms=10,
        prompt_tokens=10,
        completion_tokens=290,
        status=RequestStatus.SUCCESS,
        error_code=None,
        created_at=datetime.now(UTC),
        cost_micro=MicroCredits(cost),
        reservation=ReservationState.SETTLED,
    )


if __name__ == "__main__":
    report.run(__doc__, _measure, limits=(600.0, 120.0), seconds=(4.0, 3.0), rounds=(1000, 100))
