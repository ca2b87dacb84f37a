"""The clock that also runs while the machine sleeps."""

import time


def boot_time() -> float:
    """Return the seconds since the start of the machine."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
