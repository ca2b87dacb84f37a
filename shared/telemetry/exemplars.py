"""Exemplars: in a bucket of a histogram, the trace of one request that fell into it, so that a chart leads to it."""

import time
from collections.abc import Callable
from typing import Final

from shared import context

#: A bucket has room for one, and is read every few seconds; a new one for each of thousands of requests a second costs what nobody sees.
PAUSE_SECONDS: Final = 0.02


class Exemplars:
    """One for a node: some of the requests whose traces are kept for sure."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_at = 0.0

    def of_request(self) -> dict[str, str] | None:
        """For all that is observed of the running request; None for most, which costs next to nothing."""
        now = context.current.get()
        trace = None if now is None or now.span is None else now.span.trace
        if trace is None or not trace.sampled:
            return None
        at = self._clock()
        if at < self._next_at:
            return None
        self._next_at = at + PAUSE_SECONDS
        return {"trace_id": trace.id}
