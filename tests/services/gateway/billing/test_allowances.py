"""The tokens of plans, the periods in which they renew, and budgets that renew; on a real PostgreSQL.

A token of the prompt costs 1 micro-credit here, and one of the answer 2.
"""

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import pytest

from services.gateway import store
from services.gateway.billing.prices import Price
from services.gateway.billing.reservations import GrantedReservation, InsufficientCredits, Spending
from shared.api.auth import Budget, Every
from shared.api.generation import Usage
from shared.api.ledger import ModelPrice
from shared.stores import migrations
from shared.types import KeyId, MicroCredits, RequestId, UserId
from tests.services.gateway.billing.test_ledger_store import GATEWAY, Books, books, new_owner, new_request, row

__all__ = ["books"]

INCLUDED, OVERAGE = 1000, 3500
PLAN = Spending(INCLUDED, MicroCredits(OVERAGE), has_plan=True)


def price_of(weight: int = 1) -> Price:
    return Price(1, ModelPrice(None, MicroCredits(1_000_000), MicroCredits(2_000_000), allowance_weight=weight))


async def reserve(
    books: Books, owner: UserId, prompt: int, answer: int, *, weight: int = 1, request: RequestId | None = None, **more: Any
) -> tuple[RequestId, GrantedReservation | InsufficientCredits]:
    wanted = books.wanted(owner, request or new_request(), answer)
    fields = {"prompt_tokens": prompt, "price": price_of(weight), "allowance_weight": weight, "spending": PLAN, **more}
    (granted,) = await books.ledger.reserve([msgspec.structs.replace(wanted, **fields)], gateway=GATEWAY, lease_seconds=90)
    return wanted.request_id, granted


async def settle(books: Books, owner: UserId, request: RequestId, prompt: int, answer: int, *, held: int, weight: int = 1) -> int:
    """Settle with the gateway's own sums; return the cost. ``held``: tokens of the plan."""
    cost, covered = price_of(weight).settle(Usage(prompt, answer), 0, held)
    await books.requests.write_requests([msgspec.structs.replace(row(owner, request, cost), covered_tokens=covered)])
    return cost


async def use(books: Books, owner: UserId, prompt: int, answer: int, *, weight: int = 1, **more: Any) -> RequestId:
    """Run a request that uses all that it reserves."""
    request, granted = await reserve(books, owner, prompt, answer, weight=weight, **more)
    assert isinstance(granted, GrantedReservation)
    assert granted.max_tokens == answer
    await settle(books, owner, request, prompt, answer, held=granted.plan_tokens, weight=weight)
    return request


async def tokens(books: Books, owner: UserId, spending: Spending = PLAN) -> tuple[int | None, int, int]:
    """Return what is included, used and held."""
    allowance = (await books.ledger.read_account(owner, spending)).allowance
    assert allowance is not None
    return allowance.included, allowance.used, allowance.held


async def fetch(books: Books, sql: str, *args: object, zone: str = "UTC") -> list[Any]:
    settings = {"search_path": "gateway", "aimesh.tenant": "*", "TimeZone": zone}
    connection = await asyncpg.connect(books.url, server_settings=settings)
    try:
        return [tuple(row) for row in await connection.fetch(sql, *args)]
    finally:
        await connection.close()


async def entries(books: Books, *kinds: str) -> list[Any]:
    columns = "kind, account, amount_micro, amount_tokens"
    return await fetch(books, f"SELECT {columns} FROM entries WHERE kind = ANY ($1) ORDER BY id", list(kinds))


async def pass_period(books: Books) -> None:
    """All periods end."""
    await books.execute(
        "UPDATE accounts SET anchor = anchor - interval '40 d', period_start = period_start - interval '40 d', period_end = now()"
    )


async def test_tokens_of_the_plan_are_used_first_and_the_prompt_first(books: Books) -> None:
    ada = new_owner()
    request, granted = await reserve(books, ada, 800, 500)
    # 800 of the prompt and 200 of the answer; 300 of the answer cost money.
    assert granted == GrantedReservation(500, plan_tokens=1000)
    assert (await tokens(books, ada), await books.account(ada)) == ((INCLUDED, 0, 1000), (0, 600))
    assert await settle(books, ada, request, 800, 400, held=1000) == 400
    assert (await tokens(books, ada), await books.account(ada)) == ((INCLUDED, 1000, 0), (-400, 0))
    assert await entries(books, "usage") == [
        ("usage", "balance", -400, None),
        ("usage", "revenue", 400, None),
        ("usage", "allowance", None, -1000),
        ("usage", "served", None, 1000),
    ]
    assert (await books.report()).findings == ()


@pytest.mark.parametrize("count", [1, 3])
async def test_an_account_that_owes_more_than_its_plan_allows_may_not_even_use_its_tokens(books: Books, count: int) -> None:
    """A refund or a dispute took credits back that were used."""

    async def ask(spending: Spending, weight: int = 1) -> set[GrantedReservation | InsufficientCredits]:
        wanted = [books.wanted(ada, new_request(), 10) for _ in range(count)]
        fields: Any = {"prompt_tokens": 10, "price": price_of(weight), "allowance_weight": weight, "spending": spending}
        asked = [msgspec.structs.replace(one, **fields) for one in wanted]
        return set(await books.ledger.reserve(asked, gateway=GATEWAY, lease_seconds=90))

    ada = new_owner()
    await use(books, ada, 10, 10)
    await books.ledger.top_up(new_request(), ada, MicroCredits(-OVERAGE), "all that the plan allows", PLAN)
    assert await ask(PLAN) == {GrantedReservation(10, plan_tokens=20)}
    before = await tokens(books, ada), await books.account(ada)
    await books.ledger.top_up(new_request(), ada, MicroCredits(-1), "one more", PLAN)
    assert await ask(PLAN) == await ask(PLAN, 0) == {InsufficientCredits(-1, "debt")}
    assert (await tokens(books, ada), await books.account(ada)) == (before[0], (-OVERAGE - 1, 0)), "nothing is held"
    unlimited = msgspec.structs.replace(PLAN, overage_micro=None)
    assert await ask(unlimited) == {GrantedReservation(10, plan_tokens=20)}
    # With MONEY=off.
    assert await ask(Spending()) == {GrantedReservation(10)}
    await books.ledger.top_up(new_request(), ada, MicroCredits(1), "paid", PLAN)
    assert await ask(PLAN) == {GrantedReservation(10, plan_tokens=20)}
    assert (await books.report()).findings == ()


async def test_a_prompt_longer_than_the_plan_is_paid_for_the_rest(books: Books) -> None:
    ada = new_owner()
    request, granted = await reserve(books, ada, 1200, 100)
    assert (granted, await books.account(ada)) == (GrantedReservation(100, plan_tokens=1000), (0, 200 + 200))
    assert await settle(books, ada, request, 1100, 50, held=1000) == 100 + 100
    assert (await tokens(books, ada), await books.account(ada)) == ((INCLUDED, 1000, 0), (-200, 0))
    assert (await books.report()).findings == ()


async def test_what_a_request_held_and_did_not_use_is_free_again(books: Books) -> None:
    ada = new_owner()
    request, _ = await reserve(books, ada, 300, 400)
    # 300 tokens are left for a second request.
    second, granted = await reserve(books, ada, 200, 200)
    assert granted == GrantedReservation(200, plan_tokens=300)
    assert await settle(books, ada, request, 300, 50, held=700) == 0
    assert await settle(books, ada, second, 200, 200, held=300) == 200
    assert (await tokens(books, ada), await books.account(ada)) == ((INCLUDED, 650, 0), (-200, 0))
    assert (await books.report()).findings == ()


async def test_without_money_the_answer_is_as_long_as_the_plan_covers(books: Books) -> None:
    ada = new_owner()
    broke = msgspec.structs.replace(PLAN, overage_micro=MicroCredits(0))
    _, granted = await reserve(books, ada, 600, 1000, least_tokens=16, spending=broke)
    assert granted == GrantedReservation(400, plan_tokens=1000)
    bob = new_owner()
    # 133 tokens each for 3 answers; one token is left over.
    _, granted = await reserve(books, bob, 600, 1000, least_tokens=16, answers=3, spending=broke)
    assert granted == GrantedReservation(133, plan_tokens=999)
    assert (await reserve(books, bob, 1, 16, spending=broke))[1] == InsufficientCredits(0)
    assert (await books.report()).findings == ()


@pytest.mark.parametrize(
    ("weight", "held", "used", "costs"),
    [
        pytest.param(0, 0, 0, (100 + 800, 100 + 400), id="never covered"),
        # 333 tokens of the model: the prompt, and 233 of the answer.
        pytest.param(3, 999, 900, (2 * 167, 0), id="three times as fast"),
    ],
)
async def test_a_models_weight_says_how_much_of_the_plan_it_uses(
    books: Books, weight: int, held: int, used: int, costs: tuple[int, int]
) -> None:
    ada, (reserved, cost) = new_owner(), costs
    request, granted = await reserve(books, ada, 100, 400, weight=weight)
    assert (granted, await books.account(ada)) == (GrantedReservation(400, plan_tokens=held), (0, reserved))
    assert await settle(books, ada, request, 100, 200, held=held, weight=weight) == cost
    assert (await tokens(books, ada), await books.account(ada)) == ((INCLUDED, used, 0), (-cost, 0))
    assert (await books.report()).findings == ()


async def test_unlimited_tokens_are_counted_and_never_end(books: Books) -> None:
    ada, unlimited = new_owner(), Spending(None, MicroCredits(0), has_plan=True)
    await use(books, ada, 1_000_000, 1_000_000, spending=unlimited)
    assert (await tokens(books, ada, unlimited), await books.account(ada)) == ((None, 2_000_000, 0), (0, 0))
    await pass_period(books)
    assert await tokens(books, ada, unlimited) == (None, 0, 0)
    assert (await books.report()).findings == ()


async def test_tokens_renew_with_each_period_and_unused_ones_are_lost(books: Books) -> None:
    ada = new_owner()
    await use(books, ada, 100, 200)
    await pass_period(books)
    assert await tokens(books, ada) == (INCLUDED, 0, 0)
    assert await entries(books, "grant", "expiry") == [
        ("grant", "allowance", None, 1000), ("grant", "grants", None, -1000),
        ("expiry", "allowance", None, -700), ("expiry", "grants", None, 700),
        ("grant", "allowance", None, 1000), ("grant", "grants", None, -1000),
    ]  # fmt: skip
    # Each entry names the period it belongs to.
    assert await fetch(books, "SELECT count(DISTINCT period) FROM entries WHERE kind = 'grant'") == [(2,)]
    assert await fetch(books, "SELECT DISTINCT period < period_start FROM entries JOIN accounts USING (owner) WHERE kind = 'expiry'") == [
        (True,)
    ]
    assert (await books.report()).findings == ()


async def test_a_request_that_runs_past_the_end_of_a_period_uses_the_next_ones_tokens(books: Books) -> None:
    ada = new_owner()
    request, _ = await reserve(books, ada, 100, 200)
    await pass_period(books)
    await settle(books, ada, request, 100, 200, held=300)
    assert (await tokens(books, ada), await books.account(ada)) == ((INCLUDED, 300, 0), (0, 0))
    assert (await books.report()).findings == ()


async def test_a_larger_plan_gives_the_difference_at_once_and_a_smaller_one_takes_nothing_back(books: Books) -> None:
    ada, larger, smaller = (
        new_owner(),
        msgspec.structs.replace(PLAN, included_tokens=5000),
        msgspec.structs.replace(PLAN, included_tokens=10),
    )
    await use(books, ada, 100, 200)
    assert await tokens(books, ada, larger) == (5000, 300, 0)
    assert await tokens(books, ada, smaller) == (5000, 300, 0)
    assert await tokens(books, ada) == (5000, 300, 0), "nor is the difference given twice"
    await pass_period(books)
    assert await tokens(books, ada, smaller) == (10, 0, 0)
    assert (await books.report()).findings == ()


async def test_what_a_period_owes_is_billed_at_its_end(books: Books) -> None:
    ada, bob = new_owner(), new_owner()
    await use(books, ada, 1000, 150)
    await books.ledger.top_up(new_request(), bob, MicroCredits(70), "", PLAN)
    await pass_period(books)
    for owner in (ada, bob):
        assert await tokens(books, owner) == (INCLUDED, 0, 0)
    assert (await books.account(ada), await books.account(bob)) == ((0, 0), (70, 0)), "prepaid credits stay"
    assert await entries(books, "invoice") == [("invoice", "balance", 300, None), ("invoice", "billed", -300, None)]
    # It is billed once, in the period it was spent in.
    assert await tokens(books, ada) == (INCLUDED, 0, 0)
    assert await fetch(
        books, "SELECT DISTINCT e.period < period_start FROM entries e JOIN accounts USING (owner) WHERE kind = 'invoice'"
    ) == [(True,)]
    assert (await books.report()).findings == ()


async def test_what_was_spent_before_the_first_period_is_not_owed(books: Books) -> None:
    """While MONEY is off, cost is only recorded."""
    ada = new_owner()
    await use(books, ada, 100, 200, spending=Spending())
    assert await books.account(ada) == (-500, 0)
    assert await tokens(books, ada) == (INCLUDED, 0, 0)
    assert await books.account(ada) == (0, 0)
    assert await entries(books, "expiry", "invoice") == [("expiry", "balance", 500, None), ("expiry", "billed", -500, None)]
    assert (await books.report()).findings == ()


#: How a gateway of release 0.3 reserves 100 micro-credits for an owner with 400 a month.
RESERVE_AS_03 = "SELECT granted_tokens FROM reserve($2, $1, NULL, 'm', 1, 'old', 90, 1, 100, 100, 1, 0, 1000000, 400, true, NULL)"


async def test_credits_that_release_03_included_last_until_its_gateways_are_gone(books: Books) -> None:
    """During a rolling upgrade, a user asks gateways of both releases. The migration that follows it ends what was included."""
    ada, first, second = new_owner(), new_request(), new_request()
    assert await fetch(books, RESERVE_AS_03, ada, first) == [(100,)]
    await use(books, ada, 0, 50, spending=Spending())
    assert await fetch(books, RESERVE_AS_03, ada, second) == [(100,)], "200 of its credits are left"
    for request in (first, second):
        await fetch(books, "SELECT settle($1, 60, 'settled')", request)
    assert await fetch(books, "SELECT included_micro, balance_micro FROM accounts WHERE owner = $1", ada) == [(400, -220)]
    assert (await books.report()).findings == ()
    connection = await asyncpg.connect(books.url, server_settings={"search_path": "gateway"})
    try:
        known = migrations.read(Path(store.__file__).parent / "migrations")
        assert "0036_post_included_credits.sql" in await migrations.run(connection, "gateway", known, post=True)
    finally:
        await connection.close()
    assert await fetch(books, "SELECT included_micro, balance_micro FROM accounts WHERE owner = $1", ada) == [(0, -220)]
    assert await entries(books, "expiry") == [("expiry", "included", -400, None), ("expiry", "grants", 400, None)]
    # What was spent is not owed.
    assert await tokens(books, ada) == (INCLUDED, 0, 0)
    assert await books.account(ada) == (0, 0)
    await use(books, ada, 100, 200)
    assert await tokens(books, ada) == (INCLUDED, 300, 0)
    assert (await books.report()).findings == ()


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/Los_Angeles"])
@pytest.mark.parametrize(
    ("anchor", "starts"),
    [
        pytest.param("2026-01-31 12:00", ["2026-02-28 12:00", "2026-03-31 12:00", "2026-04-30 12:00", "2026-05-31 12:00"], id="a last day"),
        pytest.param("2028-01-31 12:00", ["2028-02-29 12:00", "2028-03-31 12:00"], id="of a leap year"),
        pytest.param("2026-11-30 23:30", ["2026-12-30 23:30", "2027-01-30 23:30", "2027-02-28 23:30"], id="east of a year's end"),
        pytest.param("2026-03-01 00:30", ["2026-04-01 00:30", "2026-05-01 00:30", "2026-06-01 00:30"], id="west of a month's first hour"),
    ],
)
async def test_periods_begin_on_the_day_of_the_month_of_the_first(books: Books, anchor: str, starts: list[str], zone: str) -> None:
    ada = new_owner()
    await books.account(ada)
    begins = [datetime.fromisoformat(start).replace(tzinfo=UTC) for start in (anchor, *starts)]
    period = "SELECT one.period_start, one.period_end FROM accounts, LATERAL end_period(accounts, $2) AS one WHERE accounts.owner = $1"
    for start, end in itertools.pairwise(begins):
        # At its first moment and its last.
        for moment in (start, end - timedelta(microseconds=1)):
            assert await fetch(books, period, ada, moment, zone=zone) == [(start, end)]
    # After a pause of any length, the present period begins.
    await books.execute(f"UPDATE accounts SET period_end = anchor WHERE owner = '{ada}'")
    assert await fetch(books, period, ada, begins[-1] - timedelta(days=1), zone=zone) == [(begins[-2], begins[-1])]


@pytest.mark.parametrize(
    ("now", "zone", "since"),
    [
        pytest.param("2026-02-28 23:00+00", "Asia/Tokyo", ["2026-02-28", "2026-02-23", "2026-02-01"], id="east of a month's last hour"),
        pytest.param(
            "2026-03-01 01:00+00", "America/Los_Angeles", ["2026-03-01", "2026-02-23", "2026-03-01"], id="west of a month's first hour"
        ),
        pytest.param(
            "2026-03-02 00:00+00", "America/Los_Angeles", ["2026-03-02", "2026-03-02", "2026-03-01"], id="a Monday's first moment"
        ),
    ],
)
async def test_budgets_renew_at_midnight_utc_in_any_session_time_zone(books: Books, now: str, zone: str, since: list[str]) -> None:
    # Stop the function's clock in this database.
    await books.execute(
        f"CREATE FUNCTION now() RETURNS timestamptz LANGUAGE sql STABLE AS $$ SELECT '{now}'::timestamptz $$;"
        "ALTER FUNCTION budget_since(text) SET search_path = gateway, pg_catalog"
    )
    (found,) = await fetch(books, "SELECT budget_since('day'), budget_since('week'), budget_since('month'), budget_since(NULL)", zone=zone)
    assert [each.isoformat() for each in found] == [*since, "0001-01-01"]


#: A day of each kind of budget's previous period.
EARLIER = {"day": "1 d", "week": "7 d", "month": "31 d"}


@pytest.mark.parametrize("every", ["day", "week", "month"])
@pytest.mark.parametrize("whose", ["key", "owner"])
async def test_a_budget_counts_from_its_periods_beginning(books: Books, whose: str, every: Every) -> None:
    ada, key = new_owner(), KeyId(uuid4())
    spending = msgspec.structs.replace(PLAN, included_tokens=0, **{f"{whose}_budget": Budget(MicroCredits(1000), every)})
    ask: dict[str, Any] = {"spending": spending, "key_id": key}

    async def spent() -> int:
        account = await books.ledger.read_account(ada, spending)
        of_key, _ = await books.ledger.read_key_spending(ada, key)
        return of_key if whose == "key" else account.spent_micro

    async def renew() -> None:
        await books.execute(
            "; ".join(f"UPDATE {table} SET since = since - interval '{EARLIER[every]}'" for table in ("accounts", "key_spending"))
        )

    await use(books, ada, 100, 200, **ask)
    late, _ = await reserve(books, ada, 100, 150, **ask)
    assert (await reserve(books, ada, 0, 51, **ask))[1] == InsufficientCredits(100, whose)  # type: ignore[arg-type]
    assert await spent() == 500
    # In the next period, what is still running counts as held, and when it settles, as spent.
    await renew()
    assert await spent() == 0
    assert (await reserve(books, ada, 0, 301, **ask))[1] == InsufficientCredits(600, whose)  # type: ignore[arg-type]
    await settle(books, ada, late, 100, 150, held=0)
    assert await spent() == 400
    await use(books, ada, 0, 300, **ask)
    assert (await reserve(books, ada, 0, 1, **ask))[1] == InsufficientCredits(0, whose)  # type: ignore[arg-type]
    await renew()
    await use(books, ada, 0, 500, **ask)
    assert await spent() == 1000
    assert (await books.report()).findings == ()


async def test_a_settlement_alone_renews_a_budget(books: Books) -> None:
    ada, key = new_owner(), KeyId(uuid4())
    budget = Budget(MicroCredits(1000), "day")
    ask: dict[str, Any] = {"spending": Spending(key_budget=budget, owner_budget=budget), "key_id": key}
    await use(books, ada, 100, 200, **ask)
    late, _ = await reserve(books, ada, 100, 50, **ask)
    for table in ("accounts", "key_spending"):
        await books.execute(f"UPDATE {table} SET since = since - 1")
    await settle(books, ada, late, 100, 50, held=0)
    assert (await books.ledger.read_account(ada, Spending(owner_budget=budget))).spent_micro == 200
    assert await books.ledger.read_key_spending(ada, key) == (200, 0)
    assert (await books.report()).findings == ()


async def test_a_budget_that_does_not_renew_covers_a_whole_life(books: Books) -> None:
    ada, key = new_owner(), KeyId(uuid4())
    budget = Budget(MicroCredits(1000))
    ask: dict[str, Any] = {"spending": Spending(key_budget=budget, owner_budget=budget), "key_id": key}
    await use(books, ada, 100, 200, **ask)
    assert (await reserve(books, ada, 0, 251, **ask))[1] == InsufficientCredits(500, "owner")
    assert (
        await fetch(books, "SELECT since::text, every FROM accounts UNION ALL SELECT since::text, every FROM key_spending")
        == [("0001-01-01", None)] * 2
    )
    # One that renews from now on counts from now on.
    monthly = Budget(MicroCredits(1000), "month")
    assert isinstance(
        (await reserve(books, ada, 0, 500, **(ask | {"spending": Spending(key_budget=monthly, owner_budget=monthly)})))[1],
        GrantedReservation,
    )
    assert (await books.report()).findings == ()


async def test_the_owners_budget_covers_all_keys(books: Books) -> None:
    ada, keys = new_owner(), [KeyId(uuid4()) for _ in range(2)]
    spending = msgspec.structs.replace(
        PLAN, included_tokens=0, owner_budget=Budget(MicroCredits(1000), "month"), key_budget=Budget(MicroCredits(900))
    )
    await use(books, ada, 0, 400, spending=spending, key_id=keys[0])
    assert (await reserve(books, ada, 0, 101, spending=spending, key_id=keys[1]))[1] == InsufficientCredits(200, "owner")
    assert (await reserve(books, ada, 0, 51, spending=spending, key_id=keys[0]))[1] == InsufficientCredits(100, "key")
    # What the plan covers doesn't count.
    included = msgspec.structs.replace(spending, included_tokens=INCLUDED)
    assert (await reserve(books, ada, 0, 1000, spending=included, key_id=keys[0]))[1] == GrantedReservation(1000, plan_tokens=1000)
    assert (await books.report()).findings == ()


async def test_a_refund_gives_back_tokens_and_money(books: Books) -> None:
    ada, key = new_owner(), KeyId(uuid4())
    budget = Budget(MicroCredits(1000), "month")
    spending = msgspec.structs.replace(PLAN, key_budget=budget, owner_budget=budget)
    request = await use(books, ada, 1000, 100, spending=spending, key_id=key)
    assert await books.ledger.revert(request, "sorry") == ada
    assert (await tokens(books, ada), await books.account(ada)) == ((INCLUDED, 0, 0), (0, 0))
    assert (await books.ledger.read_account(ada, spending)).spent_micro == 0
    assert await books.ledger.read_key_spending(ada, key) == (0, 0)
    # Also where only tokens were used.
    request = await use(books, ada, 100, 100)
    assert await books.ledger.revert(request, "sorry") == ada
    assert await tokens(books, ada) == (INCLUDED, 0, 0)
    assert (await books.report()).findings == ()


async def test_a_refund_of_an_earlier_period_gives_back_money_alone(books: Books) -> None:
    ada, key = new_owner(), KeyId(uuid4())
    budget = Budget(MicroCredits(1000), "month")
    ask: dict[str, Any] = {"spending": msgspec.structs.replace(PLAN, key_budget=budget, owner_budget=budget), "key_id": key}
    old = await use(books, ada, 1000, 100, **ask)
    await pass_period(books)
    await books.execute(
        f"UPDATE reservations SET ended_at = ended_at - interval '40 d' WHERE request_id = '{old}';"
        "UPDATE accounts SET since = since - interval '31 d'; UPDATE key_spending SET since = since - interval '31 d'"
    )
    await use(books, ada, 1000, 150, **ask)
    assert await books.ledger.revert(old, "sorry") == ada
    # 200 were billed with the earlier period, and 300 are owed in this one.
    assert (await tokens(books, ada), await books.account(ada)) == ((INCLUDED, 1000, 0), (200 - 300, 0))
    assert (await books.ledger.read_account(ada, ask["spending"])).spent_micro == 300
    assert await books.ledger.read_key_spending(ada, key) == (300, 0)
    assert (await books.report()).findings == ()


@pytest.mark.parametrize(("zone", "hour"), [("Asia/Tokyo", 20), ("America/Los_Angeles", 3)])
async def test_a_refund_belongs_to_the_utc_day_on_which_the_request_ended(books: Books, zone: str, hour: int) -> None:
    """The request ended yesterday at 20:00 UTC or today at 03:00 UTC, which is another day in the session's time zone."""
    ada, key = new_owner(), KeyId(uuid4())
    budget = Budget(MicroCredits(10_000), "day")
    ask: dict[str, Any] = {"spending": Spending(key_budget=budget, owner_budget=budget), "key_id": key}
    request = await use(books, ada, 0, 100, **ask)
    await use(books, ada, 0, 300, **ask)
    is_yesterday = hour > 12
    ended = f"(now() AT TIME ZONE 'UTC')::date - {int(is_yesterday)} + time '{hour}:00'"
    await books.execute(f"UPDATE reservations SET ended_at = ({ended}) AT TIME ZONE 'UTC' WHERE request_id = '{request}'")
    await fetch(books, "SELECT revert($1, 'sorry')", request, zone=zone)
    spent = 800 if is_yesterday else 600
    assert (await books.ledger.read_account(ada, ask["spending"])).spent_micro == spent
    assert await books.ledger.read_key_spending(ada, key) == (spent, 0)


async def test_a_refund_of_what_a_new_budget_did_not_count_leaves_it_as_it_is(books: Books) -> None:
    ada, key = new_owner(), KeyId(uuid4())
    request = await use(books, ada, 0, 100, spending=Spending(), key_id=key)
    budget = Budget(MicroCredits(1000), "month")
    spending = Spending(key_budget=budget, owner_budget=budget)
    assert isinstance((await reserve(books, ada, 0, 10, spending=spending, key_id=key))[1], GrantedReservation)
    assert await books.ledger.revert(request, "sorry") == ada
    assert (await books.ledger.read_account(ada, spending)).spent_micro == 0
    assert await books.ledger.read_key_spending(ada, key) == (0, 20)
