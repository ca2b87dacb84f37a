"""Verify, roll up, list and reserve with ten million requests in the gateway's tables.

    python -m bench.growth [--quick] [--requests 10000000] [--days 30] [--seconds 10] [--json FILE]

PostgreSQL is real, and the gateway's own stores use a role with row-level security. SQL makes the requests without waiting for the disk, as
the first partitions of their tables, as after an upgrade. One organization has a third of them, and half of them cost something. During
the measurements every commit reaches the disk.
"""

import asyncio
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from datetime import time as datetime_time
from uuid import UUID

import asyncpg

from bench import calls, report
from services.gateway import store
from services.gateway.billing.checkpoint_store import CheckpointStore
from services.gateway.billing.checkpoints import CheckpointSigner
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.billing.request_record import RequestRow, ReservationState
from services.gateway.billing.reservations import ReservationRequest
from services.gateway.reports.days_store import DaysStore
from services.gateway.reports.usage_store import UsageStore
from services.gateway.store import GatewayStore
from shared import context, errors
from shared.api.usage_report import ListRequests
from shared.stores import database
from shared.types import KeyId, MeshName, MicroCredits, ModelName, NodeId, RequestId, RequestStatus, TenantId, UserId
from tests.servers import PostgresServer, running

HOT = UserId(UUID(int=1))
WRITERS = 20
PAGE = 50
_GATEWAY = NodeId("U" * 56)
_PLENTY = MicroCredits(10**15)
_TABLES = ("request_logs", "reservations", "entries")
#: Each table is detached and has no indexes while it is filled; they are built afterwards, as in a restore.
_FILL = {
    "request_logs": """
        INSERT INTO request_logs_first (id, tenant_id, user_id, api_key_id, prompt_hash, model_used, response_time_ms, tokens_used,
            prompt_tokens, completion_tokens, status, created_at, cost_micro)
        SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(noise, 1, 3) || '8'
            || substr(noise, 4, 15))::uuid, owner, owner,
            ('00000000-0000-4000-8000-' || lpad(to_hex(n % 50), 12, '0'))::uuid, noise || noise,
            CASE WHEN n % 100000 = 3 THEN 'rare' ELSE 'model-' || n % 4 END, 100 + n % 5000, 300, 10, 290,
            CASE WHEN n % 100000 = 6 THEN 'timeout' WHEN n % 100 = 0 THEN 'error' ELSE 'success' END, at,
            CASE n % 2 WHEN 0 THEN 300 ELSE 0 END
        FROM (
            SELECT n, md5(n::text) AS noise, $2::timestamptz - n * ($3::interval / $1) AS at,
                ('00000000-0000-0000-0000-' || lpad(to_hex(CASE n % 3 WHEN 0 THEN 1 ELSE 2 + n % 1000 END), 12, '0'))::uuid AS owner
            FROM generate_series($1::integer, 1, -1) AS n
        ) AS made""",
    "reservations": """
        INSERT INTO reservations_first (request_id, owner, key_id, model, price_id, state, reserved_micro, settled_micro, prompt_tokens,
            completion_tokens, gateway, lease_until, created_at, ended_at)
        SELECT id, tenant_id, api_key_id, model_used, 1, CASE WHEN cost_micro > 0 THEN 'settled' ELSE 'released' END,
            500, cost_micro, 10, 500, 'g', created_at, created_at, created_at
        FROM request_logs_first""",
    "entries": """
        INSERT INTO entries_first (id, transfer, kind, account, owner, amount_micro, at)
        SELECT 2 * row_number() OVER () + side.place, id, 'usage', side.account, tenant_id,
            side.place * cost_micro - (1 - side.place) * cost_micro, created_at
        FROM request_logs_first, (VALUES ('balance', 0), ('revenue', 1)) AS side (account, place)
        WHERE cost_micro > 0""",
}


async def _measure(table: report.Table, requests: int, days: int, seconds: float) -> None:
    with running(lambda folder: PostgresServer(folder, durable=True)) as postgres:
        table.add(await _measure_tables(postgres, requests, days, seconds))


async def _measure_tables(postgres: PostgresServer, requests: int, days: int, seconds: float) -> list[report.Row]:
    async with postgres.plain_role(postgres.url()) as url, store.opened(url) as opened:
        loaded = await calls.seconds_of(lambda: _fill(postgres.url(), requests, days))
        print(f"{requests:,} requests of {days} days were made in {loaded:.0f} s", flush=True)
        checkpoints = CheckpointStore(opened, CheckpointSigner("a secret of the bench", MeshName("bench")))
        ledger = LedgerStore(opened, checkpoints)
        closing = await calls.seconds_of(checkpoints.close_days)
        print(f"its days were closed in {closing:.0f} s", flush=True)
        return [
            report.alone("making the requests and their indexes", loaded, "s"),
            report.alone("a checkpoint, mean of all days", 1000 * closing / days, "ms"),
            *await _measure_verify(ledger),
            *await _measure_roll(opened),
            *await _measure_pages(opened),
            *await _measure_reserve(url, seconds),
            *await _measure_books(ledger),
        ]


async def _fill(admin_url: str, requests: int, days: int) -> None:
    """Run as a superuser, because triggers and row-level security would slow down each row."""
    admin = await asyncpg.connect(admin_url, server_settings={"search_path": "gateway", "session_replication_role": "replica"})
    try:
        for setting in ("fsync = off", "max_wal_size = '16GB'", "maintenance_work_mem = '512MB'", "autovacuum = off"):
            await admin.execute(f"ALTER SYSTEM SET {setting}")
        await admin.execute("SELECT pg_reload_conf()")
        await admin.execute("INSERT INTO prices (input_micro_per_million, output_micro_per_million, request_micro, compute_second_micro)"
                            " VALUES (0, 1000000, 0, 0)")  # fmt: skip
        for table in _TABLES:
            indexes = await _lay_bare(admin, table)
            # The open day is always a whole one.
            midnight = datetime.combine(datetime.now(UTC).date() + timedelta(days=1), datetime_time(), UTC)
            arguments = (requests, midnight, timedelta(days=days)) if table == "request_logs" else ()
            await admin.execute(_FILL[table], *arguments, timeout=3600)
            print(f"{table} is filled", flush=True)
            await _attach(admin, table, indexes)
            print(f"{table} has its indexes", flush=True)
        await admin.execute("SELECT setval(pg_get_serial_sequence('entries', 'id'), (SELECT max(id) FROM entries))")
        await admin.execute("ALTER TABLE entry_keys DROP CONSTRAINT entry_keys_pkey")
        await admin.execute("INSERT INTO entry_keys SELECT transfer, kind, account FROM entries", timeout=3600)
        await admin.execute("ALTER TABLE entry_keys ADD PRIMARY KEY (transfer, kind, account)", timeout=3600)
        await admin.execute(
            "INSERT INTO accounts (owner, balance_micro)"
            " SELECT owner, sum(amount_micro) FROM entries WHERE account = 'balance' GROUP BY owner"
        )
        # All days but yesterday are rolled up.
        await admin.execute(
            "INSERT INTO usage_rolls (day, is_stale, rolled_at)"
            " SELECT day::date, day = today - 1, CASE WHEN day < today - 1 THEN now() END"
            " FROM (SELECT (now() AT TIME ZONE 'UTC')::date) AS known (today),"
            " LATERAL generate_series((today - $1::integer)::timestamp, (today - 1)::timestamp, '1 day') AS day",
            days,
        )
        for name in ("fsync", "autovacuum"):
            await admin.execute(f"ALTER SYSTEM RESET {name}")
        await admin.execute("SELECT pg_reload_conf()")
        await admin.execute("VACUUM ANALYZE", timeout=3600)
        await admin.execute("CHECKPOINT", timeout=3600)
    finally:
        await admin.close()


async def _lay_bare(admin: asyncpg.Connection, table: str) -> list[str]:
    """Detach the first partition and drop its indexes. Return the statements that make them again."""
    first = f"{table}_first"
    await admin.execute(f"ALTER TABLE {table} DETACH PARTITION {first}")
    found = await admin.fetch(
        "SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition, conname,"
        " pg_get_constraintdef(pg_constraint.oid) AS rule"
        " FROM pg_index LEFT JOIN pg_constraint ON conindid = indexrelid AND conrelid = indrelid WHERE indrelid = $1::regclass",
        first,
    )
    made = []
    for index in found:
        if index["conname"]:
            await admin.execute(f"ALTER TABLE {first} DROP CONSTRAINT {index['conname']}")
            made.append(f"ALTER TABLE {first} ADD {index['rule']}")
        else:
            await admin.execute(f"DROP INDEX {index['name']}")
            made.append(index["definition"])
    return made


async def _attach(admin: asyncpg.Connection, table: str, indexes: list[str]) -> None:
    for index in indexes:
        await admin.execute(index, timeout=3600)
    bounds = await admin.fetchval("SELECT partition_bounds(parent, since, until) FROM partitions WHERE name = $1", f"{table}_first")
    await admin.execute(f"ALTER TABLE {table} ATTACH PARTITION {table}_first {bounds}", timeout=3600)


async def _measure_verify(ledger: LedgerStore) -> list[report.Row]:
    took = [await calls.seconds_of(lambda: ledger.verify(grace_seconds=120)) for _ in range(3)]
    books = await ledger.verify(grace_seconds=120)
    return [
        report.alone("verifying the open day, slowest of 3", max(took), "s", at_most=5),
        report.alone("entries that it answers for", books.entries, "entries"),
        report.alone("findings", len(books.findings), "findings", at_most=0),
    ]


async def _measure_roll(opened: database.Database) -> list[report.Row]:
    days = DaysStore(opened)
    return [
        report.alone("rolling up a whole day that is over, 24 hours one by one", await calls.seconds_of(days.roll_one), "s", at_most=10)
    ]


async def _measure_pages(opened: database.Database) -> list[report.Row]:
    usage, now = UsageStore(opened), datetime.now(UTC)
    pages: dict[str, ListRequests] = {
        "newest": ListRequests(limit=PAGE),
        "10 days back": ListRequests(limit=PAGE, before=now - timedelta(days=10)),
        "a rare status": ListRequests(limit=PAGE, status=RequestStatus.TIMEOUT),
        "a common status": ListRequests(limit=PAGE, status=RequestStatus.ERROR),
        "a status that nothing has": ListRequests(limit=PAGE, status=RequestStatus.CANCELLED),
        "a rare model": ListRequests(limit=PAGE, model=ModelName("rare")),
        "a model that nothing has": ListRequests(limit=PAGE, model=ModelName("unknown")),
        "one key": ListRequests(limit=PAGE, key_id=KeyId(UUID("00000000-0000-4000-8000-000000000007"))),
        "a rare status of a common model": ListRequests(limit=PAGE, status=RequestStatus.TIMEOUT, model=ModelName("model-2")),
        "a rare model of one key": ListRequests(
            limit=PAGE, model=ModelName("rare"), key_id=KeyId(UUID("00000000-0000-4000-8000-000000000003"))
        ),
    }
    rows = []
    for name, asked in pages.items():
        took = [await calls.seconds_of(lambda asked=asked: usage.requests(TenantId(HOT), asked)) for _ in range(5)]  # type: ignore[misc]
        rows.append(report.alone(f"a page of {PAGE} of the large organization, {name}: slowest of 5", 1000 * max(took), "ms", at_most=300))
    took = [await calls.seconds_of(lambda: usage.requests_behind(TenantId(HOT), now - timedelta(days=9), None, 500)) for _ in range(3)]
    return [*rows, report.alone("a page of 500 of its export: slowest of 3", 1000 * max(took), "ms", at_most=300)]


async def _measure_reserve(url: str, seconds: float) -> list[report.Row]:
    """Writers of two gateways, with enough connections, so that they wait only for the one account."""
    took: list[float] = []
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(store.opened(url)) for _ in range(2)]
        # The first second does not count: connections are made in it.
        begun = time.perf_counter() + 1
        until = begun + seconds

        async def writer(number: int) -> None:
            ledger, requests = LedgerStore(opened[number % 2]), GatewayStore(opened[number % 2])
            while time.perf_counter() < until:
                request = context.new_request_id()
                began = time.perf_counter()
                try:
                    await ledger.reserve([_wanted(request)], gateway=_GATEWAY, lease_seconds=90)
                    held = True
                except errors.Unavailable:  # after two seconds; a gateway retries
                    held = False
                if began > begun:
                    took.append(time.perf_counter() - began)
                if held:
                    await requests.write_requests([_row(request)])

        async with asyncio.TaskGroup() as tasks:
            for number in range(WRITERS):
                tasks.create_task(writer(number))
    of_all = f"reserve for one organization, {WRITERS} writers"
    return [
        report.alone(f"{of_all}: p50", 1000 * report.percentile(took, 0.5), "ms"),
        report.alone(f"{of_all}: p99", 1000 * report.percentile(took, 0.99), "ms", at_most=300),
        report.alone(f"{of_all}: each settled, too", len(took) / seconds, "requests/s"),
    ]


async def _measure_books(ledger: LedgerStore) -> list[report.Row]:
    books = await ledger.verify(grace_seconds=120)
    return [report.alone("findings afterwards", len(books.findings), "findings", at_most=0)]


def _wanted(request: RequestId) -> ReservationRequest:
    return ReservationRequest(
        request_id=request, owner=TenantId(HOT), key_id=None, model=ModelName("model-1"), price_id=1, prompt_tokens=10, max_tokens=500,
        least_tokens=16, answers=1, fixed_micro=MicroCredits(0), micro_per_million=1_000_000, monthly_micro=_PLENTY, key_budget_micro=None,
    )  # fmt: skip


def _row(request: RequestId) -> RequestRow:
    return RequestRow(
        id=request, user_id=HOT, api_key_id=None, prompt_hash=None, model_used=ModelName("model-1"), response_time_ms=10,
        prompt_tokens=10, completion_tokens=290, status=RequestStatus.SUCCESS, error_code=None, created_at=datetime.now(UTC),
        cost_micro=MicroCredits(300), reservation=ReservationState.SETTLED,
    )  # fmt: skip


if __name__ == "__main__":
    report.run(__doc__, _measure, limits=(7200.0, 300.0), requests=(10_000_000, 200_000), days=(30, 30), seconds=(10.0, 3.0))
