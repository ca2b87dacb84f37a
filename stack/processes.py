"""The supervisor's lock, and the processes that it started: when they started, and how to end one whose number alone is known."""

import asyncio
import contextlib
import ctypes
import fcntl
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from shared import errors
from stack.stack_home import StackHome

_log = logging.getLogger("supervisor")
_LEFTOVER_GRACE_SECONDS = 10.0

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


@dataclass(frozen=True, slots=True)
class EndedProgram:
    """A program that has ended."""

    status: int
    output: bytes
    #: Its errors.
    said: str


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


def end_postgres(data: Path, number: signal.Signals, grace_seconds: float) -> None:
    """End the server that a killed program has left in a folder. Blocks."""
    try:
        pid = int((data / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0])
        is_its_own = Path(f"/proc/{pid}/cwd").resolve() == data.resolve()
    except (OSError, ValueError, IndexError):
        return
    started = start_of(pid)
    if is_its_own and started is not None:
        end([Child("postgres", pid, started)], lambda _name: number, grace_seconds)


async def run(what: str, command: Sequence[str], seconds: float, given: bytes = b"", **options: Any) -> EndedProgram:
    """Run a program to its end, which comes at the latest with ours. ``what`` is what it does, and ``options`` are those of
    ``create_subprocess_exec``. Raises OSError, and Unavailable after the deadline."""
    # Under uvloop, even an empty write to a program that has ended raises.
    streams = {"stdin": PIPE if given else DEVNULL, "stdout": PIPE, "stderr": PIPE, **options}
    process = await asyncio.create_subprocess_exec(*command, **streams, preexec_fn=dies_with_parent(signal.SIGKILL, os.getpid()))
    try:
        async with asyncio.timeout(seconds):
            output, said = await process.communicate(given or None)
        return EndedProgram(await process.wait(), output or b"", (said or b"").decode(errors="replace").strip())
    except TimeoutError as error:
        raise errors.Unavailable(f"{what} took longer than {seconds:.0f} s", hint="run it again") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def stop(process: Process, number: signal.Signals, grace_seconds: float) -> bool:
    """Ask it to stop, and kill it after the grace period, or when this is canceled. Return whether it stopped itself."""
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        process.send_signal(number)
    try:
        async with asyncio.timeout(grace_seconds):
            await process.wait()
        return True
    except TimeoutError:
        return False
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _wait(children: list[Child], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(is_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)


def _signal(child: Child, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, number)


def dies_with_parent(number: signal.Signals, parent: int) -> Callable[[], None]:
    """For ``preexec_fn``: the child gets signal ``number`` when the supervisor dies, even by kill -9 (Linux only)."""
    if sys.platform != "linux":
        return lambda: None
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # it died between fork and prctl
            os._exit(1)

    return prepare


@contextmanager
def only_supervisor(home: StackHome, patience_seconds: float = 0.0) -> Iterator[int | None]:
    """Take the lock of this home's supervisor. Yields its file descriptor, or None if another process keeps it."""
    path = home.run / "supervisor.lock"
    path.touch(mode=0o600)
    deadline = time.monotonic() + patience_seconds
    with path.open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                yield None
                return
            break
        yield lock.fileno()


def has_supervisor(home: StackHome) -> bool:
    """Return whether a supervisor of this home is alive, even if it does not answer yet."""
    with only_supervisor(home) as lock:
        return lock is None


def clear_leftovers(home: StackHome) -> None:
    """End what a killed supervisor left running. Requires the lock; blocks for up to 10 s."""
    try:
        children = msgspec.json.decode(children_file(home).read_bytes(), type=list[Child])
    except (FileNotFoundError, msgspec.DecodeError):
        return
    ended = end(children, lambda name: signal.SIGINT if name == "postgres" else signal.SIGTERM, _LEFTOVER_GRACE_SECONDS)
    for child in ended:
        _log.warning("%s: pid %d was left by an earlier supervisor; ended", child.name, child.pid)
    children_file(home).unlink()


def children_file(home: StackHome) -> Path:
    return home.run / "children.json"
