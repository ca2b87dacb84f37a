"""The folder of a test restore, and what keeps a test away from everything else.

A killed test leaves its folder behind. The next one recognizes it, because nobody has its lock, and removes it.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path

from stack import processes

_PREFIX = "aimesh-verify-"
_GRACE_SECONDS = 10.0
_UNSHARE = ("unshare", "--net")


@contextlib.asynccontextmanager
async def folder(parent: Path) -> AsyncIterator[Path]:
    """Make a folder for the block, after removing those of killed tests."""
    await asyncio.to_thread(remove_leftovers, parent)
    made, handle = await asyncio.to_thread(_create, parent)
    try:
        yield made
    finally:
        await asyncio.to_thread(_remove, made)
        os.close(handle)


def remove_leftovers(parent: Path) -> None:
    for found in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another process removes it, or its test runs
            handle = _lock(found)
            try:
                # PostgreSQL stops when its test is killed, but that takes a moment.
                processes.end_postgres(found / "data", signal.SIGQUIT, _GRACE_SECONDS)
                _remove(found)
            finally:
                os.close(handle)


def _create(parent: Path) -> tuple[Path, int]:
    made = parent / f"{_PREFIX}{os.getpid()}"
    while True:
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
        # In between, another test may take it for a leftover.
        with contextlib.suppress(OSError):
            handle = _lock(made)
            if made.exists():
                return made, handle
            os.close(handle)


def _remove(path: Path) -> None:
    """After an error, a thread may still unpack for a moment."""
    give_up_at = time.monotonic() + _GRACE_SECONDS
    while path.exists() and time.monotonic() < give_up_at:
        shutil.rmtree(path, ignore_errors=True)


def _lock(path: Path) -> int:
    """Raises BlockingIOError if a living process has the lock."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def without_network(*command: str) -> tuple[str, ...]:
    """Return the command in a separate network namespace, where this machine allows it."""
    return (*_UNSHARE, *command) if may_unshare() else command


@cache
def may_unshare() -> bool:
    if os.geteuid() != 0 or shutil.which(_UNSHARE[0]) is None:
        return False
    tried = subprocess.run((*_UNSHARE, "true"), stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)  # noqa: S603
    return tried.returncode == 0
