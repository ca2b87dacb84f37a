"""Owns the rows of ended requests until they are in PostgreSQL, and with each the end of its reservation.

A caller learns the end of its request when its row is written: into PostgreSQL or, where that does not take it at once, into
the journal on this machine's disk. While PostgreSQL is away the rows wait here; when as many wait as may, or the disk does not
take them either, new requests are refused before they begin. A row that PostgreSQL refuses holds no other up: it stays in the journal
and is tried again every few seconds.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client import Counter, Gauge

from services.gateway.billing.request_record import RequestRow
from shared import errors
from shared.telemetry import logs
from shared.timing.bounded_waits import BoundedWait
from shared.types import RequestId

#: Rows that wait and requests that still will have one. A row takes about 1 KB here, so this is some 10 MB.
CAPACITY = 10_000
#: Rows in one statement. One writer and many rows to a statement: a burst costs PostgreSQL few commits, in order.
BATCH = 500
#: How long the end of a request waits for PostgreSQL before its row goes into the journal.
WRITE_WAIT_SECONDS = 0.25
DRAIN_SECONDS = 10.0
_FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS = 0.1, 5.0
#: How often one of the rows that PostgreSQL has refused is tried again, to see whether somebody has mended what was wrong.
_REFUSED_SECONDS = 5.0

_log = logs.get(part="recorder")


class RowsRefused(errors.Unavailable):
    """PostgreSQL answered with an error, which the message names, and took none of these rows."""


class Writer(Protocol):
    """Where rows go."""

    async def write_requests(self, rows: Sequence[RequestRow]) -> None:
        """All or none; the same row again changes nothing. Raises Unavailable, or RowsRefused in particular."""
        ...


class Disk(Protocol):
    """Where rows go instead; as ``journal.Journal``. Its methods block."""

    def read(self) -> list[RequestRow]: ...

    def append(self, rows: Sequence[RequestRow]) -> None: ...

    def clear(self) -> None: ...


@dataclass(slots=True, eq=False)
class PendingRow:
    """A row that is not in PostgreSQL yet."""

    row: RequestRow
    written: asyncio.Event = field(default_factory=asyncio.Event)
    in_journal: bool = False
    was_refused: bool = False


class UsageRecorder:
    """Use ``active_prompt``. Every successful ``reserve`` is followed by exactly one ``add`` or ``release``."""

    def __init__(self, store: Writer, journal: Disk, queue_rows: Gauge, failures: Counter, *, capacity: int = CAPACITY) -> None:
        self._store = store
        self._journal = journal
        # One at a time at the file, so that a crowd of rows costs one sync.
        self._journal_turn = asyncio.Lock()
        self._journal_is_well = True
        self._queue_rows = queue_rows
        self._unavailable, self._refusals = failures.labels(reason="unavailable"), failures.labels(reason="refused")
        self._capacity = capacity
        self._waiting: deque[PendingRow] = deque()
        #: What PostgreSQL has refused, row by row.
        self._refused: deque[PendingRow] = deque()
        self._reserved = 0
        self._arrived = asyncio.Event()
        self._settled = asyncio.Event()
        self._store_is_well = True

    @asynccontextmanager
    async def running(self) -> AsyncIterator["UsageRecorder"]:
        """Writes in the background, first what an earlier process left in the journal; at the end of the block what waits is written,
        for up to 10 s, also the rows of requests that are being cut off just now, and what is left then is in the journal."""
        left = await asyncio.to_thread(self._journal.read)
        if left:
            _log.info("rows of an earlier run are written now", rows=len(left))
            self._waiting += [PendingRow(row, in_journal=True) for row in left]
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(self._write_for_ever())
            try:
                yield self
            finally:
                if self._reserved or self._waiting:
                    self._settled.clear()
                    await _wait(self._settled, DRAIN_SECONDS)
                writer.cancel()
        if not self._unwritten:
            # The writer may have been stopped between its last batch and this.
            await self._clear()
        elif not await self._keep():
            _log.error("request rows lost at shutdown", rows=len(self._unwritten))

    @property
    def waiting(self) -> list[RequestId]:
        """Whose rows are not in PostgreSQL yet."""
        return [pending.row.id for pending in self._unwritten]

    @property
    def journal_rows(self) -> int:
        """How many of them are in the journal."""
        return sum(pending.in_journal for pending in self._unwritten)

    @property
    def _unwritten(self) -> list[PendingRow]:
        return [*self._waiting, *self._refused]

    def reserve(self) -> None:
        """Room for one row. Raises Unavailable when there is none."""
        full = len(self._waiting) + len(self._refused) + self._reserved >= self._capacity
        if full or not (self._store_is_well or self._journal_is_well):
            raise errors.Unavailable(
                "usage cannot be recorded: PostgreSQL has been away for long", hint="try again soon", retry_after_seconds=5
            )
        self._reserved += 1

    def release(self) -> None:
        """Instead of ``add``: another gateway writes the row."""
        self._reserved -= 1
        if not (self._reserved or self._waiting):
            self._settled.set()

    def add(self, row: RequestRow) -> PendingRow:
        """Never waits and never fails."""
        self._reserved -= 1
        pending = PendingRow(row)
        self._waiting.append(pending)
        self._count()
        self._arrived.set()
        return pending

    async def written(self, pending: PendingRow) -> None:
        """Returns when the row outlives this process: soon, whether PostgreSQL is well or not."""
        if self._store_is_well:
            await _wait(pending.written, WRITE_WAIT_SECONDS)
        if not (pending.written.is_set() or pending.in_journal):
            await self._keep()

    async def _keep(self) -> bool:
        """Everything that waits is in the journal; False where the disk does not take it."""
        async with self._journal_turn:
            unkept = [pending for pending in self._unwritten if not pending.in_journal]
            try:
                if unkept:
                    await asyncio.to_thread(self._journal.append, [pending.row for pending in unkept])
            except OSError as error:
                self._journal_is_well = False
                _log.error("rows cannot be kept on disk", reason=error.strerror, rows=len(unkept))
                return False
            self._journal_is_well = True
            for pending in unkept:
                pending.in_journal = True
            return True

    async def _clear(self) -> None:
        """Empty the journal, if every row in it is in PostgreSQL."""
        async with self._journal_turn:
            if not any(pending.in_journal for pending in self._unwritten):
                try:
                    await asyncio.to_thread(self._journal.clear)
                except OSError as error:
                    # Its rows are written once more at the next start, which changes nothing.
                    _log.warning("the journal cannot be emptied", reason=error.strerror)

    async def _write_for_ever(self) -> None:
        backoff_seconds, most = _FIRST_BACKOFF_SECONDS, BATCH
        while True:
            batch = await self._find_batch(most)
            try:
                await self._store.write_requests([pending.row for pending in batch])
            except RowsRefused as error:
                # One row may be the reason for all; halves find it.
                most = max(1, len(batch) // 2)
                await self._set_aside(batch, error)
                continue
            except errors.Unavailable as error:
                await self._keep_waiting(error)
                await asyncio.sleep(backoff_seconds)
                backoff_seconds = min(2 * backoff_seconds, _LONGEST_BACKOFF_SECONDS)
                continue
            backoff_seconds, most = _FIRST_BACKOFF_SECONDS, min(2 * most, BATCH)
            await self._finish(batch)

    async def _find_batch(self, most: int) -> list[PendingRow]:
        """The rows that are written next; of those that were refused one, and only where no others come for a while."""
        while not self._waiting:
            self._arrived.clear()
            if not self._refused:
                await self._arrived.wait()
            elif not await _wait(self._arrived, _REFUSED_SECONDS):
                self._waiting.append(self._refused.popleft())
        return list(itertools.islice(self._waiting, most))

    async def _keep_waiting(self, error: errors.Unavailable) -> None:
        self._unavailable.inc()
        if self._store_is_well:
            self._store_is_well = False
            _log.error("request rows wait", reason=error.message, rows=len(self._waiting))
        await self._keep()

    async def _set_aside(self, batch: Sequence[PendingRow], error: RowsRefused) -> None:
        """The row, where it is only one."""
        self._refusals.inc()
        if len(batch) > 1:
            return
        if not self._refused and not batch[0].was_refused:
            _log.error("PostgreSQL refuses a request's row; it is kept and tried again", reason=error.message, request_id=batch[0].row.id)
        batch[0].was_refused = True
        self._refused.append(self._waiting.popleft())
        await self._keep()
        self._count()

    async def _finish(self, batch: Sequence[PendingRow]) -> None:
        """They are in PostgreSQL."""
        if not self._store_is_well:
            self._store_is_well = True
            _log.info("request rows are written again", rows=len(self._waiting))
        for pending in batch:
            self._waiting.popleft()
            pending.written.set()
        if any(pending.was_refused for pending in batch):
            _log.info("a row that was refused is written", refused_rows=len(self._refused))
            self._waiting += self._refused
            self._refused.clear()
        self._count()
        if any(pending.in_journal for pending in batch):
            await self._clear()

    def _count(self) -> None:
        self._queue_rows.set(len(self._waiting) + len(self._refused))
        if not (self._reserved or self._waiting):
            self._settled.set()


async def _wait(event: asyncio.Event, seconds: float) -> bool:
    """Whether it was set in time."""
    try:
        with BoundedWait(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
