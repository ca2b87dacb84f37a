"""Decides how many lines of a model a gateway runs at once. Pure.

Workers and queues already put live requests first. But lines that wait close by would take each slot again the moment it is free, so while
a live request waits, half as many lines go on.
"""

#: Lines for each one that runs, so that no slot waits for the next claim.
_AHEAD = 2
_MIN_AHEAD = 4
#: Of one gateway and model.
MAX_LINES = 256


class Pace:
    def __init__(self) -> None:
        self._window = float(MAX_LINES)

    def look(self, *, slots: int, waits_live: bool) -> int:
        """Return how many lines may be here at once, with so many slots for them. Call it regularly."""
        if waits_live:
            self._window = min(self._window, _max_lines(slots)) / 2
        else:
            self._window = min(2 * self._window + 1, _max_lines(slots))
        return int(self._window)


def _max_lines(slots: int) -> int:
    return min(MAX_LINES, max(_AHEAD * slots, slots + _MIN_AHEAD)) if slots > 0 else 0
