"""Knows PostgreSQL's time between queries. Whatever is counted per day is dated by it, because a machine's own clock may be wrong."""

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial

#: This clock also runs while the machine sleeps.
_boot_seconds = partial(time.clock_gettime, time.CLOCK_BOOTTIME)


class DatabaseClock:
    """Call ``refresh`` regularly. Until the first one, and only then, it is this machine's clock."""

    def __init__(self, read: Callable[[], Awaitable[datetime]], clock: Callable[[], float] = _boot_seconds) -> None:
        self._read = read
        self._clock = clock
        #: PostgreSQL's time at a moment of our clock.
        self._known: tuple[datetime, float] | None = None

    def now(self) -> datetime:
        if self._known is None:
            return datetime.now(UTC)
        at, known_at = self._known
        return at + timedelta(seconds=self._clock() - known_at)

    async def refresh(self) -> None:
        """Raises what ``read`` raises."""
        asked_at = self._clock()
        at = await self._read()
        self._known = at, (asked_at + self._clock()) / 2
