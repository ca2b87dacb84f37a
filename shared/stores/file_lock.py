"""Locks files for one process with flock(2). The lock ends with the process."""

import asyncio
import errno
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from shared import errors

PATIENCE_SECONDS = 5.0
_LOOK_SECONDS = 0.1
_WITHOUT_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})


@asynccontextmanager
async def hold(path: Path, *, patience_seconds: float = PATIENCE_SECONDS, refusal: errors.BadSettings | None = None) -> AsyncIterator[None]:
    """Lock ``path`` for the block through a file beside it. Raises BadSettings, or ``refusal``, if another process keeps it too long.

    Does nothing if the lock file cannot be created, because then ``path`` cannot be written either, and on file systems without locks.
    """
    try:
        handle = os.open(path.with_name(f"{path.name}.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        yield
        return
    try:
        if not await _lock(handle, patience_seconds):
            raise refusal or errors.BadSettings(
                f"another process uses {path}", hint="stop that process, or give this one its own NODE_KEY_FILE and MESH_STATE_FILE"
            )
        yield
    finally:
        os.close(handle)


async def _lock(handle: int, patience_seconds: float) -> bool:
    give_up_at = asyncio.get_running_loop().time() + patience_seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if asyncio.get_running_loop().time() >= give_up_at:
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            return True
        else:
            return True
