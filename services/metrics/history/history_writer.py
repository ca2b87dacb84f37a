"""Looks at the mesh every 15 s, writes what it saw, rolls it up and throws the old away. The only one that writes the history.

Looking and writing are two tasks. While PostgreSQL is away looks wait in memory, the oldest ones in vain; the gap stays. What was
written once is not written again, and rolling up begins again where it was interrupted: each time is rolled up as a whole, from
rows that do not change any more, so doing it twice is doing it once.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Final

from services.metrics.history import rollup
from services.metrics.history.history_store import HistoryStore
from services.metrics.history.row_reader import HistoryRow, MeshReading, Names, RowReader
from shared.api.gateway import Check

#: Ten minutes; with 200 workers of 100 series some 4 MB.
MAX_WAITING: Final = 40
#: Rows that are rolled up at a time: their numbers are added up between two awaits.
_ROWS_AT_ONCE: Final = 240
#: A node that says other names at each look is bounded by this; a mesh of 500 nodes that all load a model has 1,000.
MAX_LAYOUTS_A_DAY: Final = 5_000
_DELETED_AT_ONCE: Final = 5_000
#: Timers are rounded to milliseconds: a look that came a moment before its time would be that of 15 s ago, which was missed.
_LATE_SECONDS: Final = 0.005
_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: Rows from beyond this in the future were written when the clock was wrong.
_FUTURE: Final = timedelta(hours=1)
#: Looks without a jump of the clock before anything is deleted: ten minutes. What is too old by a wrong clock is gone for good.
STEADY_LOOKS: Final = 40


class SeriesLayouts:
    """The ids of layouts, asked for once a day each."""

    def __init__(self) -> None:
        self._today: date | None = None
        self._ids: dict[Names, int] = {}

    async def find(self, store: HistoryStore, names: Names, today: date) -> int | None:
        """None where there were too many today."""
        if today != self._today:
            self._today, self._ids = today, {}
        if names not in self._ids:
            if len(self._ids) >= MAX_LAYOUTS_A_DAY:
                return None
            self._ids[names] = await store.ensure_layout(names, today)
        return self._ids[names]


class HistoryWriter:
    """``text`` is that of the whole mesh; ``keeps`` says how long rows of each resolution live."""

    def __init__(
        self, text: Callable[[], Awaitable[str]], keeps: Mapping[int, timedelta], clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._text = text
        self._keeps = keeps
        self._clock = clock
        self._reader = RowReader()
        self._layouts = SeriesLayouts()
        self._waiting: deque[MeshReading] = deque(maxlen=MAX_WAITING)
        self._told = asyncio.Event()
        self._last: datetime | None = None
        #: How far each resolution was rolled up; nothing where that has to be looked for.
        self._rolled: dict[int, datetime] = {}
        self._steady = 0
        self._left_out = 0

    def check(self) -> Check:
        """What there is no room for is no complaint: it is seen at /metrics all the same."""
        detail = f"{self._left_out} series of the last look have no history: a node has at most 200" if self._left_out else ""
        return Check("history", ok=True, detail=detail, needed=False)

    @property
    def waiting(self) -> int:
        """Looks that are not written yet."""
        return len(self._waiting)

    # --- looking ----------------------------------------------------------------------------------------------------

    async def look_for_ever(self) -> None:
        while True:
            now = self._clock()
            await asyncio.sleep(rollup.RAW - now.timestamp() % rollup.RAW + _LATE_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Once; a time that was looked at before is not looked at again, as when the clock was put back a little."""
        at = rollup.floor(self._clock(), rollup.RAW)
        if self._last is not None and timedelta(0) <= self._last - at < _FUTURE:
            return
        is_steady = self._last is not None and timedelta(0) < at - self._last < _FUTURE
        self._steady = self._steady + 1 if is_steady else 0
        self._last = at
        # With 200 workers 0.1 s of work, and 0.7 s the first time.
        look = await asyncio.to_thread(self._reader.read, await self._text(), at)
        self._left_out = look.left_out
        self._waiting.append(look)
        self._told.set()

    # --- writing ----------------------------------------------------------------------------------------------------

    async def wait(self) -> None:
        """Until there is a look that ``keep`` has not seen."""
        await self._told.wait()

    async def keep(self, store: HistoryStore) -> None:
        """Everything that is to be done now. Raises Unavailable; what is done by then is done, and the rest when it is called again."""
        self._told.clear()
        while self._waiting:
            look = self._waiting[0]
            await self._write(store, look)
            # Meanwhile the oldest may have gone by itself.
            if self._waiting and self._waiting[0] is look:
                self._waiting.popleft()
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
        """Each time of this length that is over and has rows. Where it is not known how far that was done, the newest again: it may be
        half done."""
        finer, end = rollup.FROM[resolution], rollup.floor(now, resolution)
        begin = self._rolled.pop(resolution, None) or await store.find_newest(resolution, now) or _BEGINNING
        if begin > end:  # the clock was put back
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
        """Some thousand rows of each resolution at a time; what is left goes at the next looks."""
        for resolution, time in self._keeps.items():
            await store.delete_before(resolution, now - time, now + _FUTURE, _DELETED_AT_ONCE)
        longest = max(self._keeps.values())
        await store.delete_layouts((now - longest - timedelta(days=2)).date())
