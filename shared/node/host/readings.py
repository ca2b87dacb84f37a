"""Computes shares and counters from the system's totals. Pure: the caller brings the readings and the time."""

from collections.abc import Mapping
from dataclasses import dataclass

#: 800 Gbit/s. A larger step is a misreading.
MOST_BYTES_PER_SECOND = 100_000_000_000
#: An exbibyte. A larger total is a driver's -1 or an overflow.
MOST_BYTES = 2**60
#: Interfaces to remember. Each container that starts may add one with its own name.
MOST_SOURCES = 1000


@dataclass(frozen=True, slots=True)
class Processors:
    """Processor time so far, in seconds."""

    #: What was measured. Only readings of the same can be compared.
    of: str
    busy: float
    possible: float


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of memory or of a disk."""

    used: int
    free: int
    total: int


@dataclass(frozen=True, slots=True)
class TransferredBytes:
    """Bytes since the system started: read and written, or received and sent."""

    inwards: int
    outwards: int


def cpu_share(before: Processors, now: Processors) -> float | None:
    """Return the share that was used between two readings, from 0 to 1; None if they cannot be compared."""
    possible = now.possible - before.possible
    if before.of != now.of or possible <= 0:
        return None
    # The kernel's idle time may go back slightly, and a cgroup's usage and the clock are read at different instants.
    return min(1.0, max(0.0, (now.busy - before.busy) / possible))


class CounterRate:
    """Computes the growth of totals that may vanish with their interface, restart, or be nonsense once.

    The first growth is everything since the system started, so that a restarted node continues its counters. Never negative: a total that
    went back adds nothing until it grows again.
    """

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._began = False

    def take(self, totals: Mapping[str, int], seconds: float) -> int:
        """``seconds`` is the time since the last call."""
        bound = MOST_BYTES if not self._began else MOST_BYTES_PER_SECOND * max(1.0, seconds)
        grown = 0
        for source, total in totals.items():
            if not 0 <= total < MOST_BYTES:
                continue
            step = total - self._last.pop(source, 0)
            self._last[source] = total
            if 0 < step < bound:
                grown += step
        while len(self._last) > MOST_SOURCES:
            self._last.pop(next(iter(self._last)))
        self._began = self._began or bool(totals)
        return grown
