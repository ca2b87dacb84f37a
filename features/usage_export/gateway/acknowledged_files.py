"""Keeps what the receivers have acknowledged beside the recovery log, where a restore of the database doesn't undo it.

After a restore, receivers have usage that the ledger doesn't. Each gateway writes the sums of all sinks to a file for each day, and reads
all files at its start: sums that are ahead of the database stay in it as what the receivers have in excess. A sum that has changed is
appended, and of an account's lines the one with the most events counts, so no line is ever wrong.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from pathlib import Path

import msgspec

from features.usage_export.gateway.store import AcknowledgedSum, OutboxStore, SumChanges
from shared.identity import private_file
from shared.stores import signed_lines
from shared.telemetry import logs
from shared.timing.bounded_waits import wait_until_set
from shared.types import NodeId, TenantId

_EVERY_SECONDS = 10.0
#: The pause after a write, in its own time.
_SHARE = 20
#: A day more than the database counts them.
_KEPT = timedelta(days=41)
_KEPT_AT_ONCE = 1000
#: A file is written anew when it has grown by this, and by half.
_GROWN_BYTES = 4 << 20

_UNREADABLE = "what receivers have acknowledged can't be read; a restore is not noticed by it"

_log = logs.get(part="usage_export")
_decode = msgspec.json.Decoder(AcknowledgedSum).decode

_Key = tuple[str, TenantId, datetime]


class AcknowledgedFiles:
    """``run`` is the only writer of this gateway's files. Without a folder it does nothing."""

    def __init__(self, store: OutboxStore, folder: Path | None, node: NodeId) -> None:
        self._store, self._folder, self._name = store, folder, f"usage_export-{node[:16]}"
        #: Up to where the files have what the database has. None: they must be compared.
        self._written: SumChanges | None = None
        #: By how much each file has grown since it was written anew, or since the start.
        self._grown = Counter[date]()
        #: The day that is being compared, and what its file has.
        self._compared: tuple[date, dict[_Key, AcknowledgedSum]] | None = None
        self._is_failing = False
        self._changed = asyncio.Event()
        #: Set when the files were read: only then is it known which events a sink may have.
        self.has_read = asyncio.Event()
        if folder is None:
            self.has_read.set()

    def note_change(self) -> None:
        """Write it soon: the disk never holds up the export."""
        self._changed.set()

    async def run(self) -> None:
        """Run until canceled. Raises Unavailable."""
        if self._folder is None:
            return
        await self.read()
        cleaned_on = None
        while True:
            if cleaned_on != (today := datetime.now(UTC).date()):
                await asyncio.to_thread(self._delete_old, today)
                cleaned_on = today
            await wait_until_set(self._changed, _EVERY_SECONDS)
            self._changed.clear()
            began = time.monotonic()
            await self.write()
            await asyncio.sleep(_SHARE * (time.monotonic() - began))

    async def read(self) -> None:
        """Keep what the files of all gateways here say and the database doesn't know. Raises Unavailable."""
        assert self._folder is not None
        pages, count = _read_all(self._folder), 0
        while page := await asyncio.to_thread(next, pages, None):
            count += await self._store.keep_acknowledged(page)
        if count:
            _log.warning("receivers of usage have more than this database knows: it was restored", accounts=count)
        self._written = None
        self.has_read.set()

    async def write(self) -> None:
        """Write what has changed since the last time. Raises Unavailable."""
        changes = await self._store.read_sum_changes()
        if self._written is not None and changes.newest < self._written.newest:
            # The database was replaced by an older one while this gateway ran.
            await self.read()
        written = self._written
        if written is not None and (changes == written or changes.newest < written.ended_before):
            return
        try:
            if written is None:
                async for page in self._store.list_acknowledged_accounts():
                    await asyncio.to_thread(self._append_missing, page)
            else:
                async for page in self._store.list_changed_accounts(written):
                    await asyncio.to_thread(self._append, page)
        except OSError as error:
            if not self._is_failing:
                _log.error("what receivers have acknowledged can't be written", folder=str(self._folder), reason=error.strerror)
            self._is_failing = True
        else:
            self._written, self._is_failing = changes, False
        finally:
            self._compared = None

    def _append_missing(self, sums: Iterable[AcknowledgedSum]) -> None:
        """Append those that the files don't have, of one day after the other."""
        for day, of_day in groupby(sums, _day):
            if self._compared is None or self._compared[0] != day:
                self._compared = day, _newest(self._path(day))
            known = self._compared[1]
            self._append(one for one in of_day if _key(one) not in known or known[_key(one)].events < one.events)

    def _append(self, sums: Iterable[AcknowledgedSum]) -> None:
        for day, of_day in groupby(sorted(sums, key=_day), _day):
            path, lines = self._path(day), _lines(of_day)
            signed_lines.append(path, lines)
            self._grown[day] += len(lines)
            if self._grown[day] > max(_GROWN_BYTES, path.stat().st_size // 2):
                private_file.replace(path, _lines(_newest(path).values()), synced=True)
                self._grown[day] = 0

    def _delete_old(self, today: date) -> None:
        """Delete the files of all gateways for days that are no longer counted, and what a crash has left of a file of this one."""
        assert self._folder is not None
        for path in self._folder.glob("usage_export-*.jsonl"):
            if path.stem[-len("2000-01-01") :] < str(today - _KEPT):
                path.unlink(missing_ok=True)
        for path in self._folder.glob(f".{self._name}-*"):
            path.unlink(missing_ok=True)

    def _path(self, day: date) -> Path:
        assert self._folder is not None
        return self._folder / f"{self._name}-{day}.jsonl"


def _day(one: AcknowledgedSum) -> date:
    return one.since.date()


def _key(one: AcknowledgedSum) -> _Key:
    return one.sink, one.owner, one.since


def _lines(sums: Iterable[AcknowledgedSum]) -> bytes:
    return b"".join(msgspec.json.encode(one) + b"\n" for one in sums)


def _newest(path: Path) -> dict[_Key, AcknowledgedSum]:
    """Return the last state of each sum. Blocks; raises OSError."""
    newest = dict[_Key, AcknowledgedSum]()
    for one in _read(path) if path.exists() else ():
        if (key := _key(one)) not in newest or newest[key].events <= one.events:
            newest[key] = one
    return newest


def _read_all(folder: Path) -> Iterator[str]:
    """Yield what all files say, in pages for the database. Blocks."""
    page = list[AcknowledgedSum]()
    for path in sorted(folder.glob("usage_export-*.jsonl")):
        try:
            for one in _read(path):
                page.append(one)
                if len(page) == _KEPT_AT_ONCE:
                    yield msgspec.json.encode(page).decode()
                    page = []
        except OSError as error:
            _log.error(_UNREADABLE, file=str(path), reason=error.strerror)
    if page:
        yield msgspec.json.encode(page).decode()


def _read(path: Path) -> Iterator[AcknowledgedSum]:
    """Yield what a file says, without a line that a crash has cut off. Blocks; raises OSError."""
    unreadable = 0
    for line in signed_lines.read(path):
        try:
            yield _decode(line)
        except msgspec.DecodeError:
            unreadable += 1
    if unreadable:
        _log.error(_UNREADABLE, file=str(path), lines=unreadable)
