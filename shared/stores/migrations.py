"""Migrates a schema: numbered files, each run once, in a transaction with the row that records it.

A file is ``NNNN_pre_what.sql`` or ``NNNN_post_what.sql``, numbered in one sequence. ``pre`` runs before the new version serves, so it must
leave the tables usable for the old version. ``post`` removes what only the old version needed, and runs only by
`aicli stack migrate --post`: a later ``pre`` may run before it.

Released files are never edited: the database stores their SHA-256, and a changed file is refused.

A file named ``NNNN_…_concurrently.sql`` runs statement by statement without a transaction, for CREATE INDEX CONCURRENTLY. It may
stop halfway and run again from its first statement, so each of its statements must be repeatable.

A migration that sets a ``lock_timeout`` and does not get its lock is rolled back and tried again. While it waits for an ACCESS EXCLUSIVE
lock, all later queries on that table wait behind it.
"""

import asyncio
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import msgspec

from shared import errors, features
from shared.stores import queries

_FILE = re.compile(r"(?P<number>\d{4})_(pre|post)_[a-z0-9_]+\.sql")
_STATEMENT_END = re.compile(r";[ ]*$", re.MULTILINE)
#: Between two attempts to get a lock, so that the queries waiting behind it can run.
_LOCK_PAUSE_SECONDS = 1.0
_TURN_PAUSE_SECONDS = 0.1


#: Feature, or empty, and number.
MigrationKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    text: str
    #: Whose sequence it is of; empty: the service's own.
    feature: str = ""

    @property
    def key(self) -> "MigrationKey":
        return self.feature, self.number

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def is_post(self) -> bool:
        return self.name[4:].startswith("_post_")

    @property
    def is_concurrent(self) -> bool:
        return self.name.endswith("_concurrently.sql")

    @property
    def statements(self) -> list[str]:
        return [statement for statement in _STATEMENT_END.split(self.text) if statement.strip()]


def read_all(folder: Path, schema: str) -> list[Migration]:
    """Return the service's migrations, then those of each feature, whose numbers begin anew. A feature's may name the service's tables."""
    found = read(folder)
    for more in features.files(f"migrations/{schema}"):
        found += read(more, more.relative_to(features.FOLDER).parts[0])
    return found


def read(folder: Path, feature: str = "") -> list[Migration]:
    """Return a folder's migrations in order. Raises ValueError for an invalid name, and for a number used twice."""
    found: list[Migration] = []
    for path in sorted(folder.glob("*.sql")):
        match = _FILE.fullmatch(path.name)
        if match is None:
            raise ValueError(f"{path}: the name of a migration must be NNNN_pre_what.sql or NNNN_post_what.sql")
        if found and found[-1].number == int(match["number"]):
            raise ValueError(f"{path}: number {match['number']} is used twice")
        found.append(Migration(int(match["number"]), path.name, path.read_text(encoding="utf-8"), feature))
    return found


def plan_pending(known: list[Migration], applied: Mapping[MigrationKey, str], *, post: bool = False) -> list[Migration]:
    """Return the ``pre`` migrations to run, or the ``post`` ones. ``applied`` is feature and number -> sha256; those of newer
    versions are ignored.

    Raises BadSettings for a file that was edited after it ran, and for ``post`` while ``pre`` ones are pending.
    """
    for migration in known:
        if applied.get(migration.key, migration.sha256) != migration.sha256:
            raise errors.BadSettings(
                f"the migration {migration.name} was changed after it ran on this database",
                hint="restore the file and put the change into a new migration",
            )
    pending = [migration for migration in known if migration.key not in applied]
    if post and (before := [migration.name for migration in pending if not migration.is_post]):
        raise errors.BadSettings(
            f"{before[0]} has not run yet, because the services of this version have not started", hint="start this version first: make up"
        )
    return [migration for migration in pending if migration.is_post is post]


class SchemaStatus(msgspec.Struct, frozen=True):
    """Names of migrations, in their order."""

    schema: str
    #: Also those of newer versions. Empty if nothing has ever run here.
    applied: tuple[str, ...]
    pending_pre: tuple[str, ...]
    pending_post: tuple[str, ...]


async def read_status(connection: asyncpg.Connection, schema: str, known: list[Migration]) -> SchemaStatus:
    """Raises BadSettings for a file that was edited after it ran."""
    sql = _load_queries()
    rows = await _list_rows(connection, sql)
    applied = {(row["feature"], row["number"]): row["sha256"] for row in rows}
    pre = plan_pending(known, applied)
    post = [migration.name for migration in known if migration.is_post and migration.key not in applied]
    return SchemaStatus(schema, tuple(row["name"] for row in rows), tuple(migration.name for migration in pre), tuple(post))


async def check(connection: asyncpg.Connection, schema: str, known: list[Migration]) -> None:
    """Raises BadSettings if a ``pre`` migration is pending, or was edited after it ran."""
    if pending := (await read_status(connection, schema, known)).pending_pre:
        raise errors.BadSettings(
            f"the schema {schema} is too old for this version: {', '.join(pending)} has not run, and MIGRATE=off",
            hint="run: aicli stack migrate --pre",
        )


async def run(connection: asyncpg.Connection, schema: str, known: list[Migration], *, post: bool = False) -> list[str]:
    """Apply pending ``pre`` migrations, or ``post`` ones, and return their names. If several processes start at once, one does the work and
    the others wait. Without pending ones it only reads, so that a program can start while the server is read-only."""
    sql = _load_queries()
    done: list[str] = []
    if await connection.fetchval(sql["has_table"].text) and not plan_pending(known, await _list_applied(connection, sql), post=post):
        return done
    # Poll: a session that waits for the lock inside PostgreSQL holds a snapshot, which CREATE INDEX CONCURRENTLY would wait for.
    while not await connection.fetchval(sql["try_lock"].text, schema):  # noqa: ASYNC110 - another process holds it
        await asyncio.sleep(_TURN_PAUSE_SECONDS)
    try:
        if create := await connection.fetchval(sql["plan_schema"].text, schema):
            await connection.execute(create)
        await connection.execute(sql["create_table"].text)
        await connection.execute(sql["create_table_of_features"].text)
        for migration in plan_pending(known, await _list_applied(connection, sql), post=post):
            await _apply(connection, migration, sql)
            done.append(migration.name)
    finally:
        # A broken connection has lost its lock already, and an error here would hide the first one.
        if not connection.is_closed():
            await connection.execute(sql["unlock"].text, schema)
    return done


def _load_queries() -> dict[str, queries.NamedQuery]:
    return queries.load(Path(__file__).with_name("migrations.sql"))


async def _list_rows(connection: asyncpg.Connection, sql: dict[str, queries.NamedQuery]) -> list[asyncpg.Record]:
    rows = await connection.fetch(sql["list_applied"].text) if await connection.fetchval(sql["has_table"].text) else []
    if await connection.fetchval(sql["has_table_of_features"].text):
        rows += await connection.fetch(sql["list_applied_of_features"].text)
    return rows


async def _list_applied(connection: asyncpg.Connection, sql: dict[str, queries.NamedQuery]) -> dict[MigrationKey, str]:
    return {(row["feature"], row["number"]): row["sha256"] for row in await _list_rows(connection, sql)}


async def _apply(connection: asyncpg.Connection, migration: Migration, sql: dict[str, queries.NamedQuery]) -> None:
    row: tuple[object, ...] = migration.number, migration.name, migration.sha256
    add_applied = sql["add_applied"].text
    if migration.feature:
        row, add_applied = (migration.feature, *row), sql["add_applied_of_feature"].text
    if migration.is_concurrent:
        for statement in migration.statements:
            await connection.execute(statement)
        await connection.execute(add_applied, *row)
        return
    while True:
        try:
            async with connection.transaction():
                await connection.execute(migration.text)
                await connection.execute(add_applied, *row)
            return
        except asyncpg.LockNotAvailableError:
            await asyncio.sleep(_LOCK_PAUSE_SECONDS)
