"""Holds that grow while a request runs, on a real PostgreSQL. An output token costs 1 micro-credit; an account may owe 3,500."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

import asyncpg
import msgspec
import pytest

from services.gateway import store
from services.gateway.billing import orphan_settlement
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.billing.reservations import NO_PLAN, ExtendedHold, GrantedReservation, HoldExtension, Spending
from services.gateway.facts.upstream_prices import TargetHold
from services.gateway.store import GatewayStore
from shared.api.auth import Budget
from shared.api.generation import Usage
from shared.api.inference import Receipt
from shared.types import KeyId, MicroCredits, RequestId, UserId
from tests.services.gateway.billing.test_ledger_store import CREDIT, MODEL, Books, new_owner, new_request, priced, row
from tests.stacks import until


@pytest.fixture
async def books(plain_url: str) -> AsyncIterator[Books]:
    async with store.opened(plain_url) as opened:
        ledger = LedgerStore(opened)
        await ledger.ensure_default_price(100_000_000, 200_000_000)
        yield Books(GatewayStore(opened), ledger, plain_url)


async def extend(books: Books, owner: UserId, request: RequestId, tokens: int, **more: object) -> ExtendedHold:
    fields: dict[str, object] = {"least_more": 16, "answers": 1, "price": priced(), "spending": CREDIT}
    extension = HoldExtension(request_id=request, owner=owner, max_tokens=tokens, **(fields | more))  # type: ignore[arg-type]
    (answer,) = await books.ledger.extend_holds([extension])
    return answer


async def test_a_hold_grows_by_what_the_credits_cover_and_is_settled_as_a_whole(books: Books) -> None:
    ada, request = new_owner(), new_request()
    await books.reserve(ada, request=request)
    assert await extend(books, ada, request, 1000) == ExtendedHold(1000)
    assert await extend(books, ada, request, 1000) == ExtendedHold(1000), "repeated"
    assert await extend(books, ada, request, 800) == ExtendedHold(1000), "a late retry"
    assert await books.account(ada) == (0, 1000)
    assert await extend(books, ada, request, 5000) == ExtendedHold(3500)
    assert await extend(books, ada, request, 5000) == ExtendedHold(3500), "nothing is left"
    assert (await books.report()).findings == ()
    await books.settle(ada, (request, 3200))
    assert await books.account(ada) == (-3200, 0)
    assert await extend(books, ada, request, 9000) == ExtendedHold(None), "ended"
    assert await books.account(ada) == (-3200, 0)
    assert (await books.report()).findings == ()


async def test_a_raise_below_the_minimum_changes_nothing(books: Books) -> None:
    ada, request = new_owner(), new_request()
    await books.reserve(ada, request=request, tokens=3490, least_tokens=1)
    assert await extend(books, ada, request, 5000) == ExtendedHold(3490)
    assert await extend(books, ada, request, 5000, least_more=1) == ExtendedHold(3500)
    assert await books.account(ada) == (0, 3500)


async def test_several_answers_and_a_free_model(books: Books) -> None:
    ada, request = new_owner(), new_request()
    await books.reserve(ada, request=request, tokens=100, answers=4)
    assert await extend(books, ada, request, 5000, answers=4) == ExtendedHold(875)
    assert await extend(books, ada, request, 32_768, answers=4, price=priced(output=0)) == ExtendedHold(32_768)
    assert await extend(books, ada, request, 40_000, answers=4, spending=NO_PLAN) == ExtendedHold(40_000), "no limit"
    assert (await books.report()).findings == ()


async def test_a_key_does_not_extend_beyond_its_budget(books: Books) -> None:
    ada, request, key = new_owner(), new_request(), KeyId(uuid4())
    budget = msgspec.structs.replace(CREDIT, key_budget=Budget(MicroCredits(1000)))
    await books.reserve(ada, request=request, tokens=400, key_id=key, spending=budget)
    assert await extend(books, ada, request, 2000, spending=budget) == ExtendedHold(1000)
    assert await books.ledger.read_key_spending(ada, key) == (0, 1000)
    await books.settle(ada, (request, 900), key=key)
    assert await books.ledger.read_key_spending(ada, key) == (900, 0)
    assert (await books.report()).findings == ()


async def test_nothing_is_extended_beyond_the_owners_budget(books: Books) -> None:
    ada, request = new_owner(), new_request()
    budget = msgspec.structs.replace(NO_PLAN, owner_budget=Budget(MicroCredits(1000), "month"))
    await books.reserve(ada, request=request, tokens=400, spending=budget)
    assert await extend(books, ada, request, 2000, spending=budget) == ExtendedHold(1000)
    assert (await books.report()).findings == ()


async def test_a_hold_grows_by_tokens_of_the_plan_first(books: Books) -> None:
    ada, request = new_owner(), new_request()
    plan = Spending(1000, MicroCredits(500), has_plan=True)
    assert await books.reserve(ada, request=request, tokens=400, spending=plan) == GrantedReservation(400, plan_tokens=410)
    assert await extend(books, ada, request, 900, spending=plan) == ExtendedHold(900, plan_tokens=910)
    assert await books.account(ada) == (0, 0)
    # 90 more of the plan, and 500 for money.
    for _ in range(2):
        assert await extend(books, ada, request, 2000, spending=plan) == ExtendedHold(1490, plan_tokens=1000)
    assert await books.account(ada) == (0, 500)
    cost, covered = priced().settle(Usage(10, 1100), 0, 1000)
    await books.requests.write_requests([msgspec.structs.replace(row(ada, request, cost), covered_tokens=covered)])
    assert await books.account(ada) == (-110, 0)
    allowance = (await books.ledger.read_account(ada, plan)).allowance
    assert allowance is not None
    assert (allowance.used, allowance.held) == (1000, 0)
    assert (await books.report()).findings == ()


async def test_a_hold_grows_three_times_as_fast_on_a_model_of_that_weight(books: Books) -> None:
    ada, request, price = new_owner(), new_request(), priced(weight=3)
    plan = Spending(1000, MicroCredits(0), has_plan=True)
    reserved = await books.reserve(ada, request=request, tokens=100, spending=plan, price=price, allowance_weight=3)
    assert reserved == GrantedReservation(100, plan_tokens=330)
    assert await extend(books, ada, request, 900, spending=plan, price=price) == ExtendedHold(323, plan_tokens=999)
    assert (await books.report()).findings == ()


async def test_three_gateways_at_one_small_balance_never_overspend(plain_url: str, books: Books) -> None:
    ada, requests = new_owner(), [new_request() for _ in range(12)]
    async with store.opened(plain_url) as second, store.opened(plain_url) as third:
        gateways = [books, *(Books(GatewayStore(opened), LedgerStore(opened), plain_url) for opened in (second, third))]
        for request in requests:
            await books.reserve(ada, tokens=100, request=request)
        held = dict.fromkeys(requests, 100)
        for total in range(400, 2800, 300):
            answers = await asyncio.gather(*(extend(gateways[number % 3], ada, request, total) for number, request in enumerate(requests)))
            held = {request: answer.max_tokens or 0 for request, answer in zip(requests, answers, strict=True)}
        assert sum(held.values()) == 3500
        assert await books.account(ada) == (0, 3500)
        await asyncio.gather(
            *(gateways[number % 3].settle(ada, (request, held[request])) for number, request in enumerate(requests)),
        )
    assert await books.account(ada) == (-3500, 0)
    assert (await books.report()).findings == ()


async def test_a_raise_that_commits_while_the_request_is_settled_is_released_too(books: Books) -> None:
    """The settlement once read the hold before it waited for the account, so the raise stayed reserved forever."""
    ada, request = new_owner(), new_request()
    await books.reserve(ada, request=request)
    blocker, watcher = await asyncpg.connect(books.url), await asyncpg.connect(books.url)

    async def waiting(number: int) -> None:
        waits = "SELECT count(*) = $1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        await until(lambda: watcher.fetchval(waits, number))

    try:
        async with blocker.transaction():
            await blocker.execute("SELECT set_config('aimesh.tenant', '*', true)")
            await blocker.execute("SELECT FROM gateway.accounts WHERE owner = $1 FOR UPDATE", ada)
            raised = asyncio.create_task(extend(books, ada, request, 1000))
            await waiting(1)
            settled = asyncio.create_task(books.settle(ada, (request, 900)))
            await waiting(2)
        assert await raised == ExtendedHold(1000)
        await settled
    finally:
        await blocker.close()
        await watcher.close()
    assert await books.account(ada) == (-900, 0), "all that was held, the raise included"
    assert (await books.report()).findings == ()


async def test_a_target_with_a_ceiling_is_held_in_all_it_may_cost(books: Books) -> None:
    ada, request, route = new_owner(), new_request(), f"route-{uuid4()}"

    def hold(micro: int) -> TargetHold:
        return TargetHold(route, "paid", MODEL, MicroCredits(micro), MicroCredits(1000))

    async def held() -> int:
        connection = await asyncpg.connect(books.url)
        try:
            return int(await connection.fetchval("SELECT reserved_micro FROM gateway.target_spending WHERE route = $1", route))
        finally:
            await connection.close()

    await books.reserve(ada, request=request, holds=(hold(400),))
    for _ in range(2):
        assert await extend(books, ada, request, 1000, target=hold(900)) == ExtendedHold(1000)
        assert await held() == 900
    assert await extend(books, ada, request, 1500, target=hold(1001)) == ExtendedHold(1500, is_over_ceiling=True)
    assert await held() == 900
    assert (await books.report()).findings == ()
    await books.settle(ada, (request, 700))
    assert await held() == 0
    assert await extend(books, ada, request, 1500, target=hold(950)) == ExtendedHold(None)
    assert (await held(), (await books.report()).findings) == (0, ())


async def test_receipts_of_a_lost_gateway_bill_up_to_what_it_had_extended(books: Books) -> None:
    ada, request, another = new_owner(), new_request(), new_request()
    for each in (request, another):
        granted = await books.reserve(ada, tokens=500, request=each, lease=-100)
        assert granted == GrantedReservation(500)
    await extend(books, ada, request, 1000)
    rows = []
    for reservation in await books.ledger.list_overdue(grace_seconds=1, most=10_000):
        if reservation.owner == ada:
            receipt = Receipt(reservation.request_id, 10, 0, 1200, "cancelled", datetime.now(UTC), 1.0, credited_tokens=1200)
            rows.append(orphan_settlement.build_row(reservation, priced(), receipt, most_seconds=60, now=datetime.now(UTC)))
    await books.requests.write_requests([row for row in rows if row is not None])
    assert {row.id: row.completion_tokens for row in rows if row is not None} == {request: 1000, another: 500}
    assert await books.account(ada) == (-1500, 0)
    assert (await books.report()).findings == ()
