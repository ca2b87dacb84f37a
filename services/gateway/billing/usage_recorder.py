"""Writes the rows of ended requests to PostgreSQL, each with the settlement of its reservation.

A caller learns the end of its request once its row is written to PostgreSQL, or to the journal on the local disk if that takes too long.
While PostgreSQL is down, rows wait here; when the queue is full or the disk fails, too, new requests are refused. A row that PostgreSQL
refuses doesn't block others: it stays in the journal and is retried every few seconds.
"""

import asyncio
import itertools
import math
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

from services.gateway.billing.journal import Journal
from services.gateway.facts.request_record import RequestRow, RowsRefused
from shared import errors
from shared.background import tasks as background_tasks
from shared.telemetry import logs
from shared.telemetry.readiness import OwnCheck
from shared.timing.backoff import Backoff
from shared.timing.bounded_waits import wait_until_set
from shared.types import RequestId

if TYPE_CHECKING:
    from services.gateway.store import GatewayStore

#: Waiting rows plus requests that still get one. A row takes about 1 KB, so this is about 10 MB.
CAPACITY = 10_000
#: Rows per statement. One writer with large batches costs PostgreSQL few commits, in order.
BATCH = 500
#: A load balancer asks each second.
PROBE_SECONDS = 10.0
#: How long the end of a request waits for PostgreSQL before its row goes to the journal.
WRITE_WAIT_SECONDS = 0.25
DRAIN_SECONDS = 10.0
_BACKOFF = Backoff(first_seconds=0.1, longest_seconds=5.0)
#: How often a refused row is retried, in case the cause was fixed.
_REFUSED_SECONDS = 5.0

_log = logs.get(part="recorder")


@dataclass(slots=True, eq=False)
class PendingRow:
    row: RequestRow
    written: asyncio.Event = field(default_factory=asyncio.Event)
    in_journal: bool = False
    was_refused: bool = False


class UsageRecorder:
    """Use ``running``. Follow every successful ``reserve`` with one ``add`` or ``release``."""

    def __init__(self, store: "GatewayStore", journal: Journal, queue_rows: Gauge, failures: Counter, *, capacity: int = CAPACITY) -> None:
        self._store = store
        self._journal = journal
        # One write at a time, so that many rows cost one sync.
        self._journal_lock = asyncio.Lock()
        #: Why the last write to the journal failed; empty if it did not.
        self._journal_trouble = ""
        self._probe_at = -math.inf
        self._disk_trouble = ""
        self._queue_rows = queue_rows
        self._unavailable, self._refusals = failures.labels(reason="unavailable"), failures.labels(reason="refused")
        self._capacity = capacity
        self._waiting: deque[PendingRow] = deque()
        #: Rows that PostgreSQL refused.
        self._refused: deque[PendingRow] = deque()
        self._reserved = 0
        self._arrived = asyncio.Event()
        self._settled = asyncio.Event()
        self._store_is_healthy = True

    @asynccontextmanager
    async def running(self) -> AsyncIterator["UsageRecorder"]:
        """Write rows in the background, starting with those that an earlier process left in the journal. At the end of the block, drain
        for up to 10 s, including the rows of requests that are being canceled; the rest stays in the journal."""
        journaled = await asyncio.to_thread(self._journal.read)
        if journaled:
            _log.info("writing rows of an earlier run", rows=len(journaled))
            self._waiting += [PendingRow(row, in_journal=True) for row in journaled]
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(background_tasks.keep("usage rows", self._write_rows))
            try:
                yield self
            finally:
                if self._reserved or self._waiting:
                    self._settled.clear()
                    await wait_until_set(self._settled, DRAIN_SECONDS)
                writer.cancel()
        if not self._unwritten:
            # The writer may have been stopped before it cleared the journal.
            await self._clear_journal()
        elif not await self._write_journal():
            _log.error("request rows lost at shutdown", rows=len(self._unwritten))

    @property
    def waiting(self) -> list[RequestId]:
        """Return the requests whose rows are not in PostgreSQL yet."""
        return [pending.row.id for pending in self._unwritten]

    @property
    def journal_rows(self) -> int:
        """Return how many of them are in the journal."""
        return sum(pending.in_journal for pending in self._unwritten)

    @property
    def _unwritten(self) -> list[PendingRow]:
        return [*self._waiting, *self._refused]

    async def check(self) -> OwnCheck:
        """Return whether the journal's disk takes rows, trying it at most once in PROBE_SECONDS."""
        now = asyncio.get_running_loop().time()
        if now >= self._probe_at:
            self._probe_at = now + PROBE_SECONDS
            try:
                await asyncio.to_thread(self._journal.probe)
                self._disk_trouble = ""
            except OSError as error:
                self._disk_trouble = f"cannot be written: {error.strerror}; make room, or set JOURNAL_FILE"
        return OwnCheck("journal", not self._disk_trouble, self._disk_trouble)

    def reserve(self) -> None:
        """Reserve room for one row. Raises Unavailable if there is none."""
        waiting = len(self._waiting) + len(self._refused)
        if self._journal_trouble and not self._store_is_healthy:
            raise errors.Unavailable(
                f"usage can't be recorded: PostgreSQL is not available, and the journal can't be written: {self._journal_trouble}",
                hint="make room on the disk of the gateway, or set JOURNAL_FILE to another one; then retry",
                retry_after_seconds=5,
            )
        if waiting + self._reserved >= self._capacity:
            why = (
                f"{self._reserved:,} requests run, and the rows of {waiting:,} ended ones wait"
                if self._store_is_healthy
                else f"PostgreSQL has been down for too long, and the rows of {waiting:,} requests wait"
            )
            raise errors.Unavailable(f"usage can't be recorded: {why}", hint="retry soon", retry_after_seconds=5)
        self._reserved += 1

    def release(self) -> None:
        """Use this instead of ``add`` if another gateway writes the row."""
        self._reserved -= 1
        if not (self._reserved or self._waiting):
            self._settled.set()

    def add(self, row: RequestRow) -> PendingRow:
        """Queue the row. Never waits or fails."""
        self._reserved -= 1
        pending = PendingRow(row)
        self._waiting.append(pending)
        self._count()
        self._arrived.set()
        return pending

    async def take_over(self, rows: Sequence[RequestRow]) -> bool:
        """Write rows that another gateway left to the journal, and queue them. Return False if there is no room or the disk fails."""
        if len(self._unwritten) + self._reserved + len(rows) > self._capacity:
            return False
        # Held until the rows are queued, so that nothing empties the journal before.
        async with self._journal_lock:
            try:
                await asyncio.to_thread(self._journal.append, rows)
            except OSError:
                return False
            self._waiting += [PendingRow(row, in_journal=True) for row in rows]
        self._count()
        self._arrived.set()
        return True

    async def wait_until_saved(self, added: PendingRow) -> None:
        """Return as soon as the row is in PostgreSQL or the journal."""
        if self._store_is_healthy:
            await wait_until_set(added.written, WRITE_WAIT_SECONDS)
        if not (added.written.is_set() or added.in_journal):
            await self._write_journal()

    async def _write_journal(self) -> bool:
        """Write all waiting rows to the journal; return False if the disk fails."""
        async with self._journal_lock:
            unsaved = [pending for pending in self._unwritten if not pending.in_journal]
            try:
                if unsaved:
                    await asyncio.to_thread(self._journal.append, [pending.row for pending in unsaved])
            except OSError as error:
                self._journal_trouble = error.strerror or type(error).__name__
                _log.error("cannot write rows to the journal", reason=error.strerror, rows=len(unsaved))
                return False
            self._journal_trouble = ""
            for pending in unsaved:
                pending.in_journal = True
            return True

    async def _clear_journal(self) -> None:
        async with self._journal_lock:
            if not any(pending.in_journal for pending in self._unwritten):
                try:
                    await asyncio.to_thread(self._journal.clear)
                except OSError as error:
                    # The next start writes its rows again, which changes nothing.
                    _log.warning("cannot empty the journal", reason=error.strerror)

    async def _write_rows(self) -> None:
        failures, most = 0, BATCH
        while True:
            batch = await self._find_batch(most)
            try:
                await self._store.write_requests([pending.row for pending in batch])
            except RowsRefused as error:
                # One bad row refuses the batch; halving finds it.
                most = max(1, len(batch) // 2)
                await self._set_aside(batch, error)
                continue
            except errors.Unavailable as error:
                await self._handle_unavailable(error)
                failures += 1
                await asyncio.sleep(_BACKOFF.pause(failures))
                continue
            failures, most = 0, min(2 * most, BATCH)
            await self._finish(batch)

    async def _find_batch(self, most: int) -> list[PendingRow]:
        """Return the next rows to write; retry a refused one only if no others have arrived for a while."""
        while not self._waiting:
            self._arrived.clear()
            if not self._refused:
                await self._arrived.wait()
            elif not await wait_until_set(self._arrived, _REFUSED_SECONDS):
                self._waiting.append(self._refused.popleft())
        return list(itertools.islice(self._waiting, most))

    async def _handle_unavailable(self, error: errors.Unavailable) -> None:
        self._unavailable.inc()
        if self._store_is_healthy:
            self._store_is_healthy = False
            _log.error("request rows are waiting", reason=error.message, rows=len(self._waiting))
        await self._write_journal()

    async def _set_aside(self, batch: Sequence[PendingRow], error: RowsRefused) -> None:
        self._refusals.inc()
        if len(batch) > 1:
            return
        if not self._refused and not batch[0].was_refused:
            _log.error("PostgreSQL refused a request row; keeping it for retries", reason=error.message, request_id=batch[0].row.id)
        batch[0].was_refused = True
        self._refused.append(self._waiting.popleft())
        await self._write_journal()
        self._count()

    async def _finish(self, batch: Sequence[PendingRow]) -> None:
        if not self._store_is_healthy:
            self._store_is_healthy = True
            _log.info("writing request rows again", rows=len(self._waiting))
        for pending in batch:
            self._waiting.popleft()
            pending.written.set()
        if any(pending.was_refused for pending in batch):
            _log.info("a refused row was written", refused_rows=len(self._refused))
            self._waiting += self._refused
            self._refused.clear()
        self._count()
        if any(pending.in_journal for pending in batch):
            await self._clear_journal()

    def _count(self) -> None:
        self._queue_rows.set(len(self._waiting) + len(self._refused))
        if not (self._reserved or self._waiting):
            self._settled.set()
