"""What ties a worker's child process to it: the kernel ends the child with its parent, in the middle of whatever it does."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies, and keep what users wrote out of core dumps (Linux only)."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    # The parent may have died before the request was in place. Without a farewell: a fork shares what that would flush.
    if os.getppid() != parent:
        os._exit(0)
