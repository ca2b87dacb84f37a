"""The audit log as a trail: acts in their own transactions, refusals soon after, and no loss while PostgreSQL is down."""

import pytest

from services.auth.audit.audit_log import AuditLog
from services.auth.audit.audit_store import AuditStore
from shared import errors
from shared.api.audit import Result
from tests.clocks import Clock
from tests.servers import PostgresServer
from tests.services.auth.audit.deeds import act, all_rows, refusal


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(rows: AuditStore, clock: Clock) -> AuditLog:
    return AuditLog(rows, clock=clock)


async def test_an_action_is_logged_when_its_transaction_commits(log: AuditLog, rows: AuditStore) -> None:
    async with rows.transaction() as transaction:
        await log.add(transaction, act(1))
        await log.add(transaction, act(2))
        assert await all_rows(rows) == [], "nobody else sees it before"
    assert [row.act for row in await all_rows(rows)] == [act(1), act(2)]


async def test_refusals_are_written_together(log: AuditLog, rows: AuditStore) -> None:
    for number in range(1000):
        log.note(refusal(number))
    log.note(refusal(0, target="another"))
    await log.write()
    assert [(row.act.target, row.act.times) for row in await all_rows(rows)] == [("", 1), ("another", 1), ("", 999)]
    assert {row.act.result for row in await all_rows(rows)} == {Result.REFUSED}
    await log.write()
    assert len(await all_rows(rows)) == 3


async def test_excess_refusals_are_counted_without_waiting(log: AuditLog, rows: AuditStore, clock: Clock) -> None:
    for number in range(10_000):
        clock.now = number / 1_000
        log.note(refusal(0, target=str(number)))
    await log.write()
    written = [row.act for chain in await rows.chains() for row in await all_rows(rows, chain)]
    assert sum(one.times for one in written) == 10_000
    (overflow,) = [one for one in written if one.action == "audit.overflow"]
    assert (overflow.result, overflow.times) == (Result.FAILED, 10_000 - len(written) + 1)


async def test_refusals_wait_while_postgresql_is_down(log: AuditLog, rows: AuditStore, postgres: PostgresServer) -> None:
    log.note(refusal(1))
    postgres.stop()
    try:
        log.note(refusal(2, target="another"))
        await log.write()
        with pytest.raises(errors.Unavailable, match="PostgreSQL does not answer"):
            await all_rows(rows)
    finally:
        postgres.ensure_running()
    await log.write()
    assert [row.act.request_id for row in await all_rows(rows)] == ["r1", "r2"]
