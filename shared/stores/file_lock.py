"""Locks files for one process with flock(2). The lock ends with the process. Windows counts as a file system without locks."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from shared import errors

PATIENCE_SECONDS = 5.0
_LOOK_SECONDS = 0.1
_WITHOUT_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})


@asynccontextmanager
async def hold(
    path: Path, *, patience_seconds: float = PATIENCE_SECONDS, refusal: errors.BadSettings | None = None, make_folder: bool = False
) -> AsyncIterator[None]:
    """Lock ``path`` for the block through a file beside it. Raises BadSettings, or ``refusal``, if another process keeps it too long.

    Does nothing if the lock file cannot be created, because then ``path`` cannot be written either, and on file systems without locks.
    """
    give_up_at = asyncio.get_running_loop().time() + patience_seconds
    while True:
        try:
            if make_folder:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = _open(path)
        except OSError:
            yield
            return
        try:
            if _lock(handle, path) is not False:
                yield
                return
            if asyncio.get_running_loop().time() >= give_up_at:
                raise refusal or errors.BadSettings(
                    f"another process uses {path}", hint="stop that process, or give this one its own NODE_KEY_FILE and MESH_STATE_FILE"
                )
            await asyncio.sleep(_LOOK_SECONDS)
        finally:
            os.close(handle)


@contextmanager
def try_hold(path: Path) -> Iterator[bool]:
    """Lock ``path`` for the block if no process has it. False also on file systems without locks, because ``path`` may be in use there."""
    try:
        handle = _open(path)
    except OSError:
        yield False
        return
    try:
        yield _lock(handle, path) is True
    finally:
        os.close(handle)


def lock_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _open(path: Path) -> int:
    return os.open(lock_file(path), os.O_CREAT | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o600)


def _lock(handle: int, path: Path) -> bool | None:
    """Return whether this process has the lock now; None on a file system without locks."""
    try:
        import fcntl  # noqa: PLC0415 - see above
    except ModuleNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        return None
    try:
        # The process that had it may have deleted the file: a lock on that is no lock.
        return os.path.samestat(os.fstat(handle), lock_file(path).stat())
    except FileNotFoundError:
        return False
