"""Writes a file that only its owner may read, whole or not at all: who reads it meanwhile sees the old one or the new one."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def replace(path: Path, body: bytes, *, synced: bool = False) -> None:
    """In place of what is there. ``synced``: it outlives a power cut, too. Blocks; raises OSError."""
    with written(path, body, synced=synced) as made:
        made.replace(path)


@contextlib.contextmanager
def written(path: Path, body: bytes, *, synced: bool = False) -> Iterator[Path]:
    """A new file beside ``path``, 0600 from its first moment, to be moved into place; it is gone at the end of the block."""
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
