"""Keeps rows in a local file while PostgreSQL can't take them.

A record is a CRC-32, a length, and the row. A truncated record, for example after a power failure, ends the reading and is lost.
"""

import asyncio
import os
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from services.gateway import background_jobs
from services.gateway.background_jobs import UpkeepJob
from services.gateway.facts.request_record import RequestRow
from shared.background.item_kinds import ItemKind
from shared.background.items import BackgroundItems
from shared.node import lifecycle
from shared.stores import file_lock, replica_files, signed_lines
from shared.telemetry import Metrics, logs
from shared.types import NodeId, RequestId

#: Returns those of the requests that the database has never seen.
FindUnknown = Callable[[Sequence[RequestId]], Awaitable[set[RequestId]]]

_HEAD = struct.Struct(">II")
#: Far more than the recorder ever queues; a larger file is not a journal.
MAX_BYTES = 64 * 1024 * 1024

#: More than a batch of rows.
_PROBE_BYTES = 256 * 1024

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RequestRow).decode
_log = logs.get(part="journal")


class Journal:
    """The journal file of one process. Every method blocks and may raise OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._holds_rows = False

    def read(self) -> list[RequestRow]:
        """Return the rows that an earlier process left."""
        try:
            with self._path.open("rb") as file:
                body = file.read(MAX_BYTES)
        except FileNotFoundError:
            return []
        rows, valid_bytes = decode(body)
        if valid_bytes < len(body):
            _log.warning("journal truncated at its end", bytes_lost=len(body) - valid_bytes, rows=len(rows))
            # Otherwise later records would be unreadable.
            os.truncate(self._path, valid_bytes)
        self._holds_rows = bool(rows)
        return rows

    def append(self, rows: Sequence[RequestRow]) -> None:
        """Append the rows, and sync them to disk."""
        body = b"".join(map(_record, rows))
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._holds_rows = True
            view = memoryview(body)
            while view:
                view = view[os.write(handle, view) :]
            os.fdatasync(handle)
        finally:
            os.close(handle)

    def probe(self) -> None:
        """Write a file beside the journal and delete it, to find a full disk in time."""
        path = self._path.with_name(f"{self._path.name}.probe")
        try:
            with path.open("wb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fdatasync(file.fileno())
        finally:
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Empty the file when all rows are in PostgreSQL."""
        if self._holds_rows:
            os.truncate(self._path, 0)
            self._holds_rows = False


@asynccontextmanager
async def held_journal(template: Path, node: NodeId, find_unknown: FindUnknown) -> AsyncIterator[Journal]:
    """Lock this gateway's journal, and report its unknown rows. Raises BadSettings and Unavailable."""
    async with replica_files.held(template, node) as path:
        journal = Journal(path)
        await _report_unknown(await asyncio.to_thread(journal.read), template, find_unknown)
        yield journal


class OrphanedJournals:
    """The journals of gateways that are gone, on the volume that this gateway shared with them.

    ``take_over`` writes rows to this gateway's journal and queues them. It returns False if it can't.
    """

    def __init__(
        self,
        template: Path,
        node: NodeId,
        find_unknown: FindUnknown,
        take_over: Callable[[Sequence[RequestRow]], Awaitable[bool]],
        items: BackgroundItems,
    ) -> None:
        self._template = template
        self._node = node
        self._find_unknown = find_unknown
        self._take_over = take_over
        self._items = items

    @asynccontextmanager
    async def running(self, metrics: Metrics) -> AsyncIterator[None]:
        """Adopt journals at the start of the block and every minute."""
        async with lifecycle.background() as tasks:
            tasks.create_task(background_jobs.repeat(UpkeepJob.ADOPTION, replica_files.ADOPT_SECONDS, self.adopt, metrics))
            yield

    async def adopt(self) -> None:
        """Raises Unavailable; the next round continues."""
        paths = await asyncio.to_thread(replica_files.find_others, self._template, self._node)
        await self._items.each(ItemKind.JOURNAL, paths, self._try_to_adopt, lambda path: path.name)

    async def _try_to_adopt(self, path: Path) -> None:
        with file_lock.try_hold(path) as is_held:
            try:
                if is_held:
                    await self._adopt(path)
            except OSError as error:
                _log.warning("cannot adopt a journal", file=str(path), reason=error.strerror)

    async def _adopt(self, path: Path) -> None:
        rows = await asyncio.to_thread(Journal(path).read)
        if rows:
            await _report_unknown(rows, self._template, self._find_unknown)
            # After a crash in between, the rows are in both journals, and writing them twice changes nothing.
            if not await self._take_over(rows):
                return
            _log.warning("adopted the journal of a gateway that is gone", file=str(path), rows=len(rows))
        await asyncio.to_thread(replica_files.remove, path)


async def _report_unknown(rows: Sequence[RequestRow], template: Path, find_unknown: FindUnknown) -> None:
    """Report rows whose requests the database doesn't know, because it was restored to an earlier time.

    Such a row is written to the request log without a cost: a row without its reservation proves nothing. ``<journal>.unknown.jsonl`` keeps
    what it would have cost. Raises Unavailable.
    """
    costs = {row.id: row for row in rows if row.cost_micro}
    if costs and (unknown := await find_unknown(list(costs))):
        journal = replica_files.without_folder(template)
        report = journal.with_name(f"{journal.name}.unknown.jsonl")
        lines = [msgspec.json.encode(_report_line(costs[each])) + b"\n" for each in unknown]
        await asyncio.to_thread(signed_lines.append, report, b"".join(lines))
        _log.warning(
            "settle_journal.unknown: the database doesn't know these requests; they cost nothing", rows=len(unknown), file=str(report)
        )


def _report_line(row: RequestRow) -> dict[str, object]:
    return {"id": row.id, "tenant": row.tenant_id, "created_at": row.created_at, "not_billed_micro": row.cost_micro}


def decode(body: bytes) -> tuple[list[RequestRow], int]:
    """Return the rows before the first damaged record, and its offset."""
    rows: list[RequestRow] = []
    at = 0
    while at + _HEAD.size <= len(body):
        checksum, length = _HEAD.unpack_from(body, at)
        record = body[at + _HEAD.size : at + _HEAD.size + length]
        if len(record) < length or zlib.crc32(record) != checksum:
            break
        try:
            rows.append(_decode(record))
        except (msgspec.MsgspecError, RecursionError):
            break
        at += _HEAD.size + length
    return rows, at


def _record(row: RequestRow) -> bytes:
    body = _encode(row)
    return _HEAD.pack(zlib.crc32(body), len(body)) + body
