"""auth's table backup_reports, of one row. Every method may raise Unavailable."""

from dataclasses import dataclass
from datetime import datetime

import msgspec

from features.backup.contract import BackupReport
from shared.stores.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReport:
    """The row, and the time at which it was read."""

    #: When auth first ran with backups.
    since: datetime
    now: datetime
    reported_at: datetime | None = None
    report: BackupReport | None = None

    def age_of(self, at: datetime | None) -> float:
        """Return the seconds since then, or since the backups were turned on. A clock that was set back gives 0."""
        return max(0.0, (self.now - (at or self.since)).total_seconds())


class BackupStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def expect(self) -> None:
        """Add the row if there is none: from now on, reports are due."""
        await self._db.run("expect_backup_reports")

    async def keep(self, report: BackupReport) -> None:
        await self._db.run("keep_backup_report", msgspec.json.encode(report).decode())

    async def find(self) -> StoredReport | None:
        row = await self._db.row("find_backup_report")
        if row is None:
            return None
        report = None if row["report"] is None else msgspec.json.decode(row["report"], type=BackupReport)
        return StoredReport(since=row["since"], now=row["now"], reported_at=row["reported_at"], report=report)
