"""Verify, roll up, list and reserve with ten million requests in the gateway's tables.

PostgreSQL is real, and the gateway's own stores use a role with row-level security. The statements of growth.sql make the requests without
waiting for the disk, as the first partitions of their tables, as after an upgrade. One organization has a third of them, and half of them
cost something. During the measurements every commit reaches the disk.
"""

import itertools
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from datetime import time as datetime_time
from functools import partial
from pathlib import Path
from uuid import UUID

import asyncpg

from bench import calls, report
from bench.calls import Call
from bench.ledger import reservation_of, row_of
from bench.report import Options, Rows
from services.gateway import store
from services.gateway.billing.checkpoint_store import CheckpointStore
from services.gateway.billing.checkpoints import CheckpointSigner
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.store import GatewayStore
from services.gateway.usage_store import DaysStore, UsageStore
from shared import context, errors
from shared.api.usage_report import ListRequests
from shared.stores import queries
from shared.types import KeyId, MeshName, ModelName, RequestStatus, TenantId, UserId
from tests.servers import PostgresServer, running
from tests.services.gateway.billing.test_ledger_store import GATEWAY

HOT = UserId(UUID(int=1))
WRITERS = 20
#: Each table is detached and has no indexes while it is filled; they are built afterwards, as in a restore.
TABLES = ("request_logs", "reservations", "entries")

_SQL = {name: query.text for name, query in queries.load(Path(__file__).with_suffix(".sql")).items()}


async def _measure(rows: Rows, _shared: None, options: Options) -> None:
    with running(partial(PostgresServer, durable=True)) as postgres:
        async with postgres.plain_role(postgres.url()) as url, store.opened(url) as opened:
            await _fill(postgres.url(), options.requests, options.days)
            checkpoints = CheckpointStore(opened, CheckpointSigner("a secret of the bench", MeshName("bench")))
            await checkpoints.close_days()
            ledger = LedgerStore(opened, checkpoints)
            slowest = await _slowest_of(3, lambda: ledger.verify(grace_seconds=120))
            books = await ledger.verify(grace_seconds=120)
            rows.alone("verifying the open day, slowest of 3", slowest, "s", at_most=5)
            rows.alone("findings", len(books.findings), "findings", at_most=0)
            rolling = await calls.seconds_of(DaysStore(opened).roll_one)
            rows.alone("rolling up a whole day that is over, 24 hours one by one", rolling, "s", at_most=10)
            await _measure_pages(rows, UsageStore(opened))
            await _measure_reserve(rows, url, options.seconds)
            books = await ledger.verify(grace_seconds=120)
            rows.alone("findings afterwards", len(books.findings), "findings", at_most=0)


async def _fill(admin_url: str, requests: int, days: int) -> None:
    """Run as a superuser, because triggers and row-level security would slow down each row."""
    admin = await asyncpg.connect(
        admin_url, command_timeout=3600, server_settings={"search_path": "gateway", "session_replication_role": "replica"}
    )
    try:
        for setting in ("fsync = off", "max_wal_size = '16GB'", "maintenance_work_mem = '512MB'", "autovacuum = off"):
            await admin.execute(f"ALTER SYSTEM SET {setting}")
        await admin.execute("SELECT pg_reload_conf()")
        await admin.execute(_SQL["make_price"])
        # The open day is always a whole one.
        midnight = datetime.combine(datetime.now(UTC).date() + timedelta(days=1), datetime_time(), UTC)
        for table in TABLES:
            arguments = (requests, midnight, timedelta(days=days)) if table == "request_logs" else ()
            await _fill_partition(admin, table, *arguments)
            print(f"{table} is filled and has its indexes", flush=True)
        for name in ("continue_entries", "unguard_entries", "fill_entry_keys", "guard_entries", "fill_accounts"):
            await admin.execute(_SQL[name])
        await admin.execute(_SQL["fill_usage_rolls"], days)
        for name in ("fsync", "autovacuum"):
            await admin.execute(f"ALTER SYSTEM RESET {name}")
        for statement in ("SELECT pg_reload_conf()", "VACUUM ANALYZE", "CHECKPOINT"):
            await admin.execute(statement)
    finally:
        await admin.close()


async def _fill_partition(admin: asyncpg.Connection, table: str, *arguments: object) -> None:
    """Detach the first partition, drop its indexes, fill it, make its indexes again, and attach it."""
    first, remade = f"{table}_first", []
    await admin.execute(f"ALTER TABLE {table} DETACH PARTITION {first}")
    for index in await admin.fetch(_SQL["list_indexes"], first):
        if index["conname"]:
            await admin.execute(f"ALTER TABLE {first} DROP CONSTRAINT {index['conname']}")
            remade.append(f"ALTER TABLE {first} ADD {index['rule']}")
        else:
            await admin.execute(f"DROP INDEX {index['name']}")
            remade.append(index["definition"])
    await admin.execute(_SQL[f"fill_{table}"], *arguments)
    for statement in remade:
        await admin.execute(statement)
    bounds = await admin.fetchval(_SQL["find_bounds"], first)
    await admin.execute(f"ALTER TABLE {table} ATTACH PARTITION {first} {bounds}")


async def _measure_pages(rows: Rows, usage: UsageStore) -> None:
    now, tenant, asked = datetime.now(UTC), TenantId(HOT), partial(ListRequests, limit=50)
    third, seventh = (KeyId(UUID(f"00000000-0000-4000-8000-00000000000{number}")) for number in (3, 7))
    pages = {
        "newest": asked(),
        "10 days back": asked(before=now - timedelta(days=10)),
        "a rare status": asked(status=RequestStatus.TIMEOUT),
        "a common status": asked(status=RequestStatus.ERROR),
        "a status that nothing has": asked(status=RequestStatus.CANCELLED),
        "a rare model": asked(model=ModelName("rare")),
        "a model that nothing has": asked(model=ModelName("unknown")),
        "one key": asked(key_id=seventh),
        "a rare status of a common model": asked(status=RequestStatus.TIMEOUT, model=ModelName("model-2")),
        "a rare model of one key": asked(model=ModelName("rare"), key_id=third),
    }
    for name, page in pages.items():
        slowest = await _slowest_of(5, partial(usage.requests, tenant, page))
        rows.alone(f"a page of 50 of the large organization, {name}: slowest of 5", 1000 * slowest, "ms", at_most=300)
    slowest = await _slowest_of(3, lambda: usage.requests_after(tenant, now - timedelta(days=9), None, 500))
    rows.alone("a page of 500 of its export: slowest of 3", 1000 * slowest, "ms", at_most=300)


async def _slowest_of(times: int, call: Call) -> float:
    return max([await calls.seconds_of(call) for _ in range(times)])


async def _measure_reserve(rows: Rows, url: str, seconds: float) -> None:
    """Writers of two gateways, with enough connections, so that they wait only for the one account."""
    took: list[float] = []
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(store.opened(url)) for _ in range(2)]
        stores = itertools.cycle([(LedgerStore(database), GatewayStore(database)) for database in opened])
        # The first second does not count: connections are made in it.
        begun = time.perf_counter() + 1

        async def reserve() -> None:
            (ledger, requests), request, began = next(stores), context.new_request_id(), time.perf_counter()
            try:
                await ledger.reserve([reservation_of(request, HOT)], gateway=GATEWAY, lease_seconds=90)
                held = True
            except errors.Unavailable:  # after two seconds; a gateway retries
                held = False
            if began > begun:
                took.append(time.perf_counter() - began)
            if held:
                await requests.write_requests([row_of(request, HOT)])

        await calls.for_seconds(reserve, WRITERS, 1 + seconds)
    claim = f"reserve for one organization, {WRITERS} writers"
    rows.alone(f"{claim}: p50", 1000 * report.percentile(took, 0.5), "ms")
    rows.alone(f"{claim}: p99", 1000 * report.percentile(took, 0.99), "ms", at_most=300)


if __name__ == "__main__":
    requests = (10_000_000, 200_000)
    report.run(__doc__, {"tables": _measure}, limits=(7200.0, 300.0), requests=requests, days=(30, 30), seconds=(10.0, 3.0))
