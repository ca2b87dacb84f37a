"""Appends usage to a file, one CloudEvent a line, for a collector on the same machine. A full file gets the time as its suffix."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, TypeVar
from uuid import UUID

import msgspec

from features.usage_export.gateway.sinks import NotSent
from features.usage_export.rules import usage_events
from features.usage_export.rules.usage_events import DaySums, UsageEvent, UsageSum
from shared import errors
from shared.stores import file_lock

#: About 150,000 requests.
FULL_BYTES = 64 * 1024 * 1024

_T = TypeVar("_T")
_encode, _decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(UsageEvent).decode


class FileSink:
    name = "file"
    #: It is always asked.
    deduplicates = timedelta(0)
    batch = 1000

    def __init__(self, path: Path, *, full_bytes: int = FULL_BYTES) -> None:
        self._path = path
        self._full_bytes = full_bytes
        #: Of full files, which no longer change.
        self._sums: dict[Path, DaySums] = {}

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        # A gateway that lost its lock in PostgreSQL may still be writing.
        refusal = errors.BadSettings("another gateway of this machine still has the file", hint="it ends by itself soon")
        try:
            async with file_lock.hold(self._path, refusal=refusal):
                yield
        except errors.BadSettings as error:
            raise NotSent(error.message, may_be_stored=False) from error

    async def send(self, events: Sequence[UsageEvent]) -> None:
        lines = b"".join(_encode(event) + b"\n" for event in events)
        try:
            await asyncio.to_thread(self._append, lines)
        except OSError as error:
            raise NotSent(f"USAGE_EXPORT_FILE can't be written: {error.strerror}", may_be_stored=True) from error

    async def find_stored(self, events: Sequence[UsageEvent]) -> Collection[UUID] | None:
        wanted = {event.id for event in events}
        return await self._read(lambda: {event.id for path in self._files()[-2:] for event in _events(path) if event.id in wanted})

    async def find_difference(self, expected: DaySums, since: date) -> UsageSum | None:
        return usage_events.difference(expected, await self._read(lambda: self._sum_days(since)))

    def _append(self, lines: bytes) -> None:
        with self._path.open("ab+") as file:
            is_new = not file.tell()
            if not is_new:
                _drop_torn_line(file)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
            is_full = file.tell() >= self._full_bytes
        if is_full:
            self._path.rename(f"{self._path}.{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        if is_new or is_full:
            _sync_folder(self._path.parent)

    async def _read(self, read: Callable[[], _T]) -> _T:
        try:
            return await asyncio.to_thread(read)
        except (OSError, msgspec.DecodeError) as error:
            raise NotSent(f"USAGE_EXPORT_FILE can't be read: {type(error).__name__}", may_be_stored=False) from error

    def _files(self) -> list[Path]:
        """Return the full files from the oldest to the newest, and then the one that grows."""
        full = sorted(self._path.parent.glob(f"{self._path.name}.2*Z"))
        return [*full, self._path] if self._path.exists() else full

    def _sum_days(self, since: date) -> DaySums:
        files = [path for path in self._files() if path.name[len(self._path.name) :] > f".{since:%Y%m%d}" or path == self._path]
        sums = {path: self._sums.get(path) or _sum_file(path) for path in files}
        self._sums = {path: found for path, found in sums.items() if path != self._path}
        return usage_events.sum_up(item for found in sums.values() for item in found.items() if item[0][1] >= since)


def _events(path: Path) -> Iterator[UsageEvent]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield _decode(line)


def _sum_file(path: Path) -> DaySums:
    return usage_events.sum_up((event.account_day, event.total) for event in _events(path))


def _drop_torn_line(file: BinaryIO) -> None:
    """Remove the start of a line that a crash left."""
    file.seek(-1, os.SEEK_END)
    if file.read() != b"\n":
        file.seek(0)
        file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
