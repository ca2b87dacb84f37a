"""Detects that this process was suspended, with its machine or by a busy scheduler.

Deadlines that passed meanwhile fire on wake-up, and don't indicate that the other side failed to answer.
"""

import asyncio
import time
from collections.abc import Callable

TICK_SECONDS = 0.25
#: A loop that is this late was suspended; a busy one is late by a tenth of it.
SUSPENDED_SECONDS = 1.0


class SuspendDetector:
    """Run ``watch`` while it is used."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: Number of suspensions.
        self.suspensions = 0

    def record_tick(self, last: float) -> float:
        """Handle a tick that was due TICK_SECONDS after the ``last`` one."""
        now = self._clock()
        if now - last >= TICK_SECONDS + SUSPENDED_SECONDS:
            self.suspensions += 1
        return now

    async def watch(self) -> None:
        """Run until canceled."""
        last = self._clock()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            last = self.record_tick(last)
