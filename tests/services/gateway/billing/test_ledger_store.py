"""The ledger's SQL, on a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg
import msgspec
import pytest

from services.gateway import store
from services.gateway.billing.ledger_store import AlreadyReverted, LedgerStore
from services.gateway.billing.prices import Price
from services.gateway.billing.reservations import (
    NO_PLAN,
    GrantedReservation,
    InsufficientCredits,
    ReservationRequest,
    Spending,
    WorkerClaim,
)
from services.gateway.facts.request_record import RequestRow, ReservationState
from services.gateway.idempotency.idempotency_keys import IdempotentRequest, NewKeyUse, OrphanedKeyUse
from services.gateway.idempotency.idempotency_store import IdempotencyStore
from services.gateway.store import GatewayStore
from shared import errors
from shared.api.auth import Budget
from shared.api.gateway import InferenceRequest
from shared.api.ledger import LedgerReport, ModelPrice
from shared.stores.database_clock import DatabaseClock
from shared.types import KeyId, MicroCredits, ModelName, NodeId, RequestId, RequestStatus, UserId
from tests.stacks import until

MODEL = ModelName("smollm2")
GATEWAY = NodeId("U" + "A" * 55)


#: Without a plan: nothing is included, and the balance may fall this far below zero.
CREDIT = Spending(overage_micro=MicroCredits(3500))


def priced(*, output: int = 1_000_000, fixed: int = 0, weight: int = 1) -> Price:
    """A price by which the prompt is free."""
    return Price(1, ModelPrice(None, MicroCredits(0), MicroCredits(output), request_micro=MicroCredits(fixed), allowance_weight=weight))


class Books:
    """Stores, and helpers to call them."""

    def __init__(self, requests: GatewayStore, ledger: LedgerStore, url: str) -> None:
        self.requests, self.ledger, self.url = requests, ledger, url

    async def reserve(
        self, owner: UserId, *, tokens: int = 500, request: RequestId | None = None, lease: float = 90, **more: object
    ) -> GrantedReservation | InsufficientCredits:
        wanted = self.wanted(owner, request or new_request(), tokens)
        (answer,) = await self.ledger.reserve([msgspec.structs.replace(wanted, **more)], gateway=GATEWAY, lease_seconds=lease)  # type: ignore[arg-type]
        return answer

    @staticmethod
    def wanted(owner: UserId, request: RequestId, tokens: int = 500) -> ReservationRequest:
        return ReservationRequest(
            request_id=request, owner=owner, key_id=None, model=MODEL, price=priced(), allowance_weight=1, prompt_tokens=10,
            max_tokens=tokens, least_tokens=tokens, answers=1, seconds=0, spending=CREDIT,
        )  # fmt: skip

    async def settle(self, owner: UserId, *costs: tuple[RequestId, int], key: KeyId | None = None) -> None:
        await self.requests.write_requests([row(owner, request, cost, key) for request, cost in costs])

    async def account(self, owner: UserId) -> tuple[int, int]:
        """Return the balance, and what is reserved."""
        found = await self.ledger.read_account(owner, CREDIT)
        return found.balance_micro, found.reserved_micro

    async def report(self) -> LedgerReport:
        return await self.ledger.verify(grace_seconds=60)

    async def execute(self, sql: str, *args: object) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute("SET aimesh.tenant TO '*'")
            await connection.execute(f"SET search_path TO gateway; {sql}") if not args else await connection.execute(sql, *args)
        finally:
            await connection.close()

    async def log(self, owner: UserId) -> list[tuple[object, ...]]:
        connection = await asyncpg.connect(self.url, server_settings={"search_path": "gateway", "aimesh.tenant": str(owner)})
        try:
            columns = "id, status, error_code, cost_micro"
            return [tuple(row) for row in await connection.fetch(f"SELECT {columns} FROM request_logs ORDER BY cost_micro")]
        finally:
            await connection.close()

    async def count(self, table: str, tenant: str) -> int:
        """Return the number of rows that are visible with the service's password and this tenant."""
        connection = await asyncpg.connect(self.url, server_settings={"search_path": "gateway", "aimesh.tenant": tenant})
        try:
            return int(await connection.fetchval(f"SELECT count(*) FROM {table}"))
        finally:
            await connection.close()


def row(owner: UserId, request: RequestId, cost: int, key: KeyId | None = None) -> RequestRow:
    return RequestRow(
        id=request, user_id=owner, api_key_id=key, prompt_hash=None, model_used=MODEL, response_time_ms=1, prompt_tokens=1,
        completion_tokens=1, status=RequestStatus.SUCCESS, error_code=None, created_at=datetime.now(UTC), cost_micro=MicroCredits(cost),
        reservation=ReservationState.SETTLED if cost else ReservationState.RELEASED,
    )  # fmt: skip


def new_owner() -> UserId:
    return UserId(uuid4())


def new_request() -> RequestId:
    return RequestId(uuid4())


@pytest.fixture
async def books(plain_url: str) -> AsyncIterator[Books]:
    """Stores with a role that row-level security applies to."""
    async with store.opened(plain_url) as opened:
        ledger = LedgerStore(opened)
        await ledger.ensure_default_price(100_000_000, 200_000_000)
        yield Books(GatewayStore(opened), ledger, plain_url)


async def test_exactly_as_many_of_64_concurrent_reservations_as_fit_are_granted(books: Books) -> None:
    for _ in range(20):
        ada = new_owner()
        answers = await asyncio.gather(*(books.reserve(ada) for _ in range(64)))
        assert sum(isinstance(answer, GrantedReservation) for answer in answers) == 7
        assert await books.account(ada) == (0, 3500)
    report = await books.report()
    assert (report.findings, report.open_reservations, report.sum_micro) == ((), 140, 0)


async def test_a_settled_request_is_charged_once_however_often_it_is_settled(books: Books) -> None:
    ada, request = new_owner(), new_request()
    assert await books.reserve(ada, request=request) == GrantedReservation(500)
    await asyncio.gather(*(books.settle(ada, (request, 300)) for _ in range(16)))
    assert await books.account(ada) == (-300, 0)
    # An ended reservation stays ended, and its request can't be reserved again.
    await books.settle(ada, (request, 500))
    assert await books.reserve(ada, request=request) == GrantedReservation(500, is_repeated=True)
    assert await books.account(ada) == (-300, 0)
    usage = await books.requests.read_usage(ada)
    assert (usage.request_count, usage.cost_micro) == (1, 300)
    assert (await books.report()).findings == ()


async def test_duplicate_reservations_reserve_once(books: Books) -> None:
    ada, request = new_owner(), new_request()
    answers = await asyncio.gather(*(books.reserve(ada, request=request) for _ in range(16)))
    assert sorted(answer.is_repeated for answer in answers if isinstance(answer, GrantedReservation)) == [False] + 15 * [True]
    assert await books.account(ada) == (0, 500)


async def test_a_batch_is_answered_in_order_with_one_reservation_each(books: Books) -> None:
    owners = [new_owner() for _ in range(5)]
    # Each owner has room for 7; the first request is sent twice.
    wanted = [books.wanted(owners[number % 5], new_request()) for number in range(50)]
    answers = await books.ledger.reserve([*wanted, wanted[0]], gateway=GATEWAY, lease_seconds=90)
    for owner in owners:
        mine = [answer for one, answer in zip(wanted, answers, strict=False) if one.owner == owner]
        assert sum(isinstance(answer, GrantedReservation) for answer in mine) == 7
        assert await books.account(owner) == (0, 3500)
    assert (await books.report()).findings == ()


async def test_a_charge_never_exceeds_its_reservation(books: Books) -> None:
    ada, request = new_owner(), new_request()
    await books.reserve(ada, request=request)
    await books.settle(ada, (request, 10_000), (new_request(), 10_000))
    assert await books.account(ada) == (-500, 0)
    await books.reserve(ada, request=(alone := new_request()))
    await books.settle(ada, (alone, 10_000))
    assert await books.account(ada) == (-1000, 0)
    assert (await books.report()).findings == ()


async def test_a_reservation_is_reduced_to_the_balance_but_not_below_the_minimum(books: Books) -> None:
    ada = new_owner()
    assert await books.reserve(ada, tokens=5000, least_tokens=16, price=priced(fixed=500)) == GrantedReservation(3000)
    assert await books.account(ada) == (0, 3500)
    assert await books.reserve(ada, tokens=16) == InsufficientCredits(0)
    bob = new_owner()
    # 4 answers of 875 tokens, and 3 credits that are too few for a token of each.
    more = msgspec.structs.replace(CREDIT, overage_micro=MicroCredits(3503))
    assert await books.reserve(bob, tokens=1000, least_tokens=1, answers=4, spending=more) == GrantedReservation(875)
    assert await books.account(bob) == (0, 3500)
    assert await books.reserve(new_owner(), tokens=5000, least_tokens=3500) == GrantedReservation(3500)
    eve = new_owner()
    assert await books.reserve(eve, tokens=5000, least_tokens=3001, price=priced(fixed=500)) == InsufficientCredits(3500)
    assert await books.reserve(eve, price=priced(fixed=3501, output=0)) == InsufficientCredits(3500)
    assert await books.account(eve) == (0, 0)
    assert (await books.report()).findings == ()


async def test_a_key_spends_no_more_than_its_budget(books: Books) -> None:
    ada, key = new_owner(), KeyId(uuid4())
    budget = {"key_id": key, "spending": msgspec.structs.replace(CREDIT, key_budget=Budget(MicroCredits(1000)))}
    requests = [new_request() for _ in range(30)]
    answers = await asyncio.gather(*(books.reserve(ada, request=one, tokens=100, **budget) for one in requests))
    granted = [request for request, answer in zip(requests, answers, strict=True) if isinstance(answer, GrantedReservation)]
    assert len(granted) == 10
    assert answers[-1] == InsufficientCredits(0, "key")
    await books.settle(ada, *((request, 50) for request in granted), key=key)
    assert await books.account(ada) == (-500, 0)
    assert sum([isinstance(await books.reserve(ada, tokens=100, **budget), GrantedReservation) for _ in range(10)]) == 5
    # The key's budget doesn't limit the user's other requests.
    assert await books.reserve(ada, tokens=2500) == GrantedReservation(2500)
    # A refund can be spent with the key again.
    assert await books.ledger.read_key_spending(ada, key) == (500, 500)
    assert await books.ledger.revert(granted[0], "the answer was nonsense") == ada
    assert await books.ledger.read_key_spending(ada, key) == (450, 500)
    assert (await books.report()).findings == ()


async def test_without_money_no_account_is_refused(books: Books) -> None:
    ada, request = new_owner(), new_request()
    assert await books.reserve(ada, request=request, tokens=1_000_000, spending=NO_PLAN) == GrantedReservation(1_000_000)
    await books.settle(ada, (request, 999_999))
    assert await books.account(ada) == (-999_999, 0)
    assert await books.reserve(ada, tokens=1_000_000, spending=NO_PLAN) == GrantedReservation(1_000_000)
    assert (await books.report()).findings == ()


async def test_top_ups_and_refunds_happen_once(books: Books) -> None:
    ada, request, transfer = new_owner(), new_request(), new_request()
    prepaid = Spending(overage_micro=MicroCredits(0))
    assert await books.ledger.top_up(transfer, ada, MicroCredits(100), "", prepaid)
    assert not await books.ledger.top_up(transfer, ada, MicroCredits(100), "", prepaid)
    assert await books.reserve(ada, tokens=101, spending=prepaid) == InsufficientCredits(100)
    assert await books.reserve(ada, request=request, tokens=80, spending=prepaid) == GrantedReservation(80)
    assert await books.ledger.revert(request, "still open") is None
    await books.settle(ada, (request, 80))
    assert await books.account(ada) == (20, 0)
    assert await books.ledger.revert(request, "the answer was nonsense") == ada
    with pytest.raises(AlreadyReverted):
        await books.ledger.revert(request, "again")
    assert await books.ledger.revert(new_request(), "never was") is None
    assert await books.account(ada) == (100, 0)
    assert (await books.report()).findings == ()


async def test_a_transfer_belongs_to_one_account_and_amount(books: Books) -> None:
    ada, bob, transfer = new_owner(), new_owner(), new_request()
    done = await asyncio.gather(*(books.ledger.top_up(transfer, ada, MicroCredits(100), "", CREDIT) for _ in range(5)))
    assert sorted(done) == [False] * 4 + [True]
    for owner, amount in ((bob, 100), (ada, 99), (ada, -100)):
        with pytest.raises(errors.IdempotencyConflict, match=f"the transfer {transfer} was made for another account or amount"):
            await books.ledger.top_up(transfer, owner, MicroCredits(amount), "", CREDIT)
    assert (await books.account(ada), await books.account(bob)) == ((100, 0), (0, 0))


async def test_entries_cannot_be_changed(books: Books) -> None:
    await books.ledger.top_up(new_request(), new_owner(), MicroCredits(100), "", CREDIT)
    for statement in ("UPDATE entries SET amount_micro = 1", "DELETE FROM entries", "TRUNCATE entries"):
        with pytest.raises(asyncpg.RaiseError, match="never changed"):
            await books.execute(statement)


async def test_verify_finds_errors(books: Books) -> None:
    ada, request = new_owner(), new_request()
    await books.reserve(ada, request=request)
    await books.settle(ada, (request, 10))
    await books.reserve(ada, lease=-100)
    assert (await books.report()).findings == ("1 open reservations belong to lost gateways",)
    await books.execute("UPDATE accounts SET balance_micro = balance_micro - 3, reserved_micro = reserved_micro + 2")
    await books.execute("UPDATE reservations SET settled_micro = 9 WHERE state = 'settled'")
    report = await books.report()
    assert (report.drift_micro, report.reserved_drift_micro, report.sum_micro, len(report.findings)) == (3, 2, 0, 4)
    columns, one = "transfer, kind, account, owner, amount_micro", "gen_random_uuid(), 'grant', 'grants', gen_random_uuid(), 7"
    await books.execute(f"INSERT INTO entries ({columns}) VALUES ({one})")
    assert (await books.report()).sum_micro == 7


async def test_expired_leases_are_listed_after_the_grace_period_unless_extended(books: Books) -> None:
    ada, expired, alive = new_owner(), new_request(), new_request()
    await books.reserve(ada, request=expired, lease=-40, tokens=7, answers=2)
    await books.reserve(ada, request=alive, lease=-40)
    await books.ledger.extend_leases([alive], 90)
    (found,) = await books.ledger.list_overdue(grace_seconds=30, most=100)
    assert (found.request_id, found.owner, found.prompt_tokens, found.completion_tokens) == (expired, ada, 10, 14)
    assert await books.ledger.list_overdue(grace_seconds=60, most=100) == ()


async def test_extending_leases_does_not_wait_for_settlements_in_progress(books: Books) -> None:
    # If it waited, a settlement that has locked one row and needs another would deadlock.
    ada, settling, running = new_owner(), new_request(), new_request()
    for request in (settling, running):
        await books.reserve(ada, request=request, lease=-40)
    connection = await asyncpg.connect(books.url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})
    async with connection.transaction():
        await connection.execute("SELECT FROM reservations WHERE request_id = $1 FOR UPDATE", settling)
        await books.ledger.extend_leases([settling, running], 90)
        (found,) = await books.ledger.list_overdue(grace_seconds=30, most=100)
    await connection.close()
    assert found.request_id == settling


async def test_a_takeover_committed_while_the_row_is_written_is_seen(books: Books) -> None:
    owner, request = new_owner(), new_request()
    await books.reserve(owner, request=request)
    connection = await asyncpg.connect(books.url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})

    async def it_waits() -> bool:
        return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"))

    async with asyncio.TaskGroup() as tasks, connection.transaction():
        await connection.fetchval("SELECT settle($1, 0, 0, 'expired')", request)
        tasks.create_task(books.settle(owner, (request, 400)))
        await until(it_waits, seconds=10, what="the row waits for the account")
    await connection.close()
    # The gateway that took the request over writes its row.
    assert await books.log(owner) == []


@pytest.mark.parametrize("together", [1, 2], ids=["one alone", "a batch"])
async def test_concurrent_settlements_are_charged_one_after_the_other(books: Books, together: int) -> None:
    """Both charge one account whose period is over: the second settlement must see that the first has ended it."""
    ada, first, *others = new_owner(), *(new_request() for _ in range(1 + together))
    plan = Spending(1000, MicroCredits(3500), has_plan=True)
    for request in (first, *others):
        await books.reserve(ada, request=request, tokens=990, spending=plan)
    await books.execute("UPDATE accounts SET anchor = anchor - interval '40 d', period_end = now()")
    connection = await asyncpg.connect(books.url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})

    async def it_waits() -> bool:
        return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"))

    async with asyncio.TaskGroup() as tasks, connection.transaction():
        assert await connection.fetchval("SELECT settle($1, 0, 1000, 'settled')", first) == 0
        tasks.create_task(books.settle(ada, *((request, 400) for request in others)))
        await until(it_waits, seconds=10, what="the second waits for the account")
    await connection.close()
    assert await books.account(ada) == (-400 * together, 0)
    # Both count in the new period; the tokens of the old one expired once.
    allowance = (await books.ledger.read_account(ada, plan)).allowance
    assert allowance is not None
    assert (allowance.used, allowance.held) == (1000, 0)
    assert (await books.report()).findings == ()


async def test_a_concurrent_second_settlement_charges_nothing(books: Books) -> None:
    ada, request = new_owner(), new_request()
    await books.reserve(ada, request=request)
    connection = await asyncpg.connect(books.url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})

    async def it_waits() -> bool:
        return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"))

    async with asyncio.TaskGroup() as tasks, connection.transaction():
        assert await connection.fetchval("SELECT settle($1, 300, 0, 'settled')", request) == 300
        tasks.create_task(books.settle(ada, (request, 400)))
        await until(it_waits, seconds=10, what="the second waits for the account")
    await connection.close()
    assert await books.account(ada) == (-300, 0)
    assert (await books.report()).findings == ()


async def test_a_day_of_usage_is_a_utc_day_in_any_session_time_zone(plain_url: str) -> None:
    ada, today = new_owner(), datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    late = today - timedelta(minutes=30)
    async with store.opened(f"{plain_url}{'&' if '?' in plain_url else '?'}TimeZone=Asia/Tokyo") as opened:
        books = Books(GatewayStore(opened), LedgerStore(opened), plain_url)
        await books.requests.write_requests([msgspec.structs.replace(row(ada, new_request(), 0), created_at=late)])
        usage = await books.requests.read_usage(ada)
    assert [day.date for day in usage.days] == [late.date()]


async def test_the_clock_of_the_rows_is_postgresqls(books: Books) -> None:
    clock = DatabaseClock(books.ledger.read_clock)
    await clock.refresh()
    assert abs(clock.now() - await books.ledger.read_clock()) < timedelta(minutes=1)


async def test_the_newest_price_applies_and_older_ones_are_kept(books: Books) -> None:
    await books.ledger.ensure_default_price(1, 1)
    for output in (5, 6):
        await books.ledger.add_price(ModelPrice(MODEL, MicroCredits(4), MicroCredits(output)))
    held = {price.price.model: price.price.output_micro_per_million for price in await books.ledger.list_prices()}
    assert held == {None: 200_000_000, MODEL: 6}
    history = await books.ledger.list_prices(history=True)
    assert [price.price.output_micro_per_million for price in history] == [6, 5, 200_000_000]
    assert await books.ledger.find_price(history[1].id) == history[1]


async def test_the_gateway_that_takes_over_a_request_charges_for_it(plain_url: str) -> None:
    async with store.opened(plain_url) as opened:
        books = Books(GatewayStore(opened), LedgerStore(opened), plain_url)
        keys = IdempotencyStore(opened)
        await books.ledger.ensure_default_price(1, 1)
        ada, first, second = new_owner(), new_request(), new_request()
        keyed_request = IdempotentRequest(owner=ada, key="k", request=InferenceRequest(prompt="hi"), request_id=first, seed=7)
        assert await keys.claim(keyed_request, b"f" * 32, GATEWAY, lease_seconds=90) == NewKeyUse(7)
        await books.reserve(ada, request=first)
        again = replace(keyed_request, request_id=second)
        assert await keys.claim(again, b"f" * 32, GATEWAY, lease_seconds=90) is None
        assert await books.account(ada) == (0, 500)
        await books.ledger.record_claims([WorkerClaim(first, NodeId("worker"), 0, ModelName("next"), 1, None)])
        assert await keys.claim(again, b"f" * 32, GATEWAY, lease_seconds=90, dead=first) == OrphanedKeyUse(7, ModelName("next"))
        assert await books.account(ada) == (0, 0)
        third = replace(keyed_request, request_id=new_request())
        assert await keys.claim(third, b"f" * 32, GATEWAY, lease_seconds=90, dead=second) == OrphanedKeyUse(7), "no worker had begun it"
        assert await keys.claim(again, b"f" * 32, GATEWAY, lease_seconds=90, dead=third.request_id) == OrphanedKeyUse(7)
        await books.reserve(ada, request=second)
        # The first gateway is still alive, and reports what it delivered.
        await books.settle(ada, (first, 400), (second, 300))
        assert await books.account(ada) == (-300, 0)
        assert await books.log(ada) == [(second, "success", None, 300)]
        assert (await books.report()).findings == ()


async def test_a_bound_tenant_cannot_read_other_tenants_rows(plain_url: str) -> None:
    """A bug in our own code may pass the rightful tenant's arguments; without a tenant, nothing is visible."""
    ada, bob, request, key = new_owner(), new_owner(), new_request(), KeyId(uuid4())
    async with store.opened(plain_url) as opened:
        books, keys = Books(GatewayStore(opened), LedgerStore(opened), plain_url), IdempotencyStore(opened)
        await books.ledger.ensure_default_price(100_000_000, 200_000_000)
        budget = msgspec.structs.replace(CREDIT, key_budget=Budget(MicroCredits(5000)))
        assert await books.reserve(bob, request=request, key_id=key, spending=budget) == GrantedReservation(500)
        keyed_request = IdempotentRequest(owner=bob, key="once", request=InferenceRequest(prompt="hi"), request_id=request, seed=7)
        assert await keys.claim(keyed_request, b"f" * 32, GATEWAY, lease_seconds=60) == NewKeyUse(7)
        async with opened.bound(ada) as transaction:
            assert await transaction.row("read_key_spending", key) is None
            assert await transaction.row("find_key", bob, "once") is None
            assert await transaction.rows("list_overdue", -3600, 10) == []
            for statement in ("free_key", "abandon_key"):
                assert await transaction.run(statement, request) == 0
        for tenant, rows in ((str(bob), 1), (str(ada), 0), ("", 0), ("*", 1)):
            for table in ("accounts", "key_spending", "reservations", "idempotency_keys"):
                assert await books.count(table, tenant) == rows, (tenant, table)
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
            async with opened.bound(ada) as transaction:
                await transaction.row("read_account", bob, 0, False, None)
        assert await books.ledger.read_key_spending(bob, key) == (0, 500)
        await books.settle(bob, (request, 300), key=key)
        assert [await books.count("entries", tenant) for tenant in (str(bob), str(ada), "")] == [2, 0, 0]
        assert (await books.report()).findings == ()


async def test_a_gateway_starts_beside_a_read_only_database(postgres_url: str) -> None:
    async with store.opened(postgres_url) as opened:
        await LedgerStore(opened).ensure_default_price(1, 1)
    connection = await asyncpg.connect(postgres_url)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    await connection.close()
    async with store.opened(postgres_url) as opened:
        ledger = LedgerStore(opened)
        await ledger.ensure_default_price(1, 1)
        assert len(await ledger.list_prices()) == 1


async def test_functions_of_each_request_keep_their_plans(books: Books) -> None:
    """CREATE OR REPLACE drops the setting, and then each call plans its statements on partitioned tables again."""
    connection = await asyncpg.connect(books.url)
    try:
        keep_plans = "SELECT proname FROM pg_proc WHERE 'plan_cache_mode=force_generic_plan' = ANY (proconfig)"
        kept = {"reserve", "settle", "reserve_batch", "settle_batch", "extend_hold", "hold_targets", "spend_targets"}
        assert kept == {row["proname"] for row in await connection.fetch(keep_plans)}
    finally:
        await connection.close()
