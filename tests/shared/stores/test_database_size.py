"""The size of a service's schema, sampled in the background."""

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from shared.stores import database
from shared.stores.database import Database
from shared.stores.replica_reads import DatabaseOptions
from shared.telemetry import Metrics
from shared.telemetry.database_metrics import DatabaseMetrics
from tests.stopwatch import HANG_SECONDS

#: Partitions hold the rows of their table, and are counted once.
TABLES = """
CREATE TABLE things (id integer GENERATED ALWAYS AS IDENTITY, at date NOT NULL, name text NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE things_first PARTITION OF things FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE things_rest PARTITION OF things DEFAULT;
CREATE INDEX things_by_name ON things (name);
"""
QUERIES = """
-- name: fill
-- Many rows.
INSERT INTO things (at, name) SELECT date '2026-01-15' + number % 60, repeat(md5(number::text), 8) FROM generate_series(1, 4000) AS number;

-- name: measure
-- The parts of the table, each with its indexes.
SELECT pg_total_relation_size('things_first') + pg_total_relation_size('things_rest');
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "queries.sql").write_text(QUERIES)
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_pre_things.sql").write_text(TABLES)
    return tmp_path


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_SIZE_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(database, "_SIZE_SECONDS", 0.5)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANG_SECONDS):
        while not condition():  # noqa: ASYNC110 - no event is set
            await asyncio.sleep(0.01)


async def test_a_service_exports_the_size_of_its_schema_alone(postgres_url: str, package: Path) -> None:
    metrics = Metrics("gateway")

    def shown(schema: str) -> float:
        start = f'ai_platform_database_bytes{{schema="{schema}"}} '
        found = [line.removeprefix(start) for line in metrics.render().splitlines() if line.startswith(start)]
        return float(found[0]) if found else math.nan

    options = DatabaseOptions(reports=DatabaseMetrics(metrics))
    async with Database.open(postgres_url, schema="shop", package=package, options=options) as db:
        await until(lambda: shown("shop") > 0)
        empty = shown("shop")
        # Another service's rows are none of ours.
        async with Database.open(postgres_url, schema="office", package=package) as other:
            await other.run("fill")
        await db.run("fill")
        parts = await db.value("measure")
        # There is also a small table of migrations.
        await until(lambda: shown("shop") > parts)
        assert empty < parts < shown("shop") < parts + 200_000
        assert math.isnan(shown("office"))


async def test_the_size_is_unknown_while_postgresql_does_not_tell(postgres_url: str, package: Path) -> None:
    metrics = Metrics("auth")
    unknown, line = 'ai_platform_database_bytes{schema="shop"} NaN', 'ai_platform_database_bytes{schema="shop"} '
    options = DatabaseOptions(reports=DatabaseMetrics(metrics))
    async with Database.open(postgres_url, schema="shop", package=package, options=options) as db:
        await until(lambda: line in metrics.render() and unknown not in metrics.render())
        locker = await asyncpg.connect(postgres_url)
        try:
            async with locker.transaction():
                await locker.execute("LOCK TABLE shop.things_rest IN ACCESS EXCLUSIVE MODE")
                await until(lambda: unknown in metrics.render())
                # Only the sample waits, and holds nothing that others need.
                assert (
                    await locker.fetchval("SELECT count(*) FROM pg_locks WHERE relation = 'shop.things_first'::regclass AND granted") == 0
                )
        finally:
            await locker.close()
        await until(lambda: unknown not in metrics.render())
        assert (await db.check()).ok
