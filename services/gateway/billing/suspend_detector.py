"""Tells when this process was stopped for a while: put to sleep with its machine, or not run by a busy one.

Deadlines that passed meanwhile fire when it wakes, and say nothing of who did not answer.
"""

import asyncio
import time
from collections.abc import Callable

TICK_SECONDS = 0.25
#: A loop that is so late was not run; a busy one is late by a tenth of that.
STOPPED_SECONDS = 1.0


class SuspendDetector:
    """Run ``watch`` for as long as it is asked."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: How often that was.
        self.seen = 0

    def ticked(self, last: float) -> float:
        """A tick that was due TICK_SECONDS after the ``last`` one."""
        now = self._clock()
        if now - last >= TICK_SECONDS + STOPPED_SECONDS:
            self.seen += 1
        return now

    async def watch(self) -> None:
        """For ever."""
        last = self._clock()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            last = self.ticked(last)
