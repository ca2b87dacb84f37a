"""Ends a child process with its worker, and seals its memory from other processes of the same user."""

import ctypes
import os
import signal
import sys

from shared import processes

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, and seal it (Linux only)."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    processes.seal()
    # The parent may have died before prctl took effect. _exit, because buffers shared with a fork must not be flushed.
    if os.getppid() != parent:
        os._exit(0)
