"""From what the system has counted to shares and counters. Pure: whoever reads the machine brings the time, too."""

from collections.abc import Mapping
from dataclasses import dataclass

#: No machine moves more on one interface or on its disks: a step beyond is a misreading. 800 Gbit/s.
MOST_BYTES_PER_SECOND = 100_000_000_000
#: Nothing has counted that far, an exbibyte: it is a driver's -1 or an overflow.
MOST_BYTES = 2**60
#: Interfaces that are remembered. Each container that starts may bring one with a name of its own.
MOST_SOURCES = 1000


@dataclass(frozen=True, slots=True)
class Processors:
    """Processor seconds so far."""

    #: Whose they are, and how many: only two readings of the same can be compared.
    of: str
    busy: float
    #: What there was to use, busy and idle.
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
    """Of what there was between two readings, how much was used, from 0 to 1; None where they cannot be compared."""
    possible = now.possible - before.possible
    if before.of != now.of or possible <= 0:
        return None
    # The kernel's idle time may go back a little, and a cgroup's use and the clock are not read at the same instant.
    return min(1.0, max(0.0, (now.busy - before.busy) / possible))


class CounterRate:
    """What a counter grows by, of totals that vanish with their interface, begin again, or are nonsense for once.

    The first time it is all that was counted since the system started, so that a node which starts again goes on where it was.
    Never negative: a total that went back adds nothing until it grows again.
    """

    def __init__(self) -> None:
        #: The newest last.
        self._last: dict[str, int] = {}
        self._began = False

    def take(self, totals: Mapping[str, int], seconds: float) -> int:
        """``seconds`` have gone by since the last time."""
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
