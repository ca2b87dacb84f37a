"""Makes a backup: secrets, files, the database as one archive, and last the manifest, without which it does not exist.

Everything streams: there is no local copy, and memory does not depend on the size of the database.
"""

import asyncio
import contextlib
import os
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from features.backup.stack import layout, sealing, site_term
from features.backup.stack.agent import backup_files, recovery_log_copy
from features.backup.stack.agent.source_database import SourceDatabase, SourceIdentity, SourceProgram
from features.backup.stack.backup_place import BackupPlace
from features.backup.stack.layout import DATA, FILES, SECRETS, BackupManifest, BackupName, BackupPart, DatabaseFacts, Segment
from features.backup.stack.store_retries import retry
from shared import errors
from shared.stores import file_lock
from shared.stores.objects import ObjectMissing, ObjectStore, StoredObject
from shared.telemetry.version import version
from stack import settings

#: Without a byte for so long, a backup has failed. Counting rows before it has its own bound.
_STALL_SECONDS = 600.0
#: Until the agent has stored the log that the backup needs.
_LOG_SECONDS = 900.0
_LOOK_SECONDS = 0.5
_REMOVE_SECONDS = 30.0
#: From the end of its archive to the end of pg_basebackup.
_END_SECONDS = 60.0
_ABANDONED = timedelta(days=1)
_PIPE_BYTES = 1 << 20
#: Copying and sealing take a part of a processor for each megabyte: with 25 and more on each, answers took twice as long (see the bench).
_MB_PER_SECOND_A_PROCESSOR, _MB_PER_SECOND_MAX = 5, 50
#: PostgreSQL's manifest is the archive's last member, and ends with the range of the log that a restore needs.
_TAIL_BYTES = 4096
_RANGE = re.compile(rb'\{ "Timeline": (\d+), "Start-LSN": "([0-9A-F]+/[0-9A-F]+)", "End-LSN": "([0-9A-F]+/[0-9A-F]+)" \}')
#: Of a managed database, which is in nobody's backup here.
_NO_IDENTITY = SourceIdentity("", 0, 16 << 20, 0)


class DamagedDatabase(errors.Internal):
    """PostgreSQL found pages with wrong checksums, so there is no backup. Earlier ones stay."""


@dataclass(frozen=True, slots=True)
class _LogRange:
    """What a restore of the data needs of the write-ahead log."""

    timeline: int
    start: int
    stop: int


async def make(
    place: BackupPlace,
    source: SourceDatabase | None,
    *,
    label: str,
    report: Callable[[int], None] = lambda _stored: None,
    patience_seconds: float = 0,
) -> BackupManifest:
    """Make a backup, without the database if ``source`` is None. Raises DamagedDatabase, Unavailable, and BadSettings if this stack still
    makes another one after ``patience_seconds``, or if another site has taken over by then. Whatever fails, no backup is listed, and its
    parts are removed by the next one at the latest. ``report`` gets the number of bytes of the database that were copied, in another
    thread."""
    refusal = errors.BadSettings("this stack is making a backup right now", hint="wait until it is done: aicli stack backups")
    async with file_lock.hold(place.home.base_backup, patience_seconds=patience_seconds, refusal=refusal):
        term = (await retry(lambda: site_term.read_confirmed(place))).term
        await retry(lambda: _remove_leftovers(place.store, term))
        at = datetime.now(UTC) if source is None else (await source.position()).at
        name = await retry(lambda: _find_name(place.store, at, term))
        try:
            return await _make(place, source, name, label=label, term=term, report=report)
        except BaseException:
            with contextlib.suppress(errors.Unavailable, TimeoutError):
                async with asyncio.timeout(_REMOVE_SECONDS):
                    await place.store.delete([layout.part_object(name, part) for part in (DATA, SECRETS, FILES)])
            raise


async def _make(
    place: BackupPlace, source: SourceDatabase | None, name: str, *, label: str, term: int, report: Callable[[int], None]
) -> BackupManifest:
    began = time.monotonic()
    identity, before = _NO_IDENTITY, DatabaseFacts()
    started_at = datetime.now(UTC)
    if source is not None:
        identity = await source.identity()
        place = await place.with_system(identity.system)
        await source.ensure_slot()
        before = await source.facts()
        started_at = (await source.position()).at
    root = place.home.root
    recorded = await asyncio.to_thread(settings.read_recorded, place.home)
    found = await asyncio.to_thread(backup_files.collect, place.home, recorded)
    salt = secrets.token_hex(16)
    digests = await asyncio.to_thread(sealing.salted_digests, root, found.secrets, salt)
    models = await asyncio.to_thread(backup_files.list_models, Path(recorded.get("MODEL_STORE", place.home.models)))
    parts = [
        await _put(place, name, SECRETS, _pieces(backup_files.archive(root, found.secrets))),
        await _put(place, name, FILES, _pieces(backup_files.archive(root, found.files, {backup_files.MODELS: models}))),
    ]
    log, after, finished_at = _LogRange(0, 0, 0), before, datetime.now(UTC)
    if source is not None:
        data, log = await _put_data(place, source, name, identity, report)
        parts.insert(0, data)
        after = await source.facts()
        finished_at = (await source.position()).at
        await _await_log(place.store, log, identity.segment_size)
    # Rows may be deleted while the data is copied.
    facts = msgspec.structs.replace(
        before,
        rows={table: min(rows, after.rows.get(table, 0)) for table, rows in before.rows.items()},
        log_heads={service: min(head, await _stored_lines(place, service, term)) for service, head in before.log_heads.items()},
    )
    manifest = BackupManifest(
        name=name, label=label, mesh=place.mesh.mesh, site=place.settings.site, term=term,
        system=identity.system, timeline=log.timeline, segment_size=identity.segment_size, start_lsn=log.start, stop_lsn=log.stop,
        started_at=started_at, finished_at=finished_at, seconds=time.monotonic() - began,
        postgres=identity.postgres, version=version(), parts=tuple(parts),
        secrets_salt=salt, secrets=digests, machine=socket.gethostname(), store=place.mesh, **msgspec.structs.asdict(facts),
    )  # fmt: skip
    await place.keep_mesh()
    place_of_it = layout.manifest_object(name)
    await retry(lambda: place.store.put(place_of_it, layout.sign(place_of_it, manifest, place.key)))
    return manifest


async def _put(place: BackupPlace, backup: str, part: str, source: "_PartSource", *, expected_bytes: int = 0) -> BackupPart:
    name, digest = layout.part_object(backup, part), sealing.CountedDigest()
    recipients = place.mesh.recipients if part == SECRETS else place.recipients
    try:
        async with asyncio.timeout(_STALL_SECONDS) as patience, sealing.sealed(cast("BinaryIO", source), recipients) as pieces:
            try:
                await place.store.put_stream(name, _paced(digest.over(pieces), patience), expected_bytes)
            except BaseException:
                source.end()  # the thread that seals may wait for it
                raise
    except TimeoutError as error:
        raise errors.Unavailable(f"the backup has not moved for {_STALL_SECONDS:.0f} s", hint="check PostgreSQL and BACKUP_TO") from error
    return BackupPart(name=part, size=digest.size, sha256=digest.sha256, plain_size=source.size)


async def _paced(pieces: AsyncIterator[bytes], patience: asyncio.Timeout) -> AsyncIterator[bytes]:
    async for piece in pieces:
        patience.reschedule(asyncio.get_running_loop().time() + _STALL_SECONDS)
        yield piece


async def _put_data(
    place: BackupPlace, source: SourceDatabase, backup: str, identity: SourceIdentity, report: Callable[[int], None]
) -> tuple[BackupPart, _LogRange]:
    limit = place.settings.backup_mb_per_second
    if limit is None:
        limit = min(_MB_PER_SECOND_MAX, _MB_PER_SECOND_A_PROCESSOR * (os.cpu_count() or 1))
    rate = (f"--max-rate={limit}M",) if limit else ()
    options = ("-D", "-", "-Ft", "-X", "none", "--checkpoint=fast", "--manifest-checksums=SHA256", *rate)
    reading, writing = sealing.open_pipe()
    with os.fdopen(reading, "rb", _PIPE_BYTES) as archive, os.fdopen(writing, "wb") as sink:
        async with source.program("pg_basebackup", *options, stdout=sink) as copy:
            sink.close()
            data = _PartSource(archive.read, report, copy.kill)
            part = await _put(place, backup, DATA, data, expected_bytes=identity.database_bytes)
            await _end(copy)
    match = _RANGE.search(data.tail)
    if match is None:
        raise errors.Unavailable("pg_basebackup ended without its manifest", hint="try again")
    timeline, start, stop = (each.decode() for each in match.groups())
    return part, _LogRange(int(timeline), layout.parse_lsn(start), layout.parse_lsn(stop))


async def _end(copy: SourceProgram) -> None:
    """Raises DamagedDatabase and Unavailable if it failed."""
    async with asyncio.timeout(_END_SECONDS):
        status = await copy.process.wait()
    if status == 0:
        return
    if "checksum" in copy.said:
        raise DamagedDatabase(
            f"PostgreSQL found damaged pages, so there is no new backup: {copy.said}",
            hint="check the disk, and restore the last good backup: aicli stack backups",
        )
    raise errors.Unavailable(f"pg_basebackup failed: {copy.said}")


async def _stored_lines(place: BackupPlace, service: str, term: int) -> int:
    end, _ = await retry(lambda: recovery_log_copy.find_end(place, service, term))
    return end.last


async def _await_log(store: ObjectStore, log: _LogRange, segment_size: int) -> None:
    """Wait until the agent has stored the log that makes the data consistent: a backup without it could not be restored."""
    needed = [Segment(log.timeline, number) for number in range(log.start // segment_size, (log.stop - 1) // segment_size + 1)]
    try:
        async with asyncio.timeout(_LOG_SECONDS):
            for segment in needed:
                while not await retry(partial(_exists, store, segment.object(segment_size)), None):  # noqa: ASYNC110 - the agent stores it
                    await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError as error:
        raise errors.Unavailable(
            f"the write-ahead log of the backup is not in the store after {_LOG_SECONDS:.0f} s",
            hint="is the backup agent running? aicli stack logs backup",
        ) from error


async def _find_name(store: ObjectStore, at: datetime, term: int) -> str:
    """Return a name that no backup has, also if the clock was set back."""
    while await _exists(store, layout.manifest_object(name := layout.name_backup(at, term))):
        at += timedelta(seconds=1)
    return name


async def _exists(store: ObjectStore, name: str) -> bool:
    try:
        await store.head(name)
    except ObjectMissing:
        return False
    return True


async def _remove_leftovers(store: ObjectStore, term: int) -> None:
    await store.delete_unfinished()
    await store.delete(find_leftovers([found async for found in store.list(layout.BASE)], term))


def find_leftovers(found: Sequence[StoredObject], term: int) -> list[str]:
    """Return the objects of backups without a manifest: ours at once, because only one process makes them; another site's after a day by
    the store's clock. Pure."""
    backups: dict[BackupName, dict[str, StoredObject]] = {}
    for each in found:
        if (parsed := layout.parse_backup(each.name)) is not None:
            backups.setdefault(parsed[0], {})[parsed[1]] = each
    now = max((each.changed_at for each in found), default=None)
    return [
        each.name
        for backup, files in backups.items()
        if "manifest.json" not in files
        for each in files.values()
        if backup.term == term or (now is not None and now - each.changed_at > _ABANDONED)
    ]


class _PartSource:
    """Counts what is read of a part, and keeps its end."""

    def __init__(
        self, read: Callable[[int], bytes], report: Callable[[int], None] = lambda _size: None, end: Callable[[], None] = lambda: None
    ) -> None:
        self.size = 0
        self.tail = b""
        #: Makes a ``read`` that waits return.
        self.end = end
        self._read = read
        self._report = report

    def read(self, size: int = -1) -> bytes:
        data = self._read(size)
        self.size += len(data)
        self.tail = (self.tail + data[-_TAIL_BYTES:])[-_TAIL_BYTES:]
        self._report(self.size)
        return data


def _pieces(pieces: Iterator[bytes]) -> _PartSource:
    """Read an archive, whose pieces are small and not empty but for the last."""
    return _PartSource(lambda _size: next((piece for piece in pieces if piece), b""))
