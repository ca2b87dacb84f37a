"""Batches of reservations and settlements: the same rows and answers as one at a time, and no deadlocks."""

import asyncio
import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.billing.reservations import GrantedReservation, InsufficientCredits, ReservationRequest, Spending
from shared.api.auth import Budget
from shared.types import KeyId, MicroCredits, RequestId, UserId
from tests import tiers
from tests.servers import PostgresServer
from tests.services.gateway.billing.test_ledger_store import GATEWAY, Books, books, new_owner, new_request
from tests.services.gateway.billing.test_ledger_store import row as request_row
from tests.stacks import until

__all__ = ["books"]

_RESERVE = f"SELECT * FROM reserve_batch({', '.join(f'${number}' for number in range(1, 22))}, 90)"
_SETTLE = "SELECT settle_batch($1, $2, $3, $4)"
_RESERVE_EACH = """
    SELECT request, held.* FROM (
        SELECT * FROM unnest(
            $1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::integer[], $7::integer[], $8::integer[], $9::integer[],
            $10::bigint[], $11::bigint[], $12::bigint[], $13::integer[], $14::bigint[], $15::bigint[], $16::boolean[],
            $17::bigint[], $18::text[], $19::bigint[], $20::text[]
        ) WITH ORDINALITY AS given (
            request, owner, key, model, price, prompt, tokens, least, answers, fixed, input, output, weight,
            included, overage, has_plan, key_budget, key_every, owner_budget, owner_every, number
        )
        ORDER BY owner, request, number
    ) AS given, LATERAL reserve(
        request, owner, key, model, price, $21, 90, prompt, tokens, least, answers, fixed, input, output, weight,
        included, overage, has_plan, key_budget, key_every, owner_budget, owner_every
    ) AS held"""
_SETTLE_EACH = """
    WITH settled AS MATERIALIZED (
        SELECT number, settle(request, micro, tokens, state) AS cost FROM (
            SELECT given.* FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::text[]) WITH ORDINALITY
                AS given (request, micro, tokens, state, number)
            LEFT JOIN reservations ON request_id = request
            ORDER BY owner, request, number
        ) AS given
    )
    SELECT array_agg(cost ORDER BY number) FROM settled"""
#: How gateways of release 0.3 reserve and settle; migration 0036 drops these functions.
_OLD_RESERVE = """
    SELECT count(reserve(request, owner, NULL, 'm', 1, $3, 90, 1, 100, 1, 1, 0, 1000000, 1000000000, true, NULL))
    FROM (SELECT * FROM unnest($1::uuid[], $2::uuid[]) AS given (request, owner) ORDER BY owner, request) AS given"""
_OLD_SETTLE = """
    SELECT count(settle(request, 50, 'settled')) FROM (
        SELECT request FROM unnest($1::uuid[]) AS given (request) LEFT JOIN reservations ON request_id = request ORDER BY owner, request
    ) AS given"""
#: Everything but when it was written.
_ROWS = (
    "SELECT to_jsonb(accounts) FROM accounts ORDER BY owner",
    "SELECT to_jsonb(key_spending) FROM key_spending ORDER BY key_id",
    "SELECT to_jsonb(reservations) FROM reservations ORDER BY request_id",
    # The period of a batch's accounts ends before any of its requests is settled.
    """
    SELECT CASE WHEN kind = 'usage' THEN transfer END, kind, account, owner, amount_micro, amount_tokens, period FROM entries
    ORDER BY owner, id
    """,
    "SELECT count(*) FROM entry_keys",
    # A batch may pass two thresholds at once.
    """
    SELECT owner, regexp_replace(subject, '/[0-9]+$', ''), max((notice ->> 'percent')::integer) FROM threshold_notices
    GROUP BY 1, 2 ORDER BY 1, 2
    """,
)

_OWNERS, _MAX = 2, 8
#: Index into this example's requests, newest first. A reservation with an index out of range is a new request.
_requests = st.integers(-12, 15)
_every = st.sampled_from([None, None, "day", "week", "month"])
#: Of an owner: the included tokens, how far the balance may fall, whether it has a plan, and how the budgets renew.
_plans = st.tuples(
    st.sampled_from([0, 1_000, 1_000, 1_500, None]),
    st.sampled_from([0, 1_000, None, None]),
    st.booleans(),
    _every,
    _every,
)
_reservations = st.tuples(
    st.tuples(*[_plans] * _OWNERS),
    st.lists(
        st.tuples(
            st.integers(0, _OWNERS - 1),
            st.integers(0, 2),  # the key, or none
            _requests,
            st.sampled_from([0, 10, 100, 400]),  # wanted tokens
            st.sampled_from([0, 50, 400]),  # least tokens
            st.sampled_from([1, 1, 2, 3]),  # answers
            st.sampled_from([0, 0, 50]),  # fixed
            st.sampled_from([0, 333_333, 1_000_000]),  # per million tokens of the prompt
            st.sampled_from([0, 333_333, 1_000_000]),  # and of the answer
            st.sampled_from([0, 1, 1, 3]),  # the weight
            st.sampled_from([None, 300, 1_000]),  # the key's budget
            st.sampled_from([None, None, None, 700, 5_000]),  # the owner's budget
        ),
        min_size=1,
        max_size=_MAX,
    ),
)
_settlements = st.lists(
    st.tuples(
        _requests,
        st.sampled_from([0, 1, 100, 1_000]),
        st.sampled_from([0, 0, 1, 100, 1_000]),  # tokens of the plan
        st.sampled_from(["settled", "settled", "released", "expired"]),
    ),
    min_size=1,
    max_size=_MAX,
)


class Comparison:
    """Applies the steps of one example both ways, in a transaction."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.owners = [uuid4() for _ in range(_OWNERS)]
        self.keys = [(None, uuid4(), uuid4()) for _ in range(_OWNERS)]
        #: Requests with their owners, newest first.
        self.requests: list[tuple[UUID, int]] = []

    async def open(self, paid: int) -> None:
        for owner in self.owners:
            await self.connection.execute("SELECT top_up($1, $2, $3, '', 1000, true)", uuid4(), owner, paid)

    async def pass_time(self, days: int) -> None:
        """Let the periods of plans end after a month, and budgets renew."""
        for table in ("accounts", "key_spending"):
            await self.connection.execute(f"UPDATE {table} SET since = since - $1::integer WHERE since > '0001-01-01'", days)
        await self.connection.execute(
            "UPDATE accounts SET anchor = anchor - $1::interval, period_start = period_start - $1::interval,"
            " period_end = period_end - $1::interval",
            timedelta(days=days),
        )

    async def reserve(self, plans: Sequence[tuple[Any, ...]], wanted: Sequence[tuple[Any, ...]]) -> None:
        columns = list(zip(*(self._reservation(plans, *one) for one in wanted), strict=True))
        await self._apply(_RESERVE_EACH, _RESERVE, *columns, GATEWAY)

    def _reservation(self, plans: Sequence[tuple[Any, ...]], owner: int, key: int, number: int, *rest: Any) -> tuple[object, ...]:
        if 0 <= number < len(self.requests):
            request, owner = self.requests[number]
        else:
            request = uuid4()
            self.requests.insert(0, (request, owner))
        the_key = self.keys[owner][key]
        *size, key_budget, owner_budget = rest
        *plan, key_every, owner_every = plans[owner]
        if key_every is not None:
            # A key's first requests, some with a budget that renews and some without one, begin its period in one batch or the next.
            key_budget = key_budget or 1_000
        of_key = (None, None) if the_key is None or key_budget is None else (key_budget, key_every)
        of_owner = (None, None) if owner_budget is None else (owner_budget, owner_every)
        return (request, self.owners[owner], the_key, "smollm2", 1, 10, *size, *plan, *of_key, *of_owner)

    async def settle(self, wanted: Sequence[tuple[int, int, int, str]]) -> None:
        known = [request for request, _ in self.requests]
        settled = [(known[abs(number)] if abs(number) < len(known) else uuid4(), *rest) for number, *rest in wanted]
        await self._apply(_SETTLE_EACH, _SETTLE, *zip(*settled, strict=True))

    async def _apply(self, each: str, batch: str, *args: object) -> None:
        """Run both statements, compare them, and keep the batch's result."""
        before = self.connection.transaction()
        await before.start()
        expected = await self._do(each, *args)
        await before.rollback()
        assert await self._do(batch, *args) == expected

    async def _do(self, sql: str, *args: object) -> list[list[tuple[object, ...]]]:
        answers = [_answer(tuple(row)) for row in await self.connection.fetch(sql, *args)]
        rows = [[tuple(row) for row in await self.connection.fetch(rows)] for rows in _ROWS]
        return [sorted(answers, key=repr), *rows]


def _answer(row: tuple[Any, ...]) -> tuple[object, ...]:
    """Leave out what nobody reads: the room of a granted reservation, and what bounds it."""
    match row:
        case (UUID(), int(), _, _, _, _):
            return (*row[:3], row[5])
    return row


@given(
    paid=st.sampled_from([1, 500, 5_000]),
    steps=st.lists(_reservations | _settlements | st.sampled_from([1, 7, 32]), min_size=1, max_size=8),
)
def _compare(runner: asyncio.Runner, connection: asyncpg.Connection, paid: int, steps: list[Any]) -> None:
    async def compare() -> None:
        transaction = connection.transaction()
        await transaction.start()
        try:
            comparison = Comparison(connection)
            await comparison.open(paid)
            for step in steps:
                match step:
                    case int():
                        await comparison.pass_time(step)
                    case tuple():
                        await comparison.reserve(*step)
                    case _:
                        await comparison.settle(step)
        finally:
            await transaction.rollback()

    runner.run(compare())


def test_a_batch_does_the_same_as_one_request_after_the_other(postgres: PostgresServer) -> None:
    with asyncio.Runner() as runner:
        url = postgres.owner_url(postgres.url(runner.run(postgres.new_database("gateway"))), "gateway")
        connection = runner.run(asyncpg.connect(url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"}))
        runner.run(connection.execute("INSERT INTO prices VALUES (DEFAULT, NULL, 1, 1, 0, 0, 'epoch')"))
        _compare(runner, connection)
        runner.run(connection.close())


async def test_a_batch_sees_what_was_reserved_and_settled_while_it_waited(books: Books) -> None:
    """The account has 1,500 credits: 300 are reserved before the batch, and 700 while it waits."""
    ada, key, requests = new_owner(), KeyId(uuid4()), [new_request() for _ in range(4)]
    prepaid = Spending(overage_micro=MicroCredits(0))
    await books.ledger.top_up(new_request(), ada, MicroCredits(1500), "", prepaid)
    await books.reserve(ada, tokens=300, request=requests[0], spending=prepaid)
    connection = await asyncpg.connect(books.url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})

    async def it_waits() -> bool:
        return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"))

    async def reserve_both() -> None:
        spending = msgspec.structs.replace(prepaid, key_budget=Budget(MicroCredits(750)))
        wanted = [_wanted(ada, request, 100, spending=spending, key_id=key) for request in requests[2:]]
        answers = await books.ledger.reserve(wanted, gateway=GATEWAY, lease_seconds=90)
        # The key's budget has 50 left: enough for only one of the two requests.
        assert answers.count(GrantedReservation(50)) == 1
        assert len(set(answers)) == 2

    one = (requests[1], ada, key, "m", 1, 1, 700, 1, 1, 0, 0, 1_000_000, 1, 0, 0, False, None, None, None, None)
    columns = [list(column) for column in zip(one, strict=True)]
    async with asyncio.TaskGroup() as tasks, connection.transaction():
        await connection.fetch(_RESERVE_EACH, *columns, GATEWAY)
        tasks.create_task(reserve_both())
        await until(it_waits, seconds=10, what="the batch waits for the account")
    async with asyncio.TaskGroup() as tasks, connection.transaction():
        assert await connection.fetchval("SELECT settle($1, 300, 0, 'settled')", requests[0]) == 300
        tasks.create_task(books.settle(ada, *((request, 300) for request in requests[:2]), key=key))
        await until(it_waits, seconds=10, what="the batch waits for the account")
    await connection.close()
    # Both cost 300; the first is charged only once.
    assert await books.account(ada) == (900, 50)
    assert (await books.report()).findings == ()


async def test_a_batch_sees_what_was_used_of_a_plan_while_it_waited(books: Books) -> None:
    """Of 1,000 tokens, 700 are held while the batch waits: enough are left for only one of its two requests."""
    ada, requests = new_owner(), [new_request() for _ in range(3)]
    plan = Spending(1000, MicroCredits(0), has_plan=True)
    await books.ledger.read_account(ada, plan)
    connection = await asyncpg.connect(books.url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})

    async def it_waits() -> bool:
        return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"))

    async def reserve_both() -> None:
        wanted = [_wanted(ada, request, 190, spending=plan, least_tokens=190) for request in requests[1:]]
        answers = await books.ledger.reserve(wanted, gateway=GATEWAY, lease_seconds=90)
        assert answers.count(GrantedReservation(190, plan_tokens=200)) == 1
        assert answers.count(InsufficientCredits(0)) == 1

    one = (requests[0], ada, None, "m", 1, 10, 690, 1, 1, 0, 0, 1_000_000, 1, 1000, 0, True, None, None, None, None)
    columns = [list(column) for column in zip(one, strict=True)]
    async with asyncio.TaskGroup() as tasks, connection.transaction():
        await connection.fetch(_RESERVE_EACH, *columns, GATEWAY)
        tasks.create_task(reserve_both())
        await until(it_waits, seconds=10, what="the batch waits for the account")
    await connection.close()
    allowance = (await books.ledger.read_account(ada, plan)).allowance
    assert allowance is not None
    assert (allowance.used, allowance.held) == (0, 900)
    assert (await books.report()).findings == ()


async def test_gateways_of_both_releases_never_deadlock(books: Books) -> None:
    """Two new gateways and an old one use the same accounts, some of which are new to all three."""
    rng, rounds = random.Random(tiers.seed("BATCH_SEED")), tiers.volume(400)
    owners: list[UserId] = []
    connection = await asyncpg.connect(books.url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})

    def draw() -> list[ReservationRequest]:
        owners.extend(new_owner() for _ in range(rng.randint(0, 2)))
        spending = Spending(10**4, has_plan=rng.random() < 0.5)
        return [_wanted(rng.choice(owners[-4:] or [new_owner()]), new_request(), 100, spending=spending) for _ in range(rng.randint(2, 8))]

    async def use_new() -> None:
        for _ in range(rounds):
            wanted = draw()
            await books.ledger.reserve(wanted, gateway=GATEWAY, lease_seconds=90)
            rng.shuffle(wanted)
            await books.requests.write_requests([request_row(UserId(one.owner), one.request_id, 50) for one in wanted])

    async def use_old() -> None:
        for _ in range(rounds):
            wanted = draw()
            requests = [one.request_id for one in wanted]
            await connection.fetch(_OLD_RESERVE, requests, [one.owner for one in wanted], GATEWAY)
            await connection.fetch(_OLD_SETTLE, requests)

    async with asyncio.TaskGroup() as tasks:
        for use in (use_new, use_new, use_old):
            tasks.create_task(use())
    deadlocks = await connection.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    await connection.close()
    assert deadlocks == 0
    report = await books.report()
    assert (report.findings, report.open_reservations) == ((), 0)


def _wanted(owner: UserId, request: RequestId, tokens: int, **more: Any) -> ReservationRequest:
    return msgspec.structs.replace(Books.wanted(owner, request, tokens), **({"least_tokens": 1} | more))
