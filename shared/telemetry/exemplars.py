"""Attach exemplars to histograms: the trace of one request per bucket, so that a chart can link to it."""

import time
from collections.abc import Callable
from typing import Final

from shared import context

#: A bucket holds one exemplar and is read every few seconds, so most updates at high rates would be wasted.
PAUSE_SECONDS: Final = 0.02


class Exemplars:
    """Chooses requests with sampled traces, at a limited rate. One per node."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_at = 0.0

    def of_request(self) -> dict[str, str] | None:
        """Return the exemplar for all observations of the current request, or None for most requests."""
        now = context.current.get()
        trace = None if now is None or now.span is None else now.span.trace
        if trace is None or not trace.sampled:
            return None
        at = self._clock()
        if at < self._next_at:
            return None
        self._next_at = at + PAUSE_SECONDS
        return {"trace_id": trace.id}
