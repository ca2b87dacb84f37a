"""Write the audit log: acts in their own transaction, refusals through a queue."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from services.auth.audit.audit_store import AuditStore
from services.auth.audit.refusal_batching import RefusalBatching
from shared import errors
from shared.api.audit import AuditedAct
from shared.telemetry import logs

if TYPE_CHECKING:
    from shared.stores.database import Transaction

_WRITE_EVERY_SECONDS = 1
#: Rows per transaction, which locks their chains.
_BATCH = 200

_log = logs.get(part="audit")


class AuditLog:
    """An ``AuditTrail``. ``run`` is the task that writes refusals; call ``write`` after it has ended, for the last ones."""

    def __init__(self, rows: AuditStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rows = rows
        self._clock = clock
        self._refusals = RefusalBatching()

    async def add(self, transaction: "Transaction", act: AuditedAct) -> None:
        await self._rows.append(transaction, (act,))

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
            except errors.Unavailable as error:
                _log.info("refusals could not be written; trying again", waiting=len(self._refusals) + len(batch), reason=error.message)
                return
            finally:
                # Also if the task is canceled midway: twice in the log is better than never.
                if not written:
                    self._refusals.requeue(batch)
