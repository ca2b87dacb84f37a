"""Answer with a file that the browser saves, and write a ZIP archive as a stream, without holding whole files in memory."""

import io
import zipfile
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from http import HTTPStatus
from typing import IO

from litestar.response import Stream


def attachment(name: str) -> dict[str, str]:
    """Return the headers of a download."""
    return {"Content-Disposition": f'attachment; filename="{name}"'}


async def stream(pieces: AsyncGenerator[bytes], name: str, media_type: str) -> Stream:
    """Stream a file. Raises what the first piece raises, so that an error becomes a page and not a truncated file."""
    first = await anext(pieces, b"")
    return Stream(_chained(first, pieces), media_type=media_type, status_code=HTTPStatus.OK, headers=attachment(name))


async def _chained(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            # Most pieces of a ZIP are empty while zlib buffers.
            if piece:
                yield piece


class _Sink(io.RawIOBase):
    """Collects what the archive writes until ``take``."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, piece: object) -> int:
        content = bytes(memoryview(piece))  # type: ignore[arg-type]
        self._pieces.append(content)
        return len(content)

    def take(self) -> bytes:
        content = b"".join(self._pieces)
        self._pieces.clear()
        return content


class ZipStream:
    """A ZIP archive. ``add`` and ``close`` return the bytes that are ready to send, which may be none."""

    def __init__(self, now: datetime) -> None:
        """``now`` becomes the modification time of all files."""
        self._date_time = (now.year, now.month, now.day, now.hour, now.minute, now.second)
        self._sink = _Sink()
        # The sink cannot seek, so zipfile writes the sizes behind each file.
        self._zip = zipfile.ZipFile(self._sink, "w", zipfile.ZIP_DEFLATED)
        self._name = ""
        self._file: IO[bytes] | None = None

    def add(self, name: str, piece: bytes) -> bytes:
        """Add a piece of the file ``name``. Add all pieces of a file before the next file."""
        if self._file is None or name != self._name:
            self._end_file()
            entry = zipfile.ZipInfo(name, self._date_time)
            entry.compress_type = zipfile.ZIP_DEFLATED
            # Private to the user who unpacks it.
            entry.external_attr = 0o600 << 16
            self._name, self._file = name, self._zip.open(entry, "w")
        self._file.write(piece)
        return self._sink.take()

    def close(self) -> bytes:
        self._end_file()
        self._zip.close()
        return self._sink.take()

    def _end_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
