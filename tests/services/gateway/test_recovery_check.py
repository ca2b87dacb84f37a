"""The gateway's check of a restored database, run as the program that `aicli stack verify` starts."""

import asyncio
import sys
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from services.gateway import recovery_check, store
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.billing.reservations import NO_PLAN
from shared import features
from shared.stores.recovery_check import RecoveryCheck, RecoveryCheckFailed
from shared.types import MicroCredits, RequestId, TenantId

OWNER = TenantId(UUID(int=1))


@pytest.fixture
async def tables(plain_url: str) -> AsyncIterator[asyncpg.Connection]:
    async with store.opened(plain_url) as opened:
        ledger = LedgerStore(opened)
        await ledger.ensure_default_price(1, 1)
        for amount in (5, 7):
            await ledger.top_up(RequestId(uuid4()), OWNER, MicroCredits(amount), "", NO_PLAN)
    connection = await asyncpg.connect(plain_url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})
    yield connection
    await connection.close()


async def run(*words: str, **environment: str) -> tuple[int | None, bytes]:
    """Run the check with nothing else in its environment."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.gateway.recovery_check", *words, env=environment, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return process.returncode, output


async def test_it_needs_an_address_and_nothing_else(plain_url: str, tables: asyncpg.Connection) -> None:
    status, output = await run(DATABASE_URL=plain_url)
    found = msgspec.json.decode(output, type=RecoveryCheck)
    assert (status, found.failures, found.ledger_entries, found.ledger_micro) == (0, (), 4, 0)
    assert found.facts.rows["gateway.entries"] == 4
    assert found.facts.migration == await tables.fetchval("SELECT max(number) FROM migrations")


async def test_without_a_database_it_says_that_it_could_not_check() -> None:
    status, output = await run(DATABASE_URL="postgresql://gateway@/aimesh?host=/nowhere")
    assert (status, bool(msgspec.json.decode(output, type=RecoveryCheckFailed).error)) == (2, True)
    status, output = await run()
    assert status == 2
    assert "DATABASE_URL" in msgspec.json.decode(output, type=RecoveryCheckFailed).error


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("UPDATE accounts SET balance_micro = balance_micro + 1", "ledger: accounts differ from the sum of their entries by 1"),
        ("DELETE FROM entries WHERE amount_micro = -5", "ledger: all entries sum up to 5 micro-credits instead of 0"),
    ],
)
async def test_a_wrong_ledger_is_found(plain_url: str, tables: asyncpg.Connection, statement: str, finding: str) -> None:
    await tables.execute("ALTER TABLE entries DISABLE TRIGGER USER")
    await tables.execute(statement)
    found = await recovery_check.check(plain_url)
    assert any(failure.startswith(finding) for failure in found.failures), found.failures


async def test_reservations_of_gateways_that_are_gone_are_no_fault(plain_url: str, tables: asyncpg.Connection) -> None:
    """Every restored database has some: their gateways ran elsewhere."""
    await tables.execute(
        "INSERT INTO reservations"
        " (request_id, owner, model, price_id, reserved_micro, prompt_tokens, completion_tokens, gateway, lease_until)"
        " SELECT gen_random_uuid(), $1, 'm', id, 0, 1, 1, 'U', now() - interval '9 days' FROM prices",
        OWNER,
    )
    assert (await recovery_check.check(plain_url)).failures == ()


async def test_a_schema_of_a_newer_version_is_refused(plain_url: str, tables: asyncpg.Connection) -> None:
    feature = next(iter(features.known()))
    for name in ("gone", feature):
        await tables.execute("INSERT INTO feature_migrations (feature, number, name, sha256) VALUES ($1, 9999, '', '')", name)
        status, output = await run(DATABASE_URL=plain_url)
        assert status == (2 if name == feature else 0)
    assert f"has migration 9999 of {feature}" in msgspec.json.decode(output, type=RecoveryCheckFailed).error
    await tables.execute("DELETE FROM feature_migrations")
    await tables.execute("INSERT INTO migrations VALUES (9999, '9999_pre_future.sql', '')")
    status, output = await run(DATABASE_URL=plain_url)
    assert status == 2
    assert "has migration 9999" in msgspec.json.decode(output, type=RecoveryCheckFailed).error
