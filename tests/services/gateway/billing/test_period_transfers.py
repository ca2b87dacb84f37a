"""Transfers of an account's period have derived ids, so that the world is told of each once, also after a restore; on a real PostgreSQL."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from services.gateway.billing.reservations import Spending
from shared.types import MicroCredits, TenantId, UserId
from tests.services.gateway.billing.test_allowances import PLAN, fetch
from tests.services.gateway.billing.test_ledger_store import Books, books, new_owner

__all__ = ["books"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: With microseconds, as clocks have them.
BEGUN = datetime(2025, 10, 31, 23, 59, 59, 123457, tzinfo=UTC)


def transfer(what: str, owner: TenantId, period: datetime, ordinal: int) -> UUID:
    text = f"{what}/{(period - EPOCH) // timedelta(microseconds=1)}/{ordinal}/{owner}"
    return UUID(bytes=hashlib.sha256(text.encode()).digest()[:16])


async def owe(books: Books, owner: UserId, micro: int, *, begun: datetime = BEGUN) -> None:
    """Let the period that began then be over, and owe something."""
    await books.ledger.read_account(owner, PLAN)
    await fetch(
        books,
        "UPDATE accounts SET anchor = $2, period_start = $2, period_end = now(), balance_micro = $3 WHERE owner = $1",
        owner,
        begun,
        -micro,
    )


async def owed(books: Books, owner: UserId) -> list[Any]:
    return await fetch(books, "SELECT id, micro FROM owed WHERE owner = $1 ORDER BY at", owner)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata"])
async def test_sql_derives_what_python_derives(books: Books, zone: str) -> None:
    ada = UserId(UUID(int=7))
    for what, period, ordinal in (("charge", BEGUN, 0), ("charge", BEGUN, 12), ("grant", BEGUN.replace(microsecond=0), 0)):
        found = await fetch(books, "SELECT period_transfer($1, $2, $3, $4)", what, ada, period, ordinal, zone=zone)
        assert found == [(transfer(what, ada, period, ordinal),)]
    (literal,) = await fetch(books, "SELECT period_transfer('charge', $1, $2, 0)::text", ada, BEGUN, zone=zone)
    assert literal == ("4cbd58e5-6367-60a6-9700-d6302c23743d",), "providers know charges by it"


async def test_a_period_that_ends_again_after_a_restore_is_charged_under_the_same_id(books: Books) -> None:
    """The rollback is the restore: the database forgets that the period has ended."""
    ada = new_owner()
    await owe(books, ada, 300)
    connection = await asyncpg.connect(books.url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})
    lost = connection.transaction()
    await lost.start()
    await connection.execute("SELECT open_account($1, 1000, true)", ada)
    told = await connection.fetchval("SELECT id FROM owed WHERE owner = $1", ada)
    await lost.rollback()
    await connection.close()
    assert await owed(books, ada) == []
    # Meanwhile, it used more.
    await fetch(books, "UPDATE accounts SET balance_micro = -500 WHERE owner = $1", ada)
    await books.ledger.read_account(ada, PLAN)
    assert await owed(books, ada) == [(told, 500)] == [(transfer("charge", ada, BEGUN, 0), 500)]


async def test_a_period_that_ends_twice_has_two_charges(books: Books) -> None:
    """A provider's anchor that moves to and fro can do that. An end without a debt is no charge, and takes no ordinal of theirs."""
    ada = new_owner()
    for micro in (0, 300, 0, 300, 40):
        await owe(books, ada, micro)
        await books.ledger.read_account(ada, PLAN)
    expected = [(transfer("charge", ada, BEGUN, ordinal), micro) for ordinal, micro in enumerate((300, 300, 40))]
    assert await owed(books, ada) == expected
    charges = await fetch(books, "SELECT transfer, amount_micro FROM entries WHERE kind = 'invoice' AND account = 'balance' ORDER BY id")
    assert charges == expected


async def test_each_grant_of_a_period_has_an_id_of_its_own(books: Books) -> None:
    """Changes to larger plans."""
    ada = new_owner()
    for included in (100, 100, 1000, 5000):
        await books.ledger.read_account(ada, Spending(included, MicroCredits(0), has_plan=True))
    ((begun,),) = await fetch(books, "SELECT period_start FROM accounts WHERE owner = $1", ada)
    grants = await fetch(books, "SELECT transfer, amount_tokens FROM entries WHERE kind = 'grant' AND account = 'allowance' ORDER BY id")
    assert grants == [(transfer("grant", ada, begun, ordinal), tokens) for ordinal, tokens in enumerate((100, 900, 4000))]
    assert (await books.report()).findings == ()
