"""A clock for bounds on time: it nearly stands still while programs of this machine wait for a CPU.

A bound says what the product's own timers allow. On a busy machine everything also waits for a CPU, which is no fault of the product;
Linux counts how long (pressure stall information, https://docs.kernel.org/accounting/psi.html).
"""

import time
from pathlib import Path

_PRESSURE = Path("/proc/pressure/cpu")
#: Of the time in which somebody waits. The rest counts, so that a bound ends even where somebody always waits.
_EXCUSED = 0.9


def now() -> float:
    """Seconds since some moment; those of a wall clock where Linux does not count."""
    return time.monotonic() - _EXCUSED * _waited_seconds()


def _waited_seconds() -> float:
    try:
        return read_waited(_PRESSURE.read_text(encoding="ascii"))
    except OSError:
        return 0.0


def read_waited(text: str) -> float:
    """How long at least one program had to wait, in seconds since the start of the machine. Pure."""
    line = next(line for line in text.splitlines() if line.startswith("some "))
    return int(line.rpartition("total=")[2]) / 1_000_000
