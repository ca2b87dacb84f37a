"""The processes that a supervisor started: when they started, and how to end one whose number alone is known."""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 0.05
#: Linux ends a killed process within this time even if busy; a process that waits for a broken disk never ends.
_KILL_SECONDS = 10.0


class Child(msgspec.Struct, frozen=True):
    """A process that a supervisor started. The number alone could belong to another process by now."""

    name: str
    pid: int
    #: Clock ticks after boot.
    started: int


def start_of(pid: int) -> int | None:
    """Return when a process started, in clock ticks after boot; None if it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name, in parentheses, may contain spaces and parentheses (proc_pid_stat(5)).
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def is_alive(child: Child) -> bool:
    return start_of(child.pid) == child.started


def end(children: Iterable[Child], stop_signal: Callable[[str], signal.Signals], grace_seconds: float) -> list[Child]:
    """Ask each living process to stop, kill it after the grace period, and wait until all have ended and their ports are free.

    Returns those that were alive. Blocks.
    """
    alive = [child for child in children if is_alive(child)]
    for child in alive:
        _signal(child, stop_signal(child.name))
    _wait(alive, grace_seconds)
    for child in alive:
        if is_alive(child):
            _signal(child, signal.SIGKILL)
    _wait(alive, _KILL_SECONDS)
    return alive


def _wait(children: list[Child], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(is_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)


def _signal(child: Child, number: signal.Signals) -> None:
    try:
        os.kill(child.pid, number)
    except ProcessLookupError:
        pass


def dies_with_parent(number: signal.Signals, parent: int) -> Callable[[], None]:
    """For ``preexec_fn``: the child gets signal ``number`` when the supervisor dies, even by kill -9."""
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # it died between fork and prctl
            os._exit(1)

    return prepare
