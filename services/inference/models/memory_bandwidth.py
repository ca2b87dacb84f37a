"""Measures how fast the processors read memory. Without a GPU, this limits a model's speed: each token reads all weights."""

import ctypes
import mmap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

#: More than the caches of a processor.
BUFFER_BYTES = 256 * 2**20
#: Between two looks at the clock.
_PART_BYTES = 2 * 2**20
MEASURE_SECONDS = 0.1


def measure(threads: int, *, seconds: float = MEASURE_SECONDS, buffer_bytes: int = BUFFER_BYTES) -> float:
    """Return the bytes per second that these threads read together. Blocks for ``seconds``, after as much time for getting the memory."""
    # In the C library, which the interpreter's lock doesn't hold up, and whose loops use the processor's widest reads.
    compare = ctypes.CDLL(None).memcmp
    compare.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    with mmap.mmap(-1, buffer_bytes) as memory:
        # Pages of 4 KiB take longer to get than to read. Not every kernel has larger ones.
        with suppress(OSError, AttributeError):
            memory.madvise(mmap.MADV_HUGEPAGE)
        view = (ctypes.c_char * buffer_bytes).from_buffer(memory)
        start = ctypes.addressof(view)
        # Memory that nobody has written is one page of zeros.
        ctypes.memset(start, 1, buffer_bytes)
        half = buffer_bytes // (2 * threads)
        part = min(_PART_BYTES, half)
        ends_at = time.perf_counter() + seconds

        def read(number: int) -> int:
            first, count = start + 2 * half * number, 0
            while True:
                for offset in range(0, half - part + 1, part):
                    compare(first + offset, first + half + offset, part)
                    count += 2 * part
                    if time.perf_counter() >= ends_at:
                        return count

        began_at = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            count = sum(pool.map(read, range(threads)))
        taken = time.perf_counter() - began_at
        del view
    return count / taken
