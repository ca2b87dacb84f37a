"""A clock for time limits that nearly stands still while programs on this machine wait for a CPU.

A limit reflects the product's own timers. On a busy machine everything also waits for a CPU, which is not the product's fault;
Linux counts that time (pressure stall information, https://docs.kernel.org/accounting/psi.html).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Ends a test that hangs. It also proves that a wait of twice this time was cut short, but says nothing about speed.
HANG_SECONDS = 30.0
#: Whether ``within`` measures; ``tests.tiers`` sets this for the nightly run.
bounds_hold = False
_PRESSURE = Path("/proc/pressure/cpu")
#: Share of the waiting time that does not count. The rest counts, so that a limit ends even if some program always waits.
_EXCUSED = 0.9


def now() -> float:
    """Return the seconds since some moment. CPU waits count in full if Linux does not measure them."""
    return time.monotonic() - _EXCUSED * _waited_seconds()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Limit the time of the block, in the nightly run only: in `make test`, other tests run at the same time."""
    began = now()
    yield
    took = now() - began
    assert took < seconds or not bounds_hold, f"it took {took:.2f} s, not less than {seconds} s"


def patience(seconds: float) -> float:
    """Return how long a test waits for what must happen: ``seconds`` in the nightly run, at least HANG_SECONDS in `make test`."""
    return seconds if bounds_hold else max(seconds, HANG_SECONDS)


def _waited_seconds() -> float:
    try:
        return read_waited(_PRESSURE.read_text(encoding="ascii"))
    except OSError:
        return 0.0


def read_waited(text: str) -> float:
    """Return how long at least one program waited for a CPU, in seconds since boot. Pure."""
    line = next(line for line in text.splitlines() if line.startswith("some "))
    return int(line.rpartition("total=")[2]) / 1_000_000
