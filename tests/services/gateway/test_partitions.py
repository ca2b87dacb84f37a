"""Partitions on a real PostgreSQL under row-level security: tables become partitioned without a copy, partitions are created and dropped,
and every filter of the request log uses an index."""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest

from services import gateway
from services.gateway import store as stores
from services.gateway.background_jobs import AHEAD_DAYS, Partitions
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.billing.reservations import NO_PLAN
from services.gateway.facts.request_record import RequestRow
from services.gateway.store import GatewayStore
from services.gateway.usage_store import DaysStore, UsageStore
from shared import context
from shared.api.usage_report import ListRequests
from shared.stores import database, migrations, queries
from shared.telemetry import Metrics
from shared.types import KeyId, MicroCredits, ModelName, RequestId, RequestStatus, Role, TenantId, UserId
from tests.stacks import until

ADA = UserId(UUID(int=1))
FOLDER = Path(gateway.__file__).parent
KNOWN = migrations.read(FOLDER / "migrations")
GROWING = ("request_logs", "reservations", "entries")
ROWS = 500
FILES = """
SELECT relname, pg_relation_filenode(oid) FROM pg_class
WHERE relnamespace = 'gateway'::regnamespace AND relkind IN ('r', 'i') AND relname ~ '^(request_logs|reservations|entries)'
"""
TABLES = """
SELECT relname FROM pg_class
WHERE relnamespace = 'gateway'::regnamespace AND relkind IN ('r', 'p') AND relname ~ '^(request_logs|reservations|entries)'
"""
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    found = await asyncpg.connect(url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})
    try:
        yield found
    finally:
        await found.close()


@pytest.fixture
async def connection(plain_url: str) -> AsyncIterator[asyncpg.Connection]:
    async with connected(plain_url) as found:
        yield found


@pytest.fixture
async def opened(plain_url: str) -> AsyncIterator[database.Database]:
    async with stores.opened(plain_url) as found:
        yield found


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(Role.GATEWAY)


def request_id_at(moment: datetime) -> RequestId:
    """Return a request id with this time, as gateways create them."""
    milliseconds = int(moment.timestamp() * 1000)
    return RequestId(UUID(int=(milliseconds << 80) | (context.new_request_id().int & ((1 << 80) - 1))))


def row(at: datetime, **changed: object) -> RequestRow:
    values: dict[str, object] = {
        "id": request_id_at(at), "user_id": ADA, "api_key_id": None, "prompt_hash": None, "model_used": ModelName("smollm2"),
        "response_time_ms": 5, "prompt_tokens": 1, "completion_tokens": 1, "status": RequestStatus.SUCCESS, "error_code": None,
        "created_at": at,
    }  # fmt: skip
    return RequestRow(**{**values, **changed})  # type: ignore[arg-type]


async def fill(connection: asyncpg.Connection) -> None:
    """Insert ROWS requests over two months, each paid, as the previous version did."""
    await connection.execute(
        "INSERT INTO prices (input_micro_per_million, output_micro_per_million, request_micro, compute_second_micro) VALUES (0, 0, 0, 0)"
    )
    moments = [datetime.now(UTC) - timedelta(hours=3 * number) for number in range(ROWS)]
    ids = [request_id_at(moment) for moment in moments]
    await connection.execute(
        "INSERT INTO request_logs (id, tenant_id, user_id, model_used, response_time_ms, tokens_used, prompt_tokens, completion_tokens,"
        " status, created_at) SELECT id, $3, $3, 'smollm2', 1, 2, 1, 1, 'success', at"
        " FROM unnest($1::uuid[], $2::timestamptz[]) AS given (id, at)",
        ids, moments, ADA,
    )  # fmt: skip
    await connection.execute(
        "INSERT INTO reservations (request_id, owner, model, price_id, state, reserved_micro, settled_micro, prompt_tokens,"
        " completion_tokens, gateway, lease_until, created_at, ended_at)"
        " SELECT id, $1, 'smollm2', 1, 'settled', 5, 5, 1, 1, 'g', created_at, created_at, created_at FROM request_logs",
        ADA,
    )
    await connection.execute(
        "INSERT INTO entries (transfer, kind, account, owner, amount_micro, at)"
        " SELECT id, 'usage', side.account, $1, side.amount, created_at"
        " FROM request_logs, (VALUES ('balance', -5), ('revenue', 5)) AS side (account, amount)",
        ADA,
    )
    await connection.execute("INSERT INTO accounts (owner, balance_micro) VALUES ($1, $2)", ADA, -5 * ROWS)


def before(number: int) -> list[migrations.Migration]:
    return [migration for migration in KNOWN if migration.number < number]


@pytest.mark.parametrize("tables_of", [None], ids=["empty"])
async def test_old_tables_become_the_first_partitions_without_copying(connection: asyncpg.Connection, plain_url: str) -> None:
    await migrations.run(connection, "gateway", before(11))
    await fill(connection)
    files = dict(await connection.fetch(FILES))
    last_id = await connection.fetchval("SELECT max(id) FROM entries")
    await migrations.run(connection, "gateway", KNOWN)
    now = dict(await connection.fetch(FILES))
    for name, file in files.items():
        if name == "entries_transfer_kind_account_key":
            continue
        renamed = [other for other in (f"{name}_first", f"{name}_of_first", name) if now.get(other) == file]
        assert renamed, f"{name} was written anew, or lost"
    async with stores.opened(plain_url) as opened:
        report = await LedgerStore(opened).verify(grace_seconds=60)
        assert (report.findings, report.entries) == ((), 2 * ROWS)
        young, again = row(datetime.now(UTC)), await connection.fetchval("SELECT id FROM request_logs LIMIT 1")
        await GatewayStore(opened).write_requests([young, row(datetime.now(UTC), id=again)])
        assert await connection.fetchval("SELECT count(*) FROM request_logs") == ROWS + 1, "one of the two existed already"
        ledger = LedgerStore(opened)
        transfer = await connection.fetchval("SELECT transfer FROM entries LIMIT 1")
        assert await ledger.top_up(transfer, TenantId(ADA), MicroCredits(5), "", NO_PLAN), "the same id in another kind is another transfer"
        assert not await ledger.top_up(transfer, TenantId(ADA), MicroCredits(5), "", NO_PLAN)
    assert await connection.fetchval("SELECT max(id) FROM entries") > last_id
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute(
            "INSERT INTO entries (transfer, kind, account, owner, amount_micro)"
            " SELECT transfer, kind, account, owner, 1 FROM entries_first LIMIT 1"
        )
    await connection.execute("SELECT set_config('aimesh.tenant', '', false)")
    tables = [name for (name,) in await connection.fetch(TABLES)]
    assert len(tables) == 9
    assert [await connection.fetchval(f"SELECT count(*) FROM {table}") for table in tables] == [0] * 9


@pytest.mark.parametrize("tables_of", [None], ids=["empty"])
async def test_a_migration_that_cannot_get_its_lock_blocks_nobody(connection: asyncpg.Connection, plain_url: str) -> None:
    await migrations.run(connection, "gateway", before(11))
    await fill(connection)
    async with connected(plain_url) as reader, connected(plain_url) as others, asyncio.TaskGroup() as tasks:
        report = reader.transaction()
        await report.start()
        await reader.fetchval("SELECT count(*) FROM request_logs")
        migrating = tasks.create_task(migrations.run(connection, "gateway", KNOWN))

        async def it_waits() -> bool:
            return bool(await others.fetchval(WAITING))

        for _ in range(3):
            await until(it_waits, seconds=30, what="the migration waits for the lock")
            # This query queues behind the migration's lock request.
            async with asyncio.timeout(30):
                assert await others.fetchval("SELECT count(*) FROM request_logs") == ROWS
        assert not migrating.done()
        await report.rollback()
    assert await connection.fetchval("SELECT count(*) FROM partitions WHERE name ~ '_first$'") == 3


@pytest.mark.parametrize("tables_of", [None], ids=["empty"])
async def test_waiting_migrations_do_not_block_a_concurrent_index_build(plain_url: str) -> None:
    async def start() -> None:
        async with stores.opened(plain_url):
            pass

    async with asyncio.timeout(60):
        await asyncio.gather(*(start() for _ in range(5)))


async def test_any_number_of_gateways_add_partitions_in_advance(
    opened: database.Database, connection: asyncpg.Connection, metrics: Metrics
) -> None:
    gateways = [Partitions(opened, metrics) for _ in range(4)]
    await asyncio.gather(*(one.extend() for one in gateways))
    await gateways[0].extend()
    bounds = await connection.fetch("SELECT parent, since, until FROM partitions ORDER BY parent, until")
    for parent in GROWING:
        own = [found for found in bounds if found["parent"] == parent]
        assert all(one["until"] == following["since"] for one, following in itertools.pairwise(own))
        assert own[-1]["until"] > datetime.now(UTC) + timedelta(days=AHEAD_DAYS)
    assert (metrics.registry.get_sample_value("ai_platform_partitions_ahead_seconds") or 0) >= AHEAD_DAYS * 86_400
    later = await connection.fetchrow("SELECT name, since FROM partitions WHERE parent = 'request_logs' ORDER BY until DESC LIMIT 1")
    await GatewayStore(opened).write_requests([row(later["since"])])
    assert await connection.fetchval("SELECT tableoid::regclass::text FROM request_logs") == later["name"]
    await connection.execute("SELECT set_config('aimesh.tenant', '', false)")
    assert await connection.fetchval(f"SELECT count(*) FROM {later['name']}") == 0, "row-level security applies to each partition too"


async def test_entries_that_arrive_before_their_partition_are_kept_and_moved(
    opened: database.Database, connection: asyncpg.Connection
) -> None:
    ends = dict(await connection.fetch("SELECT parent, until FROM partitions"))
    at = ends["entries"] + timedelta(days=2)
    transfer = uuid4()
    for account, amount in (("balance", 5), ("payments", -5)):
        await connection.execute(
            "INSERT INTO entries (transfer, kind, account, owner, amount_micro, at) VALUES ($1, 'top_up', $2, $3, $4, $5)",
            transfer, account, ADA, amount, at,
        )  # fmt: skip
    await connection.execute("INSERT INTO accounts (owner, balance_micro) VALUES ($1, 5)", ADA)
    await GatewayStore(opened).write_requests([row(ends["request_logs"] + timedelta(hours=1))])
    where = "SELECT DISTINCT tableoid::regclass::text FROM {}"
    assert [await connection.fetchval(where.format(table)) for table in ("entries", "request_logs")] == [
        "entries_default",
        "request_logs_default",
    ]
    while await opened.value("add_partition", 100):
        pass
    assert [(await connection.fetchval(where.format(table)))[-8:].isdigit() for table in ("entries", "request_logs")] == [True, True]
    assert (await LedgerStore(opened).verify(grace_seconds=60)).findings == ()
    assert not await LedgerStore(opened).top_up(RequestId(transfer), TenantId(ADA), MicroCredits(5), "", NO_PLAN)


async def test_entries_of_every_partition_are_immutable(
    opened: database.Database, connection: asyncpg.Connection, metrics: Metrics
) -> None:
    await Partitions(opened, metrics).extend()
    await LedgerStore(opened).top_up(RequestId(uuid4()), TenantId(ADA), MicroCredits(5), "", NO_PLAN)
    names = [name for (name,) in await connection.fetch("SELECT name FROM partitions WHERE parent = 'entries'")]
    for name in ("entries", "entries_default", "entry_keys", *names):
        with pytest.raises(asyncpg.RaiseError, match="never changed"):
            await connection.execute(f"TRUNCATE {name}")
    for statement in ("UPDATE entries SET amount_micro = 1", "DELETE FROM entries_first", "DELETE FROM entry_keys"):
        with pytest.raises(asyncpg.RaiseError, match="never changed"):
            await connection.execute(statement)


async def test_old_partitions_of_the_request_log_are_dropped_but_none_of_the_ledger(
    opened: database.Database, connection: asyncpg.Connection, metrics: Metrics
) -> None:
    await Partitions(opened, metrics).extend()
    now = datetime.now(UTC)
    await GatewayStore(opened).write_requests([row(now), row(now - timedelta(days=40))])
    # Pretend that all of it happened that long ago.
    names = dict(await connection.fetch("SELECT name, parent FROM partitions"))
    await connection.execute(
        "UPDATE partitions SET until = now() - interval '31 days' WHERE name = 'request_logs_first' OR parent <> 'request_logs'"
    )
    days = DaysStore(opened)
    partitions = Partitions(opened, metrics)
    await partitions.drop_old(30)
    assert dict(await connection.fetch("SELECT name, parent FROM partitions")) == names, "no day is summarized"
    await days.open_days()
    await connection.execute("UPDATE usage_rolls SET is_final = true, is_stale = false, rolled_at = now()")
    await asyncio.gather(*(partitions.drop_old(30) for _ in range(3)))
    await partitions.drop_old(30)
    left = dict(await connection.fetch("SELECT name, parent FROM partitions"))
    assert set(names) - set(left) == {"request_logs_first"}
    assert await connection.fetchval("SELECT count(*) FROM request_logs") == 0
    await GatewayStore(opened).write_requests([row(now)])
    assert await connection.fetchval("SELECT count(*) FROM request_logs") == 1


FILTERS = [
    pytest.param({}, "of_tenant", id="none"),
    pytest.param({"status": RequestStatus.ERROR}, "of_status", id="a rare status"),
    pytest.param({"status": RequestStatus.SUCCESS}, "of_(status|tenant)", id="a common status"),
    pytest.param({"model": ModelName("rare")}, "of_model", id="a rare model"),
    pytest.param({"key_id": KeyId(UUID(int=7))}, "of_key", id="a rare key"),
]


@pytest.mark.parametrize(("filtered_by", "index"), FILTERS)
async def test_every_filter_of_the_request_log_uses_an_index(
    opened: database.Database, connection: asyncpg.Connection, filtered_by: dict[str, object], index: str
) -> None:
    await connection.execute(
        "INSERT INTO request_logs (id, tenant_id, user_id, api_key_id, model_used, response_time_ms, tokens_used, prompt_tokens,"
        " completion_tokens, status, created_at)"
        " SELECT smallest_id(now() - n * interval '1 minute'), CASE WHEN n % 10 = 0 THEN $1::uuid ELSE gen_random_uuid() END, $1,"
        " CASE WHEN n % 1000 = 10 THEN $2::uuid ELSE gen_random_uuid() END, CASE WHEN n % 1000 = 20 THEN 'rare' ELSE 'smollm2' END,"
        " 1, 2, 1, 1, CASE WHEN n % 1000 = 30 THEN 'error' ELSE 'success' END, now() - n * interval '1 minute'"
        " FROM generate_series(1, 20000) AS n",
        ADA, UUID(int=7),
    )  # fmt: skip
    await connection.execute("ANALYZE request_logs")
    filters = ListRequests(**filtered_by)  # type: ignore[arg-type]
    found = await UsageStore(opened).requests(TenantId(ADA), filters)
    assert len(found) == (20 if filtered_by and filters.status is not RequestStatus.SUCCESS else filters.limit)
    arguments: Sequence[object] = (ADA, None, filters.status and filters.status.value, filters.model, filters.key_id, 50)
    async with connection.transaction():
        await connection.fetchval(queries.load(FOLDER / "queries" / "requests.sql")["plan_pages"].text)
        plan = "\n".join(
            line
            for (line,) in await connection.fetch(
                "EXPLAIN " + queries.load(FOLDER / "queries" / "requests.sql")["list_requests"].text, *arguments
            )
        )
    assert re.search(rf"Index Scan using request_logs_{index}_of_first", plan), plan
    assert not re.search(r"Seq Scan on request_logs_first|\bSort  ", plan.replace("Incremental Sort", "")), "a full page ends the scan"
