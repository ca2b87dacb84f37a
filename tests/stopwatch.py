"""A clock for bounds on time: it nearly stands still while programs of this machine wait for a CPU.

A bound says what the product's own timers allow. On a busy machine everything also waits for a CPU, which is no fault of the product;
Linux counts how long (pressure stall information, https://docs.kernel.org/accounting/psi.html).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Ends a test that hangs. It proves that a wait of twice this time was not waited out, and says nothing about speed.
HANG_SECONDS = 30.0
#: Whether ``within`` measures; ``tests.tiers`` says so for the nightly run.
bounds_hold = False
_PRESSURE = Path("/proc/pressure/cpu")
#: Of the time in which somebody waits. The rest counts, so that a bound ends even where somebody always waits.
_EXCUSED = 0.9


def now() -> float:
    """Seconds since some moment; those of a wall clock where Linux does not count."""
    return time.monotonic() - _EXCUSED * _waited_seconds()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """A bound on what happens inside, for the nightly run. `make test` has none: other tests run at the same time."""
    began = now()
    yield
    took = now() - began
    assert took < seconds or not bounds_hold, f"it took {took:.2f} s, not less than {seconds} s"


def patience(seconds: float) -> float:
    """How long a test waits for what must happen: these seconds in the nightly run, and in `make test` at least HANG_SECONDS."""
    return seconds if bounds_hold else max(seconds, HANG_SECONDS)


def _waited_seconds() -> float:
    try:
        return read_waited(_PRESSURE.read_text(encoding="ascii"))
    except OSError:
        return 0.0


def read_waited(text: str) -> float:
    """How long at least one program had to wait, in seconds since the start of the machine. Pure."""
    line = next(line for line in text.splitlines() if line.startswith("some "))
    return int(line.rpartition("total=")[2]) / 1_000_000
