"""A service's tables recovery_log and database_restores. Every method may raise Unavailable."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID

from shared import errors
from shared.recovery import recovery_lines
from shared.recovery.recovery_lines import LogEnd, RecoveryLine
from shared.stores import database

#: The folder of the queries that a service's database needs for this store.
QUERIES = Path(__file__).parent
_PAGE = 500
#: A restore after a long time has many lines to replay. One replica replays them, and the others wait.
_REPLAY_SECONDS = 600


@dataclass(frozen=True, slots=True)
class DatabasePlace:
    """Which database this is, and how far it has come."""

    #: PostgreSQL's identifier of the cluster.
    system: str
    timeline: int
    lsn: int
    #: Of the recovery log.
    head: LogEnd
    #: The newest restore that this database knows of.
    restore: UUID | None
    #: It was restored within the last days.
    is_restored: bool
    #: When the newest restore was found, before anything was written after it.
    restored_at: datetime | None = None


class RecoveryStore:
    def __init__(self, db: database.Database, schema: str) -> None:
        self._db = db
        #: The triggers of the schema's migration notify it.
        self._changes = f"{schema}_recovery_log"

    async def head(self) -> LogEnd:
        return _end(await self._db.row("find_recovery_head"))

    async def hash_of(self, number: int) -> str | None:
        found: bytes | None = await self._db.value("find_recovery_hash", number)
        return None if found is None else found.hex()

    async def lines_after(self, number: int) -> tuple[Sequence[RecoveryLine], int]:
        """Return the next lines, and the last one's number."""
        with _tables_may_be_missing():
            lines = [_line(row) for row in await self._db.rows("list_recovery_lines", number, _PAGE)]
        return lines, (lines[-1].number if lines else number)

    def follow(self) -> AsyncGenerator[object]:
        """Yield an item at once, and after each new line."""
        return self._db.listen(self._changes)

    async def place(self) -> DatabasePlace:
        with _tables_may_be_missing():
            row = await self._db.row("find_database_place")
        assert row is not None  # a SELECT without FROM has a row
        return DatabasePlace(row["system"], row["timeline"], row["lsn"], _end(row), row["restore"], row["is_restored"], row["restored_at"])

    @contextlib.asynccontextmanager
    async def replaying(self) -> AsyncIterator[tuple[database.Transaction, LogEnd]]:
        """Lock the log against every other line and replay, and return its head. Nothing in the block is recorded."""
        async with self._db.transaction(deadline_seconds=_REPLAY_SECONDS) as transaction:
            await transaction.row("lock_recovery")
            yield transaction, _end(await transaction.row("find_recovery_head"))

    async def append(self, transaction: database.Transaction, lines: Sequence[RecoveryLine]) -> None:
        columns = [
            (line.number, line.at, line.kind, line.subject, line.details, bytes.fromhex(line.previous_hash), bytes.fromhex(line.hash))
            for line in lines
        ]
        await transaction.run("add_recovery_lines", *map(list, zip(*columns, strict=True)))

    async def add_restore(self, transaction: database.Transaction, restore: UUID, details: str) -> None:
        await transaction.run("add_restore", restore, details)

    async def find_open_restore(self) -> tuple[UUID, str] | None:
        row = await self._db.row("find_open_restore")
        return None if row is None else (row["id"], row["details"])

    async def close_restores(self, transaction: database.Transaction) -> bool:
        """Return False if another replica was faster."""
        return bool(await transaction.run("close_restores"))

    def transaction(self) -> contextlib.AbstractAsyncContextManager[database.Transaction]:
        return self._db.transaction()


@contextlib.contextmanager
def _tables_may_be_missing() -> Iterator[None]:
    """While someone replaces the schema by a backup's, the service must wait: it would create an empty one if it started again."""
    try:
        yield
    except database.Refusal as error:
        raise errors.Unavailable("the tables of the recovery log cannot be read", hint="is a backup being restored?") from error


def _end(row: database.DatabaseRow | None) -> LogEnd:
    return recovery_lines.START if row is None or row["number"] is None else LogEnd(row["number"], row["hash"].hex())


def _line(row: database.DatabaseRow) -> RecoveryLine:
    return RecoveryLine(
        number=row["number"], at=row["at"], kind=row["kind"], subject=row["subject"], details=row["details"],
        previous_hash=row["previous_hash"].hex(), hash=row["hash"].hex(),
    )  # fmt: skip
