"""Copies the write-ahead log to the store: finished segments at once, and the unfinished one every BACKUP_SHIP_SECONDS.

``pg_receivewal --synchronous`` writes the log into a folder of the home; a segment is deleted there when the store has it. While the store
fails, the log stays in the folder, and above BACKUP_WAL_MOST on the server, as far as that keeps it.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import re
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from features.backup.stack import catalog, layout, sealing
from features.backup.stack.agent.source_database import SLOT, SourceDatabase, SourcePosition
from features.backup.stack.backup_place import BackupPlace
from features.backup.stack.layout import Segment, StoreState, WalObject
from features.backup.stack.store_retries import retry
from shared import errors
from shared.timing.backoff import Backoff

T = TypeVar("T")

_log = logging.getLogger("backup")
_LOOK_SECONDS = 1.0
#: pg_receivewal has the newest commit within milliseconds.
_RECEIVE_SECONDS = 3.0
_RECEIVE_LOOK_SECONDS = 0.02
_BACKOFF = Backoff(0.2, 3.0, jitter=0.5)
_NEVER = datetime.fromtimestamp(0, UTC)
#: One a second; older ones say nothing more about what is in a segment that waits for the store.
_MAX_POSITIONS = 4000
_HISTORY = re.compile(r"([0-9A-F]{8})\.history")
#: What pg_receivewal says if the server does not keep what it needs.
_LOST = re.compile(r"has already been removed|can no longer (get changes|access)|replication slot .* does not exist")


class WalGap(errors.Unavailable):
    """Log is missing between the store and what the server still has. ``start_over``, and make a base backup at once."""


@dataclass(frozen=True, slots=True)
class SpooledFiles:
    """The folder of pg_receivewal."""

    finished: tuple[Segment, ...] = ()
    #: The newest unfinished segment.
    partial: Segment | None = None
    #: Unfinished ones of earlier timelines, which stay so.
    ended: tuple[Segment, ...] = ()
    histories: tuple[int, ...] = ()


def parse_folder(names: list[str], segment_size: int) -> SpooledFiles:
    """Pure."""
    found = sorted(
        segment
        for name in names
        if (segment := layout.parse_segment(f"{layout.WAL}{name[:8]}/{name}{sealing.SUFFIX}", segment_size)) is not None
    )
    partial = [segment for segment in found if segment.is_partial]
    histories = sorted(int(match[1], 16) for name in names if (match := _HISTORY.fullmatch(name)))
    finished = tuple(segment for segment in found if not segment.is_partial)
    return SpooledFiles(finished, partial[-1] if partial else None, tuple(partial[:-1]), tuple(histories))


def find_gap(stored: Segment | None, spool: SpooledFiles) -> str | None:
    """Return why the log in the folder does not continue that in the store; None if it does. Segments after a new timeline are not
    compared: its first base backup begins there. Pure."""
    waiting = [*spool.finished, *([spool.partial] if spool.partial else [])]
    if stored is None or not waiting:
        return None
    first = min(waiting)
    if first.timeline == stored.timeline and first.number > stored.number + 1:
        return f"segments {stored.number + 1} to {first.number - 1} of timeline {first.timeline} are missing"
    for before, after in itertools.pairwise(waiting):
        if before.timeline == after.timeline and after.number > before.number + 1:
            return f"segments {before.number + 1} to {after.number - 1} of timeline {after.timeline} are missing"
    return None


class WalShipping:
    """``run`` is one task; the rest may be called meanwhile."""

    def __init__(self, place: BackupPlace, source: SourceDatabase, *, term: int) -> None:
        self._place = place
        self._source = source
        self._term = term
        self._folder = place.home.received_log(place.mesh.system)
        self._segment_size = 16 << 20
        self._positions: deque[SourcePosition] = deque(maxlen=_MAX_POSITIONS)
        #: The newest finished segment in the store; None if there is none that must be continued.
        self._stored: Segment | None = None
        self._is_found = False
        #: The segment, when its file changed, and how far it was known to reach.
        self._shipped_partial: tuple[Segment, int, int] | None = None
        self._shipped_lsn = 0
        self._histories: set[int] = set()
        self._turn = asyncio.Lock()
        self._state: StoreState | None = None

    @property
    def until(self) -> datetime | None:
        """Return the moment before which every commit is in the store; None before the first."""
        return None if self._state is None else self._state.until

    @property
    def lag_seconds(self) -> float | None:
        """Return how much older the newest commit in the store may be than that of the database; None while it is unknown."""
        if self.newest is None or self._state is None:
            return None
        return 0.0 if self.newest.lsn <= self._state.lsn else max(0.0, (self.newest.at - self._state.until).total_seconds())

    @property
    def newest(self) -> SourcePosition | None:
        """Return what the database said last, about once a second."""
        return self._positions[-1] if self._positions else None

    async def run(self) -> None:
        """Ship until canceled. Raises WalGap, and BadSettings if the store has another cluster's log."""
        identity = await patiently(self._source.identity)
        self._segment_size = identity.segment_size
        self._place = await self._place.with_system(identity.system)
        self._folder = self._place.home.received_log(identity.system)
        await asyncio.to_thread(self._folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        await self._find_shipped()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._receive())
                tasks.create_task(self._watch_positions())
                tasks.create_task(self._ship())
        except BaseExceptionGroup as group:
            raise errors.first_of(group) from None
        finally:
            # What was put at the last moment is only known to the store.
            self._is_found = False

    async def start_over(self) -> None:
        """After a WalGap, while ``run`` does not run: drop the slot and what is here, and keep the log from now on."""
        await patiently(self._source.drop_slot)
        await asyncio.to_thread(_empty, self._folder)
        await patiently(self._source.ensure_slot)
        self._stored, self._is_found, self._shipped_partial = None, True, None

    async def ship_partial(self) -> None:
        """Bring everything that is committed now into the store. A failing store is retried without end."""
        async with self._turn:
            await self._ship_unfinished()

    async def _find_shipped(self) -> None:
        if self._is_found:
            return
        store, mesh = self._place.store, self._place.mesh

        async def find() -> None:
            found = [layout.parse_segment(each.name, self._segment_size) async for each in store.list(layout.WAL)]
            self._stored = max((each for each in found if each is not None and not each.is_partial), default=None)
            state = await catalog.find_signed(store, mesh, layout.STATE, StoreState)
            # What another site had is not in this database.
            self._state = state if state is not None and state.term == self._term else None

        await retry(find, None, _warn)
        self._is_found = True

    # --- from the database into the folder -----------------------------------------------------------------------------

    async def _receive(self) -> None:
        failures = 0
        while True:
            if await self._is_full():
                await asyncio.sleep(_LOOK_SECONDS)
                continue
            await self._require_slot()
            await asyncio.to_thread(_remove_unfilled, self._folder, self._segment_size)
            began = asyncio.get_running_loop().time()
            said = await self._run_receiver()
            if _LOST.search(said):
                raise WalGap(f"the server no longer has the log that is missing here: {said}")
            failures = 1 if asyncio.get_running_loop().time() - began > _BACKOFF.longest_seconds else failures + 1
            if said:
                _log.warning("pg_receivewal ended: %s", said)
            await asyncio.sleep(_BACKOFF.pause(failures))

    async def _require_slot(self) -> None:
        """Raises WalGap if the slot that kept the log is gone."""
        status = (await patiently(self._source.position)).slot_status
        if status == "missing" and self._stored is None:
            await patiently(self._source.ensure_slot)
        elif status in ("missing", "lost"):
            raise WalGap(f"the replication slot {SLOT} is {status}")

    async def _run_receiver(self) -> str:
        """Return what it said last, when it ends, or when the folder is full."""
        options = ("-D", str(self._folder), "--synchronous", "--slot", SLOT, "--no-loop", "--status-interval=1")
        async with self._source.program("pg_receivewal", *options) as receiver:
            while receiver.process.returncode is None and not await self._is_full():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await receiver.process.wait()
        return receiver.said

    async def _is_full(self) -> bool:
        """Above BACKUP_WAL_MOST the server keeps the log for us, as far as it does."""
        waiting = await self._read_folder()
        return len(waiting.finished) * self._segment_size > self._place.settings.wal_most_bytes

    async def _read_folder(self) -> SpooledFiles:
        return parse_folder(await asyncio.to_thread(os.listdir, self._folder), self._segment_size)

    async def _watch_positions(self) -> None:
        while True:
            with contextlib.suppress(errors.Unavailable):
                await self._read_position()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _read_position(self) -> SourcePosition:
        position = await self._source.position()
        if position.slot_status == "lost":
            raise WalGap(f"the replication slot {SLOT} is lost: the store has failed for too long")
        self._positions.append(position)
        return position

    # --- from the folder into the store --------------------------------------------------------------------------------

    async def _ship(self) -> None:
        loop = asyncio.get_running_loop()
        due_at = loop.time()
        while True:
            async with self._turn:
                if loop.time() >= due_at:
                    due_at = loop.time() + self._place.settings.backup_ship_seconds
                    await self._ship_unfinished()
                else:
                    await self._ship_finished()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _ship_finished(self) -> SpooledFiles:
        """Return what is left. Raises WalGap."""
        found = await self._read_folder()
        if (gap := find_gap(self._stored, found)) is not None:
            raise WalGap(gap)
        for timeline in found.histories:
            await self._ship_history(timeline)
        for segment in found.ended:
            await self._put(segment, self._until(segment.end(self._segment_size)), segment.end(self._segment_size))
            await asyncio.to_thread(self._path(segment).unlink, missing_ok=True)
        for segment in found.finished:
            if self._stored is None or segment > self._stored:
                end = segment.end(self._segment_size)
                await self._put(segment, self._until(end), end)
                self._stored, self._shipped_lsn = segment, max(end, self._shipped_lsn)
                await self._remove_partial(segment)
            await asyncio.to_thread(self._path(segment).unlink, missing_ok=True)
        return found

    async def _ship_unfinished(self) -> None:
        audit_rows = await self._count_audit_rows()  # before, so that the shipped log has them
        received = await self._wait_until_received()
        segment = (await self._ship_finished()).partial
        if segment is not None:
            try:
                changed = (await asyncio.to_thread(self._path(segment).stat)).st_mtime_ns
                lsn = min(received, segment.end(self._segment_size))
                if self._shipped_partial != (segment, changed, lsn):
                    await self._put(segment, self._until(lsn), lsn)
                    self._shipped_partial = segment, changed, lsn
                self._shipped_lsn = max(self._shipped_lsn, lsn)
            except FileNotFoundError:
                return  # it was finished meanwhile, and is the next one to ship
        state = StoreState(
            term=self._term, timeline=self._stored.timeline if segment is None and self._stored else segment.timeline if segment else 0,
            until=self._until(self._shipped_lsn), lsn=self._shipped_lsn, audit_rows=audit_rows,
        )  # fmt: skip
        if self._shipped_lsn:
            await retry(lambda: self._place.store.put(layout.STATE, layout.sign(layout.STATE, state, self._place.key)), None, _warn)
            self._state = state

    async def _count_audit_rows(self) -> int:
        try:
            return await self._source.count_audit_rows()
        except errors.Unavailable:  # or the schema of auth is on another server
            return 0 if self._state is None else self._state.audit_rows

    async def _wait_until_received(self) -> int:
        """Return how far the folder surely has the log: with everything that is committed now, if the database answers."""
        give_up_at = asyncio.get_running_loop().time() + _RECEIVE_SECONDS
        wanted: int | None = None
        received = 0
        with contextlib.suppress(errors.Unavailable):
            while asyncio.get_running_loop().time() < give_up_at:
                position = await self._read_position()
                wanted = position.lsn if wanted is None else wanted
                received = max(received, await self._received())
                if received >= wanted:
                    break
                await asyncio.sleep(_RECEIVE_LOOK_SECONDS)
        return max(received, await self._received())

    async def _received(self) -> int:
        """The server learns late that a segment has ended."""
        finished = [segment.end(self._segment_size) for segment in (await self._read_folder()).finished]
        told = [position.received for position in self._positions if position.received is not None]
        stored = 0 if self._stored is None else self._stored.end(self._segment_size)
        return max(told[-1:] + finished[-1:] + [stored])

    def _until(self, lsn: int) -> datetime:
        """Return the newest moment for which everything before it is below ``lsn``."""
        found = [position.at for position in self._positions if position.lsn <= lsn]
        return found[-1] if found else self._state.until if self._state is not None else _NEVER

    async def _ship_history(self, timeline: int) -> None:
        if timeline in self._histories:
            return
        name = layout.history_object(timeline)
        body = await asyncio.to_thread((self._folder / f"{timeline:08X}.history").read_bytes)
        sealed = await asyncio.to_thread(self._seal, name, body)
        await retry(lambda: self._place.store.put(name, sealed), None, _warn)
        self._histories.add(timeline)

    async def _put(self, segment: Segment, until: datetime, lsn: int) -> None:
        """Raises FileNotFoundError if an unfinished one was finished meanwhile."""
        name = segment.object(self._segment_size)

        def seal() -> bytes:
            data = self._path(segment).read_bytes()
            return self._seal(name, msgspec.msgpack.encode(WalObject(data=data, until=until, lsn=lsn)))

        sealed = await asyncio.to_thread(seal)
        await retry(lambda: self._place.store.put(name, sealed), None, _warn)

    async def _remove_partial(self, finished: Segment) -> None:
        """Readers prefer the finished one, so it may stay if the credentials cannot delete."""
        if self._place.settings.backup_prune:
            name = replace(finished, is_partial=True).object(self._segment_size)
            await retry(lambda: self._place.store.delete([name]), None, _warn)

    def _seal(self, name: str, data: bytes) -> bytes:
        return sealing.seal_bytes(name, data, self._place.key, self._place.mesh.mesh, self._place.recipients)

    def _path(self, segment: Segment) -> Path:
        return self._folder / f"{segment.file(self._segment_size)}{'.partial' if segment.is_partial else ''}"


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Repeat a question until the database answers."""
    return await retry(ask, None, _warn, _BACKOFF)


def _warn(error: errors.Unavailable) -> None:
    _log.warning("%s", error.message)


def _remove_unfilled(folder: Path, segment_size: int) -> None:
    """Remove what a killed pg_receivewal was filling with zeros: no log is in it yet, and pg_receivewal refuses to start beside it."""
    for path in folder.glob("*.partial"):
        if path.stat().st_size not in (0, segment_size):
            path.unlink()


def _empty(folder: Path) -> None:
    for path in folder.glob("*"):
        path.unlink()
