"""Appends the rows of a table to a file of lines that nobody with database access can change, and reads such a file.

A file is only ever appended to, so it may be on an append-only share. A crash can leave a last line without its end: the next line then
starts on its own line, and readers recognize the rest.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

Row = TypeVar("Row")


class LineFile(Generic[Row]):
    """One process's copy of a table. ``page_after`` returns the next rows after a number, oldest first, and the last one's number;
    ``encode`` returns a row's line, and runs in a thread because it signs."""

    def __init__(
        self, path: Path, page_after: Callable[[int], Awaitable[tuple[Sequence[Row], int]]], encode: Callable[[Row], bytes]
    ) -> None:
        self.path = path
        #: The number of the last row in the file.
        self.last = 0
        self._page_after = page_after
        self._encode = encode

    async def catch_up(self) -> None:
        """Append what is missing; it is on the disk when this returns. One caller at a time. Raises OSError and what ``page_after`` raises;
        the next call continues."""
        while True:
            rows, number = await self._page_after(self.last)
            if not rows:
                return
            writing = asyncio.get_running_loop().run_in_executor(None, self._append, rows, number)
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                # A write cannot be canceled, and the next one must not run beside it.
                await asyncio.wait({writing})
                writing.exception()  # the next attempt has it again
                raise

    def _append(self, rows: Sequence[Row], number: int) -> None:
        append(self.path, b"".join(map(self._encode, rows)))
        self.last = number


def append(path: Path, lines: bytes) -> None:
    """Append and sync. After an error a part may have been written. Blocks; raises OSError."""
    is_new = not path.exists()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(handle, "ab") as out:
        # A line that a crash left incomplete stays on its own line.
        start = b"\n" if out.tell() and not _ends_in_newline(path) else b""
        out.write(start + lines)
        out.flush()
        os.fsync(out.fileno())
    if is_new:
        _sync_folder(path.parent)


def read(path: Path) -> Iterator[bytes]:
    """Yield the lines with their ends. Blocks; raises OSError."""
    with path.open("rb") as lines:
        yield from lines


def read_end(path: Path, most_bytes: int) -> list[bytes]:
    """Return the last whole lines. Blocks; raises OSError."""
    with path.open("rb") as text:
        start = max(0, text.seek(0, os.SEEK_END) - most_bytes)
        text.seek(start)
        return text.read().splitlines(keepends=True)[1 if start else 0 :]


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Windows opens no folders
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as text:
        text.seek(-1, os.SEEK_END)
        return text.read(1) == b"\n"
