"""Opens what a command writes to: stdout, or a file that appears only when it is complete. Half a log would look whole."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def open_(file: Path | None) -> Iterator[BinaryIO]:
    """``None`` is stdout. The file is readable only by the user; one with this name stays as it is until then."""
    if file is None:
        if not isinstance(sys.stdout.buffer, io.RawIOBase):
            yield sys.stdout.buffer
            return
        # With PYTHONUNBUFFERED it is the bare file, which may write a part only.
        buffered = io.BufferedWriter(sys.stdout.buffer)
        try:
            yield buffered
        finally:
            buffered.detach()
        return
    from shared.identity import private_file

    with private_file.written(file, b"") as begun:
        with begun.open("wb") as out:
            yield out
        begun.replace(file)
