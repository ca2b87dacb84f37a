"""Ends a child process with its worker, and seals each process's memory from the other.

Both run as the same user. Without the seal, a child that was taken over could read prompts, keys and tokens of the worker in /proc.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, and seal it (Linux only)."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    seal()
    # The parent may have died before prctl took effect. _exit, because buffers shared with a fork must not be flushed.
    if os.getppid() != parent:
        os._exit(0)


def seal() -> None:
    """Let only root read this process's memory, environment and open files, and disable core dumps (Linux only). Lasts until exec."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
