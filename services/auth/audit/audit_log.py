"""Write the audit log: acts in their own transaction, refusals through a queue; and anchor it, verify it, and erase old personal parts."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from services.auth.audit.anchoring import Anchoring
from services.auth.audit.audit_store import AuditStore
from services.auth.audit.refusal_batching import RefusalBatching
from services.auth.audit.verification import Verification
from shared import errors
from shared.api.audit import AuditedAct
from shared.node import lifecycle
from shared.stores.transactions import Transaction
from shared.telemetry import logs

_WRITE_EVERY_SECONDS = 1
#: Rows per transaction, which locks their chains.
_BATCH = 200
_HOUR_SECONDS = 3600
_ANCHOR_SECONDS = 300
_ANCHOR_ROWS = 100
#: It reads every row.
_VERIFY_SECONDS = 6 * _HOUR_SECONDS

_log = logs.get(part="audit")


class AuditLog:
    """An ``AuditTrail``. ``run`` is the task that writes refusals; call ``write`` after it has ended, for the last ones."""

    def __init__(
        self, rows: AuditStore, *, on_act: Callable[[str], None] = lambda action: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``on_act`` is called in the caller's context with each act that was added."""
        self._rows = rows
        self._on_act = on_act
        self._clock = clock
        self._refusals = RefusalBatching()
        self._unanchored = 0
        #: Set when so many rows were added that they should be anchored now.
        self.anchor_soon = asyncio.Event()

    async def add(self, transaction: Transaction, act: AuditedAct) -> None:
        await self._rows.append(transaction, (act,))
        self._on_act(act.action)
        self._count(1)

    def note(self, act: AuditedAct) -> None:
        self._refusals.add(act, self._clock())

    async def run(self) -> None:
        """Run until canceled."""
        while True:
            await asyncio.sleep(_WRITE_EVERY_SECONDS)
            await self._write(all_of_them=False)

    async def write(self) -> None:
        """Write everything that waits. If PostgreSQL is down, it keeps waiting."""
        await self._write(all_of_them=True)

    async def _write(self, *, all_of_them: bool) -> None:
        while batch := self._refusals.take(_BATCH, self._clock(), all_of_them=all_of_them):
            written = False
            try:
                async with self._rows.transaction() as transaction:
                    await self._rows.append(transaction, batch)
                written = True
                self._count(len(batch))
            except errors.Unavailable as error:
                _log.info("refusals could not be written; trying again", waiting=len(self._refusals) + len(batch), reason=error.message)
                return
            finally:
                # Also if the task is canceled midway: twice in the log is better than never.
                if not written:
                    self._refusals.requeue(batch)

    def _count(self, rows: int) -> None:
        self._unanchored += rows
        if self._unanchored >= _ANCHOR_ROWS:
            self._unanchored = 0
            self.anchor_soon.set()


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
            tasks.create_task(self._anchor())
            tasks.create_task(lifecycle.every(_HOUR_SECONDS, self.shred, first=lifecycle.SOON_SECONDS))
            tasks.create_task(lifecycle.every(_VERIFY_SECONDS, self.verify, first=lifecycle.SOON_SECONDS))

    async def _anchor(self) -> None:
        """At the start, every few minutes, and after many rows: what has no anchor can be changed without a trace."""
        while True:
            try:
                await self._anchoring.write()
            except errors.Unavailable as error:
                _log.info("anchors could not be written; trying again", reason=error.message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ANCHOR_SECONDS):
                    await self._log.anchor_soon.wait()
            self._log.anchor_soon.clear()

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
