"""What ties a worker's child process to it, and keeps each out of the other's memory.

The kernel ends a child with its parent, in the middle of whatever it does. And what users wrote, keys and tokens stay in the process
that has them: a child that somebody took over is of the same user as its worker, which alone would let it read all of that in /proc.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies, and seal it (Linux only)."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    seal()
    # The parent may have died before the request was in place. Without a farewell: a fork shares what that would flush.
    if os.getppid() != parent:
        os._exit(0)


def seal() -> None:
    """No process but root's may look into this one from here on, its memory, environment and open files, and no core dump holds any
    of it (Linux only). Lasts until this process becomes another program."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
