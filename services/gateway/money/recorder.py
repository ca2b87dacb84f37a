"""Owns the rows of ended requests until they are in PostgreSQL, and with each the end of its reservation.

A caller learns the end of its request when its row is written: into PostgreSQL or, where that does not take it at once, into
the journal on this machine's disk. While PostgreSQL is away the rows wait here; when as many wait as may, or the disk does not
take them either, new requests are refused before they begin.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client import Gauge

from services.gateway.money.request_row import RequestRow
from shared import errors
from shared.bounded_waits import BoundedWait
from shared.telemetry import logs
from shared.types import RequestId

#: Rows that wait and requests that still will have one. A row takes about 1 KB here, so this is some 10 MB.
CAPACITY = 10_000
#: Rows in one statement. One writer and many rows to a statement: a burst costs PostgreSQL few commits, in order.
BATCH = 500
#: How long the end of a request waits for PostgreSQL before its row goes into the journal.
WRITE_WAIT_SECONDS = 0.25
DRAIN_SECONDS = 10.0
_FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS = 0.1, 5.0

_log = logs.get(part="recorder")


class Writer(Protocol):
    """Where rows go."""

    async def write_requests(self, rows: Sequence[RequestRow]) -> None:
        """All or none; the same row again changes nothing. Raises Unavailable."""
        ...


class Disk(Protocol):
    """Where rows go instead; as ``journal.Journal``. Its methods block."""

    def read(self) -> list[RequestRow]: ...

    def append(self, rows: Sequence[RequestRow]) -> None: ...

    def clear(self) -> None: ...


@dataclass(slots=True, eq=False)
class Pending:
    """A row that is not in PostgreSQL yet."""

    row: RequestRow
    written: asyncio.Event = field(default_factory=asyncio.Event)
    in_journal: bool = False


class Recorder:
    """Use ``running``. Every successful ``reserve`` is followed by exactly one ``add``."""

    def __init__(self, store: Writer, journal: Disk, queue_rows: Gauge, *, capacity: int = CAPACITY) -> None:
        self._store = store
        self._journal = journal
        # One at a time at the file, so that a crowd of rows costs one sync.
        self._journal_turn = asyncio.Lock()
        self._journal_is_well = True
        self._queue_rows = queue_rows
        self._capacity = capacity
        self._waiting: deque[Pending] = deque()
        self._reserved = 0
        self._arrived = asyncio.Event()
        self._settled = asyncio.Event()
        self._store_is_well = True

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Recorder"]:
        """Writes in the background, first what an earlier process left in the journal; at the end of the block what waits is written,
        for up to 10 s, also the rows of requests that are being cut off just now, and what is left then is in the journal."""
        left = await asyncio.to_thread(self._journal.read)
        if left:
            _log.info("rows of an earlier run are written now", rows=len(left))
            self._waiting += [Pending(row, in_journal=True) for row in left]
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(self._write_for_ever())
            try:
                yield self
            finally:
                if self._reserved or self._waiting:
                    self._settled.clear()
                    await _wait(self._settled, DRAIN_SECONDS)
                writer.cancel()
        if not self._waiting:
            # The writer may have been stopped between its last batch and this.
            await self._clear()
        elif not await self._keep():
            _log.error("request rows lost at shutdown", rows=len(self._waiting))

    @property
    def waiting(self) -> list[RequestId]:
        """Whose rows are not in PostgreSQL yet."""
        return [pending.row.id for pending in self._waiting]

    @property
    def journal_rows(self) -> int:
        """How many of them are in the journal."""
        return sum(pending.in_journal for pending in self._waiting)

    def reserve(self) -> None:
        """Room for one row. Raises Unavailable when there is none."""
        full = len(self._waiting) + self._reserved >= self._capacity
        if full or not (self._store_is_well or self._journal_is_well):
            raise errors.Unavailable(
                "usage cannot be recorded: PostgreSQL has been away for long", hint="try again soon", retry_after_seconds=5
            )
        self._reserved += 1

    def add(self, row: RequestRow) -> Pending:
        """Never waits and never fails."""
        self._reserved -= 1
        pending = Pending(row)
        self._waiting.append(pending)
        self._queue_rows.set(len(self._waiting))
        self._arrived.set()
        return pending

    async def written(self, pending: Pending) -> None:
        """Returns when the row outlives this process: soon, whether PostgreSQL is well or not."""
        if self._store_is_well:
            await _wait(pending.written, WRITE_WAIT_SECONDS)
        if not (pending.written.is_set() or pending.in_journal):
            await self._keep()

    async def _keep(self) -> bool:
        """Everything that waits is in the journal; False where the disk does not take it."""
        async with self._journal_turn:
            unkept = [pending for pending in self._waiting if not pending.in_journal]
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
            if not any(pending.in_journal for pending in self._waiting):
                try:
                    await asyncio.to_thread(self._journal.clear)
                except OSError as error:
                    # Its rows are written once more at the next start, which changes nothing.
                    _log.warning("the journal cannot be emptied", reason=error.strerror)

    async def _write_for_ever(self) -> None:
        backoff_seconds = _FIRST_BACKOFF_SECONDS
        while True:
            if not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            batch = [self._waiting[position] for position in range(min(BATCH, len(self._waiting)))]
            try:
                await self._store.write_requests([pending.row for pending in batch])
            except errors.Unavailable as error:
                if self._store_is_well:
                    self._store_is_well = False
                    _log.error("request rows wait", reason=error.message, rows=len(self._waiting))
                await self._keep()
                await asyncio.sleep(backoff_seconds)
                backoff_seconds = min(2 * backoff_seconds, _LONGEST_BACKOFF_SECONDS)
                continue
            if not self._store_is_well:
                self._store_is_well = True
                _log.info("request rows are written again", rows=len(self._waiting))
            backoff_seconds = _FIRST_BACKOFF_SECONDS
            for pending in batch:
                self._waiting.popleft()
                pending.written.set()
            self._queue_rows.set(len(self._waiting))
            if any(pending.in_journal for pending in batch):
                await self._clear()
            if not (self._reserved or self._waiting):
                self._settled.set()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        with BoundedWait(seconds):
            await event.wait()
    except TimeoutError:
        return
