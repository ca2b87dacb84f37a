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

from shared import errors
from shared.stores import queries

_FILE = re.compile(r"(?P<number>\d{4})_(pre|post)_[a-z0-9_]+\.sql")
_STATEMENT_END = re.compile(r";[ ]*$", re.MULTILINE)
#: Between two attempts to get a lock, so that the queries waiting behind it can run.
_LOCK_PAUSE_SECONDS = 1.0
_TURN_PAUSE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    text: str

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


def read(folder: Path) -> list[Migration]:
    """Return a folder's migrations in order. Raises ValueError for an invalid name, and for a number used twice."""
    found: list[Migration] = []
    for path in sorted(folder.glob("*.sql")):
        match = _FILE.fullmatch(path.name)
        if match is None:
            raise ValueError(f"{path}: the name of a migration must be NNNN_pre_what.sql or NNNN_post_what.sql")
        if found and found[-1].number == int(match["number"]):
            raise ValueError(f"{path}: number {match['number']} is used twice")
        found.append(Migration(int(match["number"]), path.name, path.read_text(encoding="utf-8")))
    return found


def plan_pending(known: list[Migration], applied: Mapping[int, str], *, post: bool = False) -> list[Migration]:
    """Return the ``pre`` migrations to run, or the ``post`` ones. ``applied`` is number -> sha256; numbers of newer versions are ignored.

    Raises BadSettings for a file that was edited after it ran, and for ``post`` while ``pre`` ones are pending.
    """
    for migration in known:
        if applied.get(migration.number, migration.sha256) != migration.sha256:
            raise errors.BadSettings(
                f"the migration {migration.name} was changed after it ran on this database",
                hint="restore the file and put the change into a new migration",
            )
    pending = [migration for migration in known if migration.number not in applied]
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
    rows = await connection.fetch(sql["list_applied"].text) if await connection.fetchval(sql["has_table"].text) else []
    applied = {row["number"]: row["sha256"] for row in rows}
    pre = plan_pending(known, applied)
    post = [migration.name for migration in known if migration.is_post and migration.number not in applied]
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
        for migration in plan_pending(known, await _list_applied(connection, sql), post=post):
            await _apply(connection, migration, sql["add_applied"].text)
            done.append(migration.name)
    finally:
        # A broken connection has lost its lock already, and an error here would hide the first one.
        if not connection.is_closed():
            await connection.execute(sql["unlock"].text, schema)
    return done


def _load_queries() -> dict[str, queries.NamedQuery]:
    return queries.load(Path(__file__).with_name("migrations.sql"))


async def _list_applied(connection: asyncpg.Connection, sql: dict[str, queries.NamedQuery]) -> dict[int, str]:
    return {row["number"]: row["sha256"] for row in await connection.fetch(sql["list_applied"].text)}


async def _apply(connection: asyncpg.Connection, migration: Migration, add_applied: str) -> None:
    row = migration.number, migration.name, migration.sha256
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
