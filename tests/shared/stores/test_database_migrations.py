"""Which migrations run, and that each runs once even if many processes start at once."""

import asyncio
from pathlib import Path

import pytest

from shared import errors
from shared.stores import migrations
from shared.stores.database import Database
from shared.stores.migrations import Migration

FIRST, SECOND = Migration(1, "0001_pre_a.sql", "SELECT 1"), Migration(2, "0002_pre_b.sql", "SELECT 2")
POST, LATER = Migration(3, "0003_post_c.sql", "SELECT 3"), Migration(4, "0004_pre_d.sql", "SELECT 4")
ALL = [FIRST, SECOND, POST, LATER]


@pytest.mark.parametrize(
    ("applied", "expected"),
    [
        pytest.param({}, [FIRST, SECOND], id="an empty database gets all"),
        pytest.param({("", 1): FIRST.sha256}, [SECOND], id="what ran does not run again"),
        pytest.param({("", 2): SECOND.sha256}, [FIRST], id="a migration merged late still runs"),
        pytest.param({("", 1): FIRST.sha256, ("", 2): SECOND.sha256}, [], id="nothing to do"),
        pytest.param({("hello", 1): "of a feature", ("", 2): SECOND.sha256}, [FIRST], id="a feature has its own numbers"),
        pytest.param({("", 1): FIRST.sha256, ("", 2): SECOND.sha256, ("", 3): "?"}, [], id="a newer version was here"),
    ],
)
def test_pending(applied: dict[migrations.MigrationKey, str], expected: list[Migration]) -> None:
    assert migrations.plan_pending([FIRST, SECOND], applied) == expected


@pytest.mark.parametrize(
    ("applied", "pre", "post"),
    [
        pytest.param([FIRST, SECOND], [LATER], None, id="a start runs a later pre and leaves post"),
        pytest.param([FIRST, SECOND, LATER], [], [POST], id="post may have a lower number than what ran"),
        pytest.param([FIRST, SECOND, POST], [LATER], None, id="post ran before a later pre was written"),
        pytest.param(ALL, [], [], id="nothing to do"),
    ],
)
def test_post_is_planned_apart_and_after_pre(applied: list[Migration], pre: list[Migration], post: list[Migration] | None) -> None:
    """``post`` is None if post migrations are refused."""
    rows = {migration.key: migration.sha256 for migration in applied}
    assert migrations.plan_pending(ALL, rows) == pre
    if post is None:
        with pytest.raises(errors.BadSettings, match=r"0004_pre_d\.sql has not run yet"):
            migrations.plan_pending(ALL, rows, post=True)
    else:
        assert migrations.plan_pending(ALL, rows, post=True) == post


def test_old_code_ignores_post_migrations_that_it_does_not_know() -> None:
    assert migrations.plan_pending([FIRST, SECOND], {migration.key: migration.sha256 for migration in ALL}) == []


def test_an_edited_migration_is_refused() -> None:
    with pytest.raises(errors.BadSettings, match=r"0001_pre_a\.sql was changed"):
        migrations.plan_pending([FIRST], {FIRST.key: "another"})
    with pytest.raises(errors.BadSettings, match=r"0003_post_c\.sql was changed"):
        migrations.plan_pending([POST], {POST.key: "another"})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param(["1_pre_a.sql"], "NNNN_pre_what", id="a short number"),
        pytest.param(["0001_a.sql"], "NNNN_pre_what", id="no stage"),
        pytest.param(["0001_during_a.sql"], "NNNN_pre_what", id="another stage"),
        pytest.param(["0001_post_a.sql", "0001_pre_b.sql"], "used twice", id="pre and post share their numbers"),
    ],
)
def test_bad_files(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).write_text("SELECT 1")
    with pytest.raises(ValueError, match=message):
        migrations.read(tmp_path)


async def test_fifty_starters_at_once_migrate_once(postgres_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "0001_pre_things.sql").write_text("CREATE TABLE things (n integer); INSERT INTO things VALUES (1);")
    (folder / "0002_pre_more.sql").write_text("INSERT INTO things VALUES (2);")
    (tmp_path / "queries.sql").write_text("-- name: list\n-- All.\nSELECT n FROM things ORDER BY n;")

    async def start() -> list[int]:
        async with Database.open(postgres_url, schema="shop", package=tmp_path, pool_size=1) as db:
            return [row["n"] for row in await db.rows("list")]

    assert await asyncio.gather(*(start() for _ in range(50))) == [[1, 2]] * 50


async def test_a_failing_migration_leaves_nothing_behind(postgres_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "0001_pre_things.sql").write_text("CREATE TABLE things (n integer); SELECT 1 / 0;")
    (tmp_path / "queries.sql").write_text("-- name: there\n-- Whether the table is there.\nSELECT to_regclass('things') IS NOT NULL;")
    with pytest.raises(Exception, match="division by zero"):
        async with Database.open(postgres_url, schema="shop", package=tmp_path):
            pass
    (folder / "0001_pre_things.sql").write_text("SELECT 1")
    async with Database.open(postgres_url, schema="shop", package=tmp_path) as db:
        assert await db.value("there") is False


async def test_a_concurrent_migration_runs_outside_a_transaction_and_again_after_it_stopped_halfway(
    postgres_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "0001_pre_things.sql").write_text("CREATE TABLE things (n integer); INSERT INTO things VALUES (1), (1);")
    (tmp_path / "queries.sql").write_text(
        "-- name: valid\n-- Whether the index is there, and of use.\nSELECT indisvalid FROM pg_index WHERE indexrelid = 'by_n'::regclass;"
    )
    concurrently = folder / "0002_pre_index_concurrently.sql"
    concurrently.write_text("DROP INDEX CONCURRENTLY IF EXISTS by_n;\nCREATE UNIQUE INDEX CONCURRENTLY by_n ON things (n);\n")
    with pytest.raises(Exception, match="could not create unique index"):
        async with Database.open(postgres_url, schema="shop", package=tmp_path):
            pass
    concurrently.write_text("DROP INDEX CONCURRENTLY IF EXISTS by_n;\nCREATE INDEX CONCURRENTLY by_n ON things (n);\n")
    async with Database.open(postgres_url, schema="shop", package=tmp_path) as db:
        assert await db.value("valid") is True


async def test_without_migrating_it_opens_only_a_schema_that_is_new_enough(postgres_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "0001_pre_things.sql").write_text("CREATE TABLE things (n integer);")
    (tmp_path / "queries.sql").write_text("-- name: there\n-- Whether the table is there.\nSELECT to_regclass('things') IS NOT NULL;")

    async def is_there(*, migrate: bool) -> bool:
        async with Database.open(postgres_url, schema="shop", package=tmp_path, migrate=migrate) as db:
            return bool(await db.value("there"))

    with pytest.raises(errors.BadSettings, match=r"shop is too old for this version: 0001_pre_things\.sql has not run, and MIGRATE=off"):
        await is_there(migrate=False)
    assert await is_there(migrate=True)
    (folder / "0002_post_old.sql").write_text("DROP TABLE things;")
    assert await is_there(migrate=False), "a post migration may wait"
    (folder / "0003_pre_more.sql").write_text("CREATE TABLE more (n integer);")
    with pytest.raises(errors.BadSettings, match=r"0003_pre_more\.sql has not run"):
        await is_there(migrate=False)
    (folder / "0003_pre_more.sql").unlink()
    (folder / "0001_pre_things.sql").write_text("CREATE TABLE things (m integer);")
    with pytest.raises(errors.BadSettings, match="was changed after it ran"):
        await is_there(migrate=False)
