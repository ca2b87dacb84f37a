"""Background work of the audit log: write refusals, anchor, verify, and erase old personal parts."""

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
    """``run`` is the task; call ``finish`` after it has ended, while the database is still open."""

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
        """Run until canceled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._log.run())
            tasks.create_task(lifecycle.every(_HOUR_SECONDS, self._anchoring.write))
            tasks.create_task(lifecycle.every(_HOUR_SECONDS, self.shred, first=lifecycle.SOON_SECONDS))
            tasks.create_task(lifecycle.every(_VERIFY_SECONDS, self.verify, first=lifecycle.SOON_SECONDS))

    async def finish(self) -> None:
        """Write the last refusals and anchors. What PostgreSQL doesn't accept is lost."""
        await self._log.write()
        with contextlib.suppress(errors.Unavailable):
            await self._anchoring.write()

    async def verify(self) -> None:
        """Verify everything, so that tampering is reported before anyone asks. Raises Unavailable."""
        await self._verification.report(None)

    async def shred(self) -> None:
        """Erase personal parts that are too old. Raises Unavailable."""
        shredded = await self._rows.shred_before(self._now() - timedelta(days=self._days))
        if shredded:
            _log.info("personal parts of the audit log erased", rows=shredded, older_than_days=self._days)
