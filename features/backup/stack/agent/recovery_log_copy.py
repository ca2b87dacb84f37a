"""Copies the recovery logs of the services, the anchors of the audit log and the restore points into the store, while they are written.

An object's name has the numbers of its lines. After a crash or a lost reply, lines can be in two objects: readers ignore the second ones.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from features.backup.stack import layout, sealing
from features.backup.stack.backup_place import BackupPlace
from features.backup.stack.layout import LogPart
from shared import errors
from shared.api.method import Nothing, StreamMethod
from shared.api.recovery import FollowRecoveryLog, RecoveryLines
from shared.rpc.calling import RpcClient
from shared.stores.objects import StoredObject
from shared.telemetry import logs
from shared.timing.backoff import Backoff

#: Reopen the stream every hour, so that it can't hang unnoticed.
_FOLLOW_SECONDS = 3600.0
_BACKOFF = Backoff(first_seconds=0.2, longest_seconds=5.0)
#: Successive objects are joined up to this size: a restore reads each one.
_JOINED_BYTES = 1 << 20

_log = logs.get(part="recovery log")


class RecoveryLogCopy:
    """One service's log in the store."""

    def __init__(
        self,
        place: BackupPlace,
        method: StreamMethod[FollowRecoveryLog, RecoveryLines, Nothing],
        term: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._place = place
        self._method = method
        self._term = term
        self._clock = clock
        self.service = method.name.partition(".")[0]
        #: Since when the store lacks lines, or may lack some because the service could not be asked; None if it has all.
        self._behind_since: float | None = clock()

    @property
    def behind_seconds(self) -> float:
        return 0.0 if self._behind_since is None else self._clock() - self._behind_since

    async def run(self, rpc: RpcClient) -> None:
        """Run until canceled."""
        failures = 0
        while True:
            try:
                end, term = await find_end(self._place, self.service, self._term)
                async with rpc.stream(self._method, FollowRecoveryLog(end.last), deadline_seconds=_FOLLOW_SECONDS) as parts:
                    self._behind_since = None
                    async for part in parts:
                        self._behind_since = self._clock()
                        await write(self._place, LogPart(self.service, part.first, part.last, term), part.lines)
                        self._behind_since, failures = None, 0
            except errors.AimeshError as error:
                _log.info("the recovery log is not copied; it will be retried", log=self.service, reason=error.message)
            if self._behind_since is None:
                self._behind_since = self._clock()
            failures += 1
            await asyncio.sleep(_BACKOFF.pause(failures))


class FileCopy:
    """The lines of a file in the store, such as the anchors. They are numbered by their order in the store, because replicas may write the
    file."""

    def __init__(self, place: BackupPlace, name: str, file: Path, term: int) -> None:
        self._place = place
        self._name = name
        self._file = file
        self._term = term
        self._seen_bytes = -1
        #: The number in the store of the file's last line, where it begins, and this line, once the store has it.
        self._stored = (0, 0, b"")

    async def copy(self) -> None:
        """Store the lines that the store lacks. Raises StoreUnavailable."""
        size = self._file.stat().st_size if self._file.exists() else 0
        if size in (0, self._seen_bytes):
            return
        (number, start, known), self._stored = self._stored, (0, 0, b"")  # after a failure, the store is asked
        end, term = await find_end(self._place, self._name, self._term)
        if end.last != number:
            start, known = 0, await _read(self._place, end) if end.last else b""
        lines, stored = await asyncio.to_thread(_lines_after, self._file, start, known)
        last = end.last + lines.count(b"\n")
        if lines:
            await write(self._place, LogPart(self._name, end.last + 1, last, term), lines)
        self._seen_bytes, self._stored = size, (last, *stored)


async def find_end(place: BackupPlace, service: str, term: int) -> tuple[LogPart, int]:
    """Return the object with the newest line before any gap, and the term for the names of new ones."""
    parts = [part for part, _ in await _list(place, service)]
    chosen, _ = layout.choose_log(parts)
    return chosen[-1][0] if chosen else LogPart(service, 1, 0), term if any(part.is_cut for part in parts) else 0


async def write(place: BackupPlace, part: LogPart, lines: bytes) -> None:
    body = await asyncio.to_thread(sealing.seal_bytes, part.object, lines, place.key, place.mesh.mesh, place.recipients)
    await place.store.put(part.object, body)


async def join(place: BackupPlace, service: str) -> None:
    """Join successive small objects, and delete those whose lines are in a larger one: an earlier attempt was interrupted."""
    group: list[LogPart] = []
    size, last, term = 0, 0, 0

    async def finish() -> None:
        if len(group) > 1:
            lines = b"".join([await _read(place, each) for each in group])
            await write(place, LogPart(service, group[0].first, group[-1].last, term), lines)
            await place.store.delete([each.object for each in group])

    for part, stored in await _list(place, service):
        if part.is_cut:
            continue
        if part.last <= last and part.term == term:
            await place.store.delete([part.object])
            continue
        if group and (size + stored.size > _JOINED_BYTES or (part.term, part.first) != (term, last + 1)):
            await finish()
            group, size = [], 0
        group.append(part)
        size, last, term = size + stored.size, part.last, part.term
    await finish()


async def _list(place: BackupPlace, service: str) -> list[tuple[LogPart, StoredObject]]:
    found = [stored async for stored in place.store.list(f"{layout.RECOVERY_LOG}{service}/")]
    parts = [(part, stored) for stored in found if (part := layout.parse_log(stored.name)) is not None]
    return sorted(parts, key=lambda each: (each[0].term, each[0].first, -each[0].last))


async def _read(place: BackupPlace, part: LogPart) -> bytes:
    body = await place.store.get(part.object)
    return await asyncio.to_thread(sealing.open_bytes, part.object, body, (place.own_identity,), place.mesh.keys, place.mesh.mesh)


def _lines_after(file: Path, start: int, known: bytes) -> tuple[bytes, tuple[int, bytes]]:
    """Return the whole lines behind the last one of ``known``, all if that is not there; and the file's last line, after where it begins.
    ``start`` is where the last one of ``known`` began. Blocks."""
    last = known[known.rfind(b"\n", 0, -1) + 1 :]
    with file.open("rb") as opened:
        opened.seek(start)
        text = opened.read()
        if start and not text.startswith(last):  # another file
            opened.seek(start := 0)
            text = opened.read()
    text = text[: text.rfind(b"\n") + 1]
    newest = text.rfind(b"\n", 0, -1) + 1
    found = (b"\n" + text).rfind(b"\n" + last) if last else -1
    return text if found < 0 else text[found + len(last) :], (start + newest, text[newest:])
