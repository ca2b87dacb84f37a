"""Write files that only their owner can read, atomically: readers see either the old or the new content."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


def replace(path: Path, body: bytes, *, synced: bool = False) -> None:
    """Replace the file. ``synced``: it also survives a power failure. Blocks; raises OSError."""
    with written(path, body, synced=synced) as made:
        made.replace(path)
    # Windows opens no folders.
    if synced and os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def create(path: Path, make: Callable[[], bytes]) -> bool:
    """Return whether it was created. Of an existing file only the mode is changed."""
    if path.exists():
        if path.stat().st_mode & 0o177:
            path.chmod(0o600)
        return False
    with written(path, make() + b"\n", synced=True) as made:
        try:
            # Link, because a rename would replace a secret that another process creates at the same time.
            os.link(made, path)
        except FileExistsError:
            return False
    return True


def is_exposed(path: Path) -> bool:
    """Return whether other users may read the file. Kubernetes gives the files of a Secret to root and to the group of the pod. Blocks."""
    if os.name != "posix":
        return False  # a mode says nothing there
    facts = path.stat()
    is_secret = facts.st_uid == 0 != os.geteuid() and facts.st_gid in (os.getegid(), *os.getgroups())
    return bool(facts.st_mode & (0o037 if is_secret else 0o077))


@contextlib.contextmanager
def written(path: Path, body: bytes, *, synced: bool = False) -> Iterator[Path]:
    """Create a temporary file beside ``path``, with mode 0600 from the start; it is removed at the end of the block."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(body)
            if synced:
                file.flush()
                os.fsync(file.fileno())
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
