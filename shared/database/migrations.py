"""Brings a schema up to date: numbered files, each run once, each in a transaction with the row that says so.

A file is ``NNNN_pre_what.sql``: ``pre`` runs before the new version serves, so it must leave the tables usable for the
version before. A released file is never edited; the database remembers its SHA-256 and refuses to go on.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from shared import errors
from shared.database import queries

_FILE = re.compile(r"(?P<number>\d{4})_pre_[a-z0-9_]+\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def read(folder: Path) -> list[Migration]:
    """The migrations of a folder in order; raises ValueError for a file that does not fit, and for a number used twice."""
    found: list[Migration] = []
    for path in sorted(folder.glob("*.sql")):
        match = _FILE.fullmatch(path.name)
        if match is None:
            raise ValueError(f"{path}: a migration is called NNNN_pre_what.sql")
        if found and found[-1].number == int(match["number"]):
            raise ValueError(f"{path}: number {match['number']} is used twice")
        found.append(Migration(int(match["number"]), path.name, path.read_text(encoding="utf-8")))
    return found


def plan_pending(known: list[Migration], applied: dict[int, str]) -> list[Migration]:
    """Those that still have to run. ``applied`` is number -> sha256; numbers that only a newer version knows are its affair.

    Raises BadSettings for a file that was edited after it ran.
    """
    for migration in known:
        if applied.get(migration.number, migration.sha256) != migration.sha256:
            raise errors.BadSettings(
                f"the migration {migration.name} was changed after it ran on this database",
                hint="restore the file and put the change into a new migration",
            )
    return [migration for migration in known if migration.number not in applied]


async def run(connection: asyncpg.Connection, schema: str, known: list[Migration]) -> None:
    """Apply what is pending; several starters at once wait for each other, and the first does the work. Where nothing is pending it
    only reads, so that a program starts beside a server that takes no writes now."""
    sql = queries.load(Path(__file__).with_name("migrations.sql"))
    if await connection.fetchval(sql["has_table"].text) and not plan_pending(known, await _list_applied(connection, sql)):
        return
    await connection.execute(sql["lock"].text, schema)
    try:
        if create := await connection.fetchval(sql["plan_schema"].text, schema):
            await connection.execute(create)
        await connection.execute(sql["create_table"].text)
        for migration in plan_pending(known, await _list_applied(connection, sql)):
            async with connection.transaction():
                await connection.execute(migration.text)
                await connection.execute(sql["add_applied"].text, migration.number, migration.name, migration.sha256)
    finally:
        # A connection that broke has lost its lock already, and saying so again would hide the first error.
        if not connection.is_closed():
            await connection.execute(sql["unlock"].text, schema)


async def _list_applied(connection: asyncpg.Connection, sql: dict[str, queries.Query]) -> dict[int, str]:
    return {row["number"]: row["sha256"] for row in await connection.fetch(sql["list_applied"].text)}
