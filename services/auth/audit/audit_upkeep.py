"""The work of the audit log beside the calls: writing refusals, anchoring, verifying, erasing personal parts that are too old."""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from services.auth.audit.anchoring import Anchoring
from services.auth.audit.audit_log import AuditLog
from services.auth.audit.audit_store import AuditStore
from services.auth.audit.verification import Verification
from shared import errors
from shared.node import lifecycle
from shared.telemetry import logs

_HOUR_SECONDS = 3600
#: It reads every row.
_VERIFY_SECONDS = 6 * _HOUR_SECONDS

_log = logs.get(part="audit")


class AuditUpkeep:
    """``run`` is the task; ``finish`` comes after its end, while the database is still open."""

    def __init__(
        self,
        log: AuditLog,
        rows: AuditStore,
        anchoring: Anchoring,
        verification: Verification,
        *,
        days: int,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._log = log
        self._verification = verification
        self._rows = rows
        self._anchoring = anchoring
        self._days = days
        self._now = now

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._log.run())
            tasks.create_task(lifecycle.every(_HOUR_SECONDS, self._anchoring.write))
            tasks.create_task(lifecycle.every(_HOUR_SECONDS, self.shred, first=lifecycle.SOON_SECONDS))
            tasks.create_task(lifecycle.every(_VERIFY_SECONDS, self.verify, first=lifecycle.SOON_SECONDS))

    async def finish(self) -> None:
        """The last refusals and the last anchors; what PostgreSQL does not take any more is lost."""
        await self._log.write()
        with contextlib.suppress(errors.Unavailable):
            await self._anchoring.write()

    async def verify(self) -> None:
        """All of it, so that a row that was tampered with is told before anybody asks. Raises Unavailable."""
        await self._verification.report(None)

    async def shred(self) -> None:
        """Personal parts older than the days that they are kept. Raises Unavailable."""
        shredded = await self._rows.shred_before(self._now() - timedelta(days=self._days))
        if shredded:
            _log.info("personal parts of the audit log erased", rows=shredded, older_than_days=self._days)
