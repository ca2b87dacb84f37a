"""Sample the metrics every 15 s, write and roll up the samples, and delete old ones. The only writer of the history.

Sampling and writing are two tasks. While PostgreSQL is down, samples wait in a bounded queue. An interrupted rollup starts again: it
covers whole periods of rows that no longer change, so it is idempotent.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Final

from services.metrics.history import rollup
from services.metrics.history.history_store import HistoryStore
from services.metrics.history.row_reader import HistoryRow, MeshReading, Names, RowReader
from shared import errors
from shared.api.gateway import Check

#: Ten minutes; about 4 MB with 200 workers of 100 series.
MAX_WAITING: Final = 40
#: Rows per rollup step, which runs without an await.
_ROWS_AT_ONCE: Final = 240
#: Limits nodes that send ever new names; a mesh of 500 nodes that all load a model has 1,000.
MAX_LAYOUTS_A_DAY: Final = 5_000
_DELETED_AT_ONCE: Final = 5_000
#: Timers have a precision of milliseconds. A sample that comes too early would count for the previous period.
_LATE_SECONDS: Final = 0.005
_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: Later rows were written while the clock was wrong.
_FUTURE: Final = timedelta(hours=1)
#: How many samples (ten minutes) without a clock jump must precede a deletion, which a wrong clock would make harmful.
STEADY_LOOKS: Final = 40


class SeriesLayouts:
    """Caches the ids of layouts for a day."""

    def __init__(self) -> None:
        self._today: date | None = None
        self._ids: dict[Names, int] = {}

    async def find(self, store: HistoryStore, names: Names, today: date) -> int | None:
        """Return the id; None if there were too many layouts today."""
        if today != self._today:
            self._today, self._ids = today, {}
        if names not in self._ids:
            if len(self._ids) >= MAX_LAYOUTS_A_DAY:
                return None
            self._ids[names] = await store.ensure_layout(names, today)
        return self._ids[names]


class HistoryWriter:
    """``text`` returns the metrics of the whole mesh; ``retention`` has the retention of each resolution."""

    def __init__(
        self,
        text: Callable[[], Awaitable[str]],
        retention: Mapping[int, timedelta],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._text = text
        self._retention = retention
        self._clock = clock
        self._reader = RowReader()
        self._layouts = SeriesLayouts()
        self._waiting: deque[MeshReading] = deque(maxlen=MAX_WAITING)
        self._has_sample = asyncio.Event()
        self._last: datetime | None = None
        #: Resolution -> how far it is rolled up; unknown ones are missing.
        self._rolled: dict[int, datetime] = {}
        self._steady = 0
        self._left_out = 0

    def check(self) -> Check:
        detail = f"{self._left_out} series of the last sample have no history: the limit is 200 per node" if self._left_out else ""
        return Check("history", ok=True, detail=detail, needed=False)

    @property
    def waiting(self) -> int:
        """Return the number of unwritten samples."""
        return len(self._waiting)

    async def sample_forever(self) -> None:
        while True:
            now = self._clock()
            await asyncio.sleep(rollup.RAW - now.timestamp() % rollup.RAW + _LATE_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Sample once, unless this period was sampled before, as after a small clock change."""
        at = rollup.floor(self._clock(), rollup.RAW)
        if self._last is not None and timedelta(0) <= self._last - at < _FUTURE:
            return
        is_steady = self._last is not None and timedelta(0) < at - self._last < _FUTURE
        self._steady = self._steady + 1 if is_steady else 0
        self._last = at
        # Takes 0.1 s of CPU with 200 workers, and 0.7 s the first time.
        look = await asyncio.to_thread(self._reader.read, await self._text(), at)
        self._left_out = look.left_out
        self._waiting.append(look)
        self._has_sample.set()

    async def wait(self) -> None:
        """Wait for the next sample."""
        await self._has_sample.wait()

    async def keep(self, store: HistoryStore) -> None:
        """Write, roll up and delete. Raises Unavailable; call it again to continue."""
        self._has_sample.clear()
        while self._waiting:
            look = self._waiting.popleft()
            try:
                await self._write(store, look)
            except errors.Unavailable:
                if len(self._waiting) < MAX_WAITING:
                    self._waiting.appendleft(look)
                raise
        if self._last is not None:
            for resolution in rollup.FROM:
                await self._roll_up(store, resolution, self._last)
            if self._steady >= STEADY_LOOKS:
                await self._delete(store, self._last)

    async def _write(self, store: HistoryStore, look: MeshReading) -> None:
        rows: list[tuple[datetime, HistoryRow]] = []
        layouts: dict[Names, int] = {}
        for row in look.rows:
            layout = await self._layouts.find(store, row.names, look.at.date())
            if layout is None:
                self._left_out += len(row.names)
                continue
            layouts[row.names] = layout
            rows.append((look.at, row))
        await store.write_looks(rollup.RAW, rows, layouts)

    async def _roll_up(self, store: HistoryStore, resolution: int, now: datetime) -> None:
        """Roll up all completed periods. If the progress is unknown, repeat the newest one, which may be incomplete."""
        finer, end = rollup.FROM[resolution], rollup.floor(now, resolution)
        begin = self._rolled.pop(resolution, None) or await store.find_newest(resolution, now) or _BEGINNING
        if begin > end:  # the clock was set back
            begin = await store.find_newest(resolution, now) or _BEGINNING
        while begin < end and (first := await store.find_next(finer, begin, end)) is not None:
            at = rollup.floor(first, resolution)
            begin = rollup.ends(at, resolution)
            nodes = await store.nodes(finer, at, begin)
            most = max(1, _ROWS_AT_ONCE * finer // resolution)
            for number in range(0, len(nodes), most):
                rows = rollup.roll(await store.rows(finer, at, begin, nodes[number : number + most]))
                await store.write_rolled(resolution, at, rows)
        self._rolled[resolution] = end

    async def _delete(self, store: HistoryStore, now: datetime) -> None:
        """Delete some thousand rows of each resolution; the next calls delete the rest."""
        for resolution, time in self._retention.items():
            await store.delete_before(resolution, now - time, now + _FUTURE, _DELETED_AT_ONCE)
        longest = max(self._retention.values())
        await store.delete_layouts((now - longest - timedelta(days=2)).date())
