"""Batches of reservations and settlements: the same rows and answers as one at a time, and no deadlocks."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.billing.reservations import GrantedReservation, ReservationRequest
from shared.types import KeyId, MicroCredits, RequestId, UserId
from tests import tiers
from tests.servers import PostgresServer
from tests.services.gateway.billing.test_ledger_store import GATEWAY, Books, books, new_owner, new_request
from tests.services.gateway.billing.test_ledger_store import row as request_row
from tests.stacks import until

__all__ = ["books"]

_RESERVE = "SELECT * FROM reserve_batch($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, 90)"
_SETTLE = "SELECT settle_batch($1, $2, $3)"
#: One call per request, as gateways did before migration 0029.
_RESERVE_EACH = """
    SELECT request, held.* FROM (
        SELECT * FROM unnest(
            $1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::integer[], $7::integer[], $8::integer[], $9::integer[],
            $10::bigint[], $11::bigint[], $12::bigint[], $13::boolean[], $14::bigint[]
        ) WITH ORDINALITY AS given (
            request, owner, key, model, price, prompt, tokens, least, answers, fixed, rate, monthly, bounded, budget, number
        )
        ORDER BY owner, request, number
    ) AS given, LATERAL reserve(
        request, owner, key, model, price, $15, 90, prompt, tokens, least, answers, fixed, rate, monthly, bounded, budget
    ) AS held"""
_SETTLE_EACH = """
    WITH settled AS MATERIALIZED (
        SELECT number, settle(request, micro, state) AS cost FROM (
            SELECT given.* FROM unnest($1::uuid[], $2::bigint[], $3::text[]) WITH ORDINALITY AS given (request, micro, state, number)
            LEFT JOIN reservations ON request_id = request
            ORDER BY owner, request, number
        ) AS given
    )
    SELECT array_agg(cost ORDER BY number) FROM settled"""
_ROWS = (
    "SELECT * FROM accounts ORDER BY owner",
    "SELECT * FROM key_spending ORDER BY key_id",
    "SELECT * FROM reservations ORDER BY request_id",
    "SELECT CASE WHEN kind = 'usage' THEN transfer END, kind, account, owner, amount_micro, at FROM entries ORDER BY id",
    "SELECT count(*) FROM entry_keys",
)

_OWNERS, _MOST = 2, 8
#: Index into this example's requests, newest first. A reservation with an index out of range is a new request.
_requests = st.integers(-12, 15)
_reservations = st.tuples(
    st.sampled_from([1_000, 1_000, 1_500, None]),  # monthly
    st.lists(
        st.tuples(
            st.integers(0, _OWNERS - 1),
            st.integers(0, 2),  # the key, or none
            _requests,
            st.sampled_from([0, 10, 100, 400]),  # wanted tokens
            st.sampled_from([0, 50, 400]),  # least tokens
            st.integers(1, 2),  # answers
            st.sampled_from([0, 0, 50]),  # fixed
            st.sampled_from([0, 333_333, 1_000_000]),  # per million tokens
            st.sampled_from([None, 300, 1_000]),  # the key's budget
        ),
        min_size=1,
        max_size=_MOST,
    ),
)
_settlements = st.lists(
    st.tuples(_requests, st.sampled_from([0, 1, 100, 1_000]), st.sampled_from(["settled", "settled", "released", "expired"])),
    min_size=1,
    max_size=_MOST,
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
            await self.connection.execute("SELECT top_up($1, $2, $3, '', 1000)", uuid4(), owner, paid)

    async def pass_month(self) -> None:
        await self.connection.execute("UPDATE accounts SET month = month - interval '1 month'")

    async def reserve(self, monthly: int | None, wanted: Sequence[tuple[Any, ...]]) -> None:
        columns = list(zip(*(self._reservation(monthly, *one) for one in wanted), strict=True))
        await self._apply(_RESERVE_EACH, _RESERVE, *columns, GATEWAY)

    def _reservation(self, monthly: int | None, owner: int, key: int, number: int, *rest: Any) -> tuple[object, ...]:
        if 0 <= number < len(self.requests):
            request, owner = self.requests[number]
        else:
            request = uuid4()
            self.requests.insert(0, (request, owner))
        the_key = self.keys[owner][key]
        tokens, least, answers, fixed, rate, budget = rest
        price = (tokens, least, answers, fixed, rate, monthly, monthly is not None, None if the_key is None else budget)
        return (request, self.owners[owner], the_key, "smollm2", 1, 10, *price)

    async def settle(self, wanted: Sequence[tuple[int, int, str]]) -> None:
        known = [request for request, _ in self.requests]
        settled = [(known[abs(number)] if abs(number) < len(known) else uuid4(), cost, state) for number, cost, state in wanted]
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
    """Leave out the column that nobody reads: the room of a granted reservation."""
    match row:
        case (UUID(), int(), _, _, _):
            return (*row[:2], row[4])
    return row


@given(paid=st.sampled_from([1, 500, 5_000]), steps=st.lists(_reservations | _settlements | st.none(), min_size=1, max_size=8))
def _compare(runner: asyncio.Runner, connection: asyncpg.Connection, paid: int, steps: list[Any]) -> None:
    async def compare() -> None:
        transaction = connection.transaction()
        await transaction.start()
        try:
            comparison = Comparison(connection)
            await comparison.open(paid)
            for step in steps:
                match step:
                    case None:
                        await comparison.pass_month()
                    case tuple():
                        await comparison.reserve(*step)
                    case _:
                        await comparison.settle(step)
        finally:
            await transaction.rollback()

    runner.run(compare())


def test_a_batch_does_the_same_as_one_request_after_the_other(postgres: PostgresServer) -> None:
    postgres.ensure_running()
    with asyncio.Runner() as runner:
        url = postgres.owner_url(postgres.url(runner.run(postgres.new_database("gateway"))), "gateway")
        connection = runner.run(asyncpg.connect(url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"}))
        runner.run(connection.execute("INSERT INTO prices VALUES (DEFAULT, NULL, 1, 1, 0, 0, 'epoch')"))
        _compare(runner, connection)
        runner.run(connection.close())


async def test_a_batch_sees_what_was_reserved_and_settled_while_it_waited(books: Books) -> None:
    """The account has 500 included and 1,000 paid credits: 300 are reserved before the batch, and 700 while it waits."""
    ada, key, requests = new_owner(), KeyId(uuid4()), [new_request() for _ in range(4)]
    await books.ledger.top_up(new_request(), ada, MicroCredits(1000), "", MicroCredits(500))
    await books.reserve(ada, tokens=300, request=requests[0], monthly_micro=MicroCredits(500))
    connection = await asyncpg.connect(books.url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})

    async def it_waits() -> bool:
        return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"))

    async def reserve_both() -> None:
        wanted = [
            _wanted(ada, request, 100, monthly_micro=MicroCredits(500), key_id=key, key_budget_micro=MicroCredits(750))
            for request in requests[2:]
        ]
        answers = await books.ledger.reserve(wanted, gateway=GATEWAY, lease_seconds=90)
        # The key's budget has 50 left: enough for only one of the two requests.
        assert answers.count(GrantedReservation(50)) == 1
        assert len(set(answers)) == 2

    columns = [list(column) for column in zip((requests[1], ada, key, "m", 1, 1, 700, 1, 1, 0, 1_000_000, 500, True, None), strict=True)]
    async with asyncio.TaskGroup() as tasks, connection.transaction():
        await connection.fetch(_RESERVE_EACH, *columns, GATEWAY)
        tasks.create_task(reserve_both())
        await until(it_waits, seconds=10, what="the batch waits for the account")
    async with asyncio.TaskGroup() as tasks, connection.transaction():
        assert await connection.fetchval("SELECT settle($1, 300, 'settled')", requests[0]) == 300
        tasks.create_task(books.settle(ada, *((request, 300) for request in requests[:2]), key=key))
        await until(it_waits, seconds=10, what="the batch waits for the account")
    await connection.close()
    # Both cost 300; the first is charged only once.
    assert await books.account(ada, 500) == (0, 900, 50)
    assert (await books.report()).findings == ()


async def test_gateways_of_both_releases_never_deadlock(books: Books) -> None:
    """Two new gateways and an old one use the same accounts, some of which are new to all three."""
    rng, rounds = random.Random(tiers.seed("BATCH_SEED")), tiers.volume(400)
    owners: list[UserId] = []
    connection = await asyncpg.connect(books.url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})

    def draw() -> list[ReservationRequest]:
        owners.extend(new_owner() for _ in range(rng.randint(0, 2)))
        return [_wanted(rng.choice(owners[-4:] or [new_owner()]), new_request(), 100) for _ in range(rng.randint(2, 8))]

    async def use_new() -> None:
        for _ in range(rounds):
            wanted = draw()
            await books.ledger.reserve(wanted, gateway=GATEWAY, lease_seconds=90)
            rng.shuffle(wanted)
            await books.requests.write_requests([request_row(UserId(one.owner), one.request_id, 50) for one in wanted])

    async def use_old() -> None:
        for _ in range(rounds):
            wanted = draw()
            columns = zip(
                *((o.request_id, o.owner, None, "m", 1, 1, 100, 1, 1, 0, 1_000_000, 10**9, True, None) for o in wanted), strict=True
            )
            await connection.fetch(_RESERVE_EACH, *columns, GATEWAY)
            requests = [one.request_id for one in wanted]
            await connection.fetch(_SETTLE_EACH, requests, [50] * len(requests), ["settled"] * len(requests))

    async with asyncio.TaskGroup() as tasks:
        for use in (use_new, use_new, use_old):
            tasks.create_task(use())
    deadlocks = await connection.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    await connection.close()
    assert deadlocks == 0
    report = await books.report()
    assert (report.findings, report.open_reservations) == ((), 0)


def _wanted(owner: UserId, request: RequestId, tokens: int, **more: Any) -> ReservationRequest:
    return msgspec.structs.replace(Books.wanted(owner, request, tokens), least_tokens=1, **({"monthly_micro": MicroCredits(10**9)} | more))
