"""The audit log's tables on a real PostgreSQL: one chain without gaps or forks under concurrent writers, and no row ever changes."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from services.auth import store
from services.auth.audit.audit_store import AuditQuery, AuditStore
from services.auth.audit.verification import Verification
from shared import audit_chain
from shared.api.audit import Result
from shared.types import TenantId, UserId
from tests import tiers
from tests.cases import case
from tests.services.auth import by_hand
from tests.services.auth.audit.deeds import ALICE, BEGIN, TENANT, act, all_rows, fill, superuser

BOB = UserId(UUID(int=2))
OTHER = TenantId(UUID(int=8))


async def test_a_row_is_read_back_as_written(rows: AuditStore) -> None:
    await fill(rows, act(1), act(2, address="", details={}), act(3, tenant_id=None, actor=None))
    first, second = await all_rows(rows)
    assert (first.act, second.act) == (act(1), act(2, address="", details={}))
    assert (first.sequence, second.sequence, second.prev_hash) == (1, 2, first.hash)
    assert (bool(first.salt), second.salt, second.details_digest, second.erased) == (True, "", "", False)
    (of_mesh,) = await all_rows(rows, audit_chain.PLATFORM_CHAIN)
    assert (of_mesh.act, of_mesh.sequence) == (act(3, tenant_id=None, actor=None), 1)
    assert await rows.chains() == (str(TENANT), audit_chain.PLATFORM_CHAIN)


async def test_a_rolled_back_action_leaves_no_row(rows: AuditStore, verification: Verification) -> None:
    await fill(rows, act(1))
    with pytest.raises(ZeroDivisionError):
        async with rows.transaction() as transaction:
            await rows.append(transaction, [act(2)])
            _ = 1 // 0
    await fill(rows, act(3))
    assert [row.act.target for row in await all_rows(rows)] == ["key 1", "key 3"]
    assert (await verification.report(None)).is_whole


async def test_two_replicas_add_concurrent_entries_without_gaps_or_forks(
    rows: AuditStore, verification: Verification, postgres_url: str
) -> None:
    each = tiers.volume(50)
    total = 20 * each
    async with store.opened(postgres_url) as database:
        replicas = (rows, AuditStore(database))

        async def adds(start: int) -> None:
            for number in range(start, start + each):
                await fill(replicas[number % 2], act(number))

        async with asyncio.TaskGroup() as tasks:
            for start in range(0, total, each):
                tasks.create_task(adds(start))
    found = await all_rows(rows)
    assert [row.sequence for row in found] == list(range(1, total + 1))
    assert {row.act.target for row in found} == {f"key {number}" for number in range(total)}
    report = await verification.report(None)
    assert (report.is_whole, [state.rows for state in report.chains]) == (True, [total])


async def test_concurrent_writers_create_one_first_row(rows: AuditStore) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(fill(rows, act(number)))
    assert [row.sequence for row in await all_rows(rows)] == list(range(1, 21))


async def test_writes_to_several_chains_do_not_deadlock(rows: AuditStore) -> None:
    pair = [act(1), act(1, tenant_id=OTHER), act(1, tenant_id=None)]
    async with asyncio.TaskGroup() as tasks:
        for _ in range(10):
            tasks.create_task(fill(rows, *pair))
            tasks.create_task(fill(rows, *reversed(pair)))
    assert len(await all_rows(rows, str(OTHER))) == 20


async def test_too_long_or_invalid_values_are_truncated_and_not_refused(rows: AuditStore, verification: Verification) -> None:
    strange = act(1, target="a\0b" * 1000, action="x" * 1000, details={"\0k": "\ud800", **{str(n): "v" for n in range(99)}}, times=2**40)
    await fill(rows, strange, act(2, at=BEGIN.replace(tzinfo=None), times=0))
    first, second = await all_rows(rows)
    assert first.act.target.startswith("abab")
    assert (len(first.act.target) < 501, len(first.act.action), len(first.act.details)) == (True, 100, 20)
    assert (first.act.details["k"], first.act.times) == ("?", 2**31 - 1)
    assert (second.act.at, second.act.times) == (BEGIN, 1)
    assert (await verification.report(None)).is_whole


async def test_rows_cannot_be_changed(rows: AuditStore, postgres_url: str) -> None:
    await fill(rows, act(1))
    for statement in (
        "UPDATE auth.audit_log SET target = 'x'",
        "DELETE FROM auth.audit_log",
        "TRUNCATE auth.audit_log",
        "UPDATE auth.audit_details SET address = 'x'",
        "TRUNCATE auth.audit_details",
        "DELETE FROM auth.audit_heads",
        "TRUNCATE auth.audit_heads",
        "UPDATE auth.audit_anchors SET sequence = 1",
        "DELETE FROM auth.audit_anchors",
        "TRUNCATE auth.audit_anchors",
    ):
        with case(statement), pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
            await by_hand.run(postgres_url, statement)


# --- visibility ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def somebody(rows: AuditStore, postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A role that is not a superuser, so row-level security applies to it."""
    role = f"reader_{secrets.token_hex(4)}"
    async with superuser(postgres_url) as connection:
        await connection.execute(f"CREATE ROLE {role}")
        await connection.execute(f"GRANT USAGE ON SCHEMA auth TO {role}")
        await connection.execute(f"GRANT SELECT, INSERT, DELETE ON ALL TABLES IN SCHEMA auth TO {role}")
        await connection.execute(f"SET ROLE {role}")
        yield connection
        await connection.execute("RESET ROLE")
        await connection.execute(f"DROP OWNED BY {role}")
        await connection.execute(f"DROP ROLE {role}")


@pytest.mark.parametrize(
    ("tenant", "seen"),
    [pytest.param("*", 4, id="the service"), pytest.param(str(TENANT), 2, id="its tenant"), pytest.param("", 0, id="somebody else")],
)
async def test_a_tenant_sees_its_own_rows(rows: AuditStore, somebody: asyncpg.Connection, tenant: str, seen: int) -> None:
    await fill(rows, act(1), act(2), act(3, tenant_id=OTHER), act(4, tenant_id=None))
    await somebody.execute("SELECT set_config('aimesh.tenant', $1, false)", tenant)
    assert await somebody.fetchval("SELECT count(*) FROM audit_log") == seen
    assert await somebody.fetchval("SELECT count(*) FROM audit_details") == seen
    assert await somebody.execute("DELETE FROM audit_details") == f"DELETE {seen}"


async def test_a_transaction_bound_to_a_tenant_can_still_add_to_the_platform_chain(rows: AuditStore) -> None:
    async with rows._db.bound(TENANT) as transaction:
        await rows.append(transaction, [act(1), act(2, tenant_id=None)])
    assert len(await all_rows(rows, audit_chain.PLATFORM_CHAIN)) == 1


# --- reading ---------------------------------------------------------------------------------------------------------


async def numbers(rows: AuditStore, asked: AuditQuery, limit: int = 100) -> list[int]:
    return [int(row.act.target.removeprefix("key ")) for row in await rows.list_rows(asked, limit)]


async def test_rows_are_found_by_their_fields(rows: AuditStore) -> None:
    await fill(
        rows,
        act(1),
        act(2, action="key.revoke", actor=BOB),
        act(3, action="keyboard", result=Result.REFUSED),
        act(4, tenant_id=None, action="node.approve"),
    )
    assert await numbers(rows, AuditQuery()) == [4, 3, 2, 1]
    assert await numbers(rows, AuditQuery(chain=str(TENANT))) == [3, 2, 1]
    assert await numbers(rows, AuditQuery(chain=audit_chain.PLATFORM_CHAIN)) == [4]
    assert await numbers(rows, AuditQuery(actor=BOB)) == [2]
    assert await numbers(rows, AuditQuery(action="key")) == [2, 1]
    assert await numbers(rows, AuditQuery(action="key.revoke")) == [2]
    assert await numbers(rows, AuditQuery(result=Result.REFUSED)) == [3]
    assert await numbers(rows, AuditQuery(since=BEGIN + timedelta(seconds=3))) == [4, 3]
    assert await numbers(rows, AuditQuery(before=BEGIN + timedelta(seconds=3))) == [2, 1]
    assert await numbers(rows, AuditQuery(), limit=2) == [4, 3]


async def test_paging_continues_where_it_ended_even_with_equal_times(rows: AuditStore) -> None:
    await fill(rows, *(act(number, at=BEGIN + timedelta(seconds=number // 3)) for number in range(30)))
    seen: list[int] = []
    before = None
    while page := await rows.list_rows(AuditQuery(before=before), 4):
        seen += [int(row.act.target.removeprefix("key ")) for row in page]
        before = page[-1].act.at
    assert sorted(seen) == list(range(30))


async def test_a_long_chain_is_read_in_pages(rows: AuditStore) -> None:
    await fill(rows, *(act(number) for number in range(1200)))
    pages = [len(page) async for page in rows.read_chain(str(TENANT), after=100, until=1150)]
    assert pages == [500, 500, 50]


# --- erasing ---------------------------------------------------------------------------------------------------------


async def test_erasing_details_keeps_the_chain_intact(rows: AuditStore, verification: Verification, postgres_url: str) -> None:
    await fill(rows, *(act(number) for number in range(10)))
    assert await rows.shred_before(BEGIN + timedelta(seconds=4)) == 4
    found = await all_rows(rows)
    assert [row.erased for row in found] == [True] * 4 + [False] * 6
    assert (found[0].act.address, found[0].act.details, found[0].salt, found[0].act.target) == ("", {}, "", "key 0")
    assert found[4].act.address == "203.0.113.9"
    assert (await verification.report(None)).is_whole
    assert await by_hand.value(postgres_url, "SELECT count(*) FROM auth.audit_details") == 6


async def test_one_persons_details_are_erased(rows: AuditStore, verification: Verification) -> None:
    await fill(rows, act(1), act(2, actor=BOB), act(3, tenant_id=OTHER), act(4, tenant_id=None, actor=None))
    async with rows.transaction() as transaction:
        assert await rows.shred_of(transaction, ALICE) == 2
    assert [row.erased for row in await all_rows(rows)] == [True, False]
    assert [row.erased for row in await all_rows(rows, str(OTHER))] == [True]
    assert [row.erased for row in await all_rows(rows, audit_chain.PLATFORM_CHAIN)] == [False]
    assert (await verification.report(None)).is_whole
