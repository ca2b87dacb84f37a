"""Owns the rows of ended requests until they are in PostgreSQL.

A caller learns the end of its request when its row is written. While PostgreSQL is away the rows wait here, and callers
are not made to wait for them; when as many wait as may, new requests are refused before they begin.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import Gauge

from services.gateway.store import RequestRow
from shared import errors
from shared.telemetry import logs

#: Rows that wait and requests that still will have one. A row takes about 1 KB here, so this is some 10 MB.
CAPACITY = 10_000
#: Rows in one statement. One writer and many rows to a statement: a burst costs PostgreSQL few commits, in order.
BATCH = 500
#: How long the end of a request waits for its row, when PostgreSQL was well the last time.
WRITE_WAIT_SECONDS = 2.0
DRAIN_SECONDS = 10.0
_FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS = 0.1, 5.0

_log = logs.get(part="recorder")


class Writer(Protocol):
    """Where rows go."""

    async def write_requests(self, rows: Sequence[RequestRow]) -> None:
        """All or none; the same row again changes nothing. Raises Unavailable."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    row: RequestRow
    written: asyncio.Event


class Recorder:
    """Use ``running``. Every successful ``reserve`` is followed by exactly one ``add``."""

    def __init__(self, store: Writer, queue_rows: Gauge, *, capacity: int = CAPACITY) -> None:
        self._store = store
        self._queue_rows = queue_rows
        self._capacity = capacity
        self._waiting: deque[_Waiting] = deque()
        self._reserved = 0
        self._arrived = asyncio.Event()
        self._settled = asyncio.Event()
        self._store_is_well = True

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Recorder"]:
        """Writes in the background; at the end of the block what waits is written, for up to 10 s, also the rows of requests
        that are being cut off just now."""
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(self._write_for_ever())
            try:
                yield self
            finally:
                if self._reserved or self._waiting:
                    self._settled.clear()
                    await _wait(self._settled, DRAIN_SECONDS)
                if self._waiting:
                    _log.error("request rows lost at shutdown", rows=len(self._waiting))
                writer.cancel()

    def reserve(self) -> None:
        """Room for one row. Raises Unavailable when there is none."""
        if len(self._waiting) + self._reserved >= self._capacity:
            raise errors.Unavailable(
                "usage cannot be recorded: PostgreSQL has been away for long", hint="try again soon", retry_after_seconds=5
            )
        self._reserved += 1

    def add(self, row: RequestRow) -> asyncio.Event:
        """Never waits and never fails. The event is set when the row is written."""
        self._reserved -= 1
        waiting = _Waiting(row, asyncio.Event())
        self._waiting.append(waiting)
        self._queue_rows.set(len(self._waiting))
        self._arrived.set()
        return waiting.written

    async def written(self, row: asyncio.Event) -> None:
        """Waits for the row, but not long and not at all while PostgreSQL is away: then it is in the queue, which is enough."""
        if self._store_is_well:
            await _wait(row, WRITE_WAIT_SECONDS)

    async def _write_for_ever(self) -> None:
        backoff_seconds = _FIRST_BACKOFF_SECONDS
        while True:
            if not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            batch = [self._waiting[position] for position in range(min(BATCH, len(self._waiting)))]
            try:
                await self._store.write_requests([waiting.row for waiting in batch])
            except errors.Unavailable as error:
                if self._store_is_well:
                    self._store_is_well = False
                    _log.error("request rows wait", reason=error.message, rows=len(self._waiting))
                await asyncio.sleep(backoff_seconds)
                backoff_seconds = min(2 * backoff_seconds, _LONGEST_BACKOFF_SECONDS)
                continue
            if not self._store_is_well:
                self._store_is_well = True
                _log.info("request rows are written again", rows=len(self._waiting))
            backoff_seconds = _FIRST_BACKOFF_SECONDS
            for waiting in batch:
                self._waiting.popleft()
                waiting.written.set()
            self._queue_rows.set(len(self._waiting))
            if not (self._reserved or self._waiting):
                self._settled.set()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
