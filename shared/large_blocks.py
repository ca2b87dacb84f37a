"""Gives large blocks of memory back to the system at once. Only glibc has to be told; others do so anyway."""

import ctypes

#: glibc's numbers of the parameters.
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
_BYTES = 1 << 20


def give_back() -> None:
    """Call it before other threads begin. By default each thread keeps the blocks of 4 MiB and more that files are sealed in."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _BYTES)
        mallopt(_ARENA_MAX, 2)
