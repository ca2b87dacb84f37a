"""Notices that the database was replaced by an older one, and makes the platform stricter than it was.

``RecoveryStart.begin`` replays the log before anything else of the service starts, and ``finish`` does the rest before it answers anyone. A
restore is a row of the database until everything was done, so a start that is killed in between is continued by the next one.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from uuid import UUID, uuid4

import msgspec
from prometheus_client import Gauge

from shared import errors
from shared.api.method import Body
from shared.identity import private_file
from shared.node import lifecycle
from shared.recovery import recovery_lines
from shared.recovery import replay as replays
from shared.recovery.log_place import AcceptedGap, LogPlace
from shared.recovery.recovery_lines import LogEnd
from shared.recovery.recovery_log import RecoveryLog, replaced
from shared.recovery.recovery_store import DatabasePlace, RecoveryStore
from shared.recovery.replay import LogFile, Replay
from shared.telemetry import logs
from shared.types import Moment

B = TypeVar("B", bound=Body)

STATE_SECONDS = 10
_MAX_RESTORES = 20

_log = logs.get(part="recovery")


class RecoveryState(Body, frozen=True, kw_only=True):
    """What this database was when it was last seen: the content of ``recovery_state``."""

    system: str
    timeline: int
    lsn: int
    number: int
    #: The newest restore that was handled, and when.
    restore: UUID | None = None
    restored_at: Moment | None = None
    #: Restores before that, newest first.
    earlier: tuple[Moment, ...] = ()


class RestoreFacts(Body, frozen=True, kw_only=True):
    """What is known about a restore."""

    why: str
    #: Replayed lines of the recovery log.
    lines: int = 0
    #: Lines that the restore did without.
    missing: str = ""
    #: The highest signing epoch in the log.
    epoch: int = 0
    last_seen: Moment | None = None


@dataclass(frozen=True, slots=True)
class OpenRestore:
    """A restore that nobody has handled completely."""

    id: UUID
    facts: RestoreFacts
    #: When this service's database was restored before.
    since: datetime | None

    def details(self) -> dict[str, str]:
        """Return what the audit log says about it."""
        seen = "" if self.facts.last_seen is None else self.facts.last_seen.isoformat()
        missing = {"missing_lines": self.facts.missing} if self.facts.missing else {}
        return {"why": self.facts.why, "last_seen": seen, "log_lines_replayed": str(self.facts.lines), **missing}


def find_rollback(state: RecoveryState | None, place: DatabasePlace, log_number: int) -> str | None:
    """Return how one can see that the database is older than it was; None if it is not."""
    if log_number > place.head.number:
        return f"the recovery log has {log_number} lines, and the database {place.head.number}"
    if state is None:
        return None
    if state.number > place.head.number:
        return f"the recovery log had {state.number} lines, and the database has {place.head.number}"
    if state.system != place.system:
        return "it is another database cluster"
    if state.timeline == place.timeline and place.lsn < state.lsn:
        return "its write-ahead log is behind"
    return None


class RecoveryStart:
    """Also the task that keeps ``recovery_state``. Without a folder it does nothing."""

    def __init__(
        self,
        rows: RecoveryStore,
        log: RecoveryLog,
        place: LogPlace,
        restored: Gauge,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._rows = rows
        self._log = log
        self._place = place
        self._restored = restored
        self._now = now
        self._state: RecoveryState | None = None
        self._gap: AcceptedGap | None = None

    @property
    def restores(self) -> tuple[datetime, ...]:
        """Return when this service's database was restored, newest first, by the file: nobody with database access can add one."""
        state = self._state
        return () if state is None or state.restored_at is None else (state.restored_at, *state.earlier)

    async def begin(self, replay: Replay, is_behind: Callable[[datetime | None], Awaitable[bool]] | None = None) -> None:
        """Replay what the database lacks. ``is_behind`` gets the time of the last restore, and says whether another witness of the service
        knows more than the database. Raises BadSettings for a damaged log, and Unavailable."""
        if self._place.folder is None:
            return
        await asyncio.to_thread(self._place.ensure)
        self._state = await asyncio.to_thread(_read, self._place.state_file(), RecoveryState)
        self._gap = await asyncio.to_thread(_read, self._place.gap_file(), AcceptedGap)
        head = await self._rows.head()
        files = await replays.read_files(self._place, head, self._rows)
        witnessed = is_behind is not None and await is_behind(None if self._state is None else self._state.restored_at)
        await self._replay(replay, files, head, is_behind=witnessed)
        own = [file.checked.end for file in files if file.path == self._place.file]
        self._log.begin(own[0] if own else recovery_lines.START)

    async def finish(self, handle: Callable[[OpenRestore], Awaitable[None]]) -> None:
        """Do the rest after a restore: ``handle`` may run twice for the same one, and closes it. Raises what it raises, and Unavailable."""
        if self._place.folder is None:
            return
        if (found := await self._rows.find_open_restore()) is not None:
            facts = msgspec.json.decode(found[1], type=RestoreFacts)
            await handle(OpenRestore(found[0], facts, None if self._state is None else self._state.restored_at))
            _log.warning("the restored database was made as strict as before", why=facts.why, lines=facts.lines)
        await self._write(await self._rows.place())
        with contextlib.suppress(OSError):  # the row has its id, so it counts once
            await asyncio.to_thread(self._place.gap_file().unlink, missing_ok=True)

    async def run(self) -> None:
        """Run until canceled."""
        if self._place.folder is not None:
            await lifecycle.every(STATE_SECONDS, self.write_state)

    async def write_state(self) -> None:
        """Raises Unavailable, and Internal if the database was replaced while the service runs."""
        if self._place.folder is not None:
            end, place = self._log.end, await self._rows.place()
            if place.head.number < end.number or (place.head.number == end.number and place.head != end):
                raise replaced()
            await self._write(place)

    async def _replay(self, replay: Replay, files: tuple[LogFile, ...], head: LogEnd, *, is_behind: bool) -> None:
        newer = files[-1].checked.newer if files else ()
        log_number = files[-1].checked.end.number if files else 0
        async with self._rows.replaying() as (transaction, now_head):
            place = replace(await self._rows.place(), head=now_head)
            # Another replica may have replayed some of them a moment ago.
            lines = newer[max(0, now_head.number - head.number) :]
            why = find_rollback(self._state, place, log_number)
            if why is None and is_behind:
                why = "an anchor of the audit log is ahead of the database"
            gap = None if self._gap is None or self._gap.id == place.restore else self._gap
            if why is None and gap is not None:
                why = "lines of the recovery log are missing"
            if why is None or (not lines and gap is None and self._is_known(place)):
                return
            if lines:
                await replay.apply(transaction, lines)
            epochs = [int(line.subject) for line in newer if line.kind == "signing_keys.rotated_at_once"]
            seen = None if not newer else newer[-1].at
            missing, restore = ("", uuid4()) if gap is None else (gap.missing, gap.id)
            facts = RestoreFacts(why=why, lines=len(lines), missing=missing, epoch=max(epochs, default=0), last_seen=seen)
            await self._rows.add_restore(transaction, restore, msgspec.json.encode(facts).decode())
        _log.warning("the database is older than it was: the recovery log was replayed", why=why, lines=len(lines))

    def _is_known(self, place: DatabasePlace) -> bool:
        """Return whether another replica has found this restore since this one last ran."""
        return self._state is not None and place.restore is not None and place.restore != self._state.restore

    async def _write(self, place: DatabasePlace) -> None:
        self._restored.set(place.is_restored)
        before = (None, None) if self._state is None else (self._state.restore, self._state.restored_at)
        restored_at, earlier = before[1], self.restores[1:]
        if place.restore != before[0]:
            restored_at, earlier = min(place.restored_at or self._now(), self._now()), self.restores[:_MAX_RESTORES]
        self._state = RecoveryState(
            system=place.system, timeline=place.timeline, lsn=place.lsn, number=place.head.number,
            restore=place.restore, restored_at=restored_at, earlier=earlier,
        )  # fmt: skip
        try:
            await asyncio.to_thread(private_file.replace, self._place.state_file(), msgspec.json.encode(self._state), synced=True)
        except OSError as error:
            _log.error("the recovery state cannot be written", folder=str(self._place.folder), reason=error.strerror)


def _read(path: Path, kind: type[B]) -> B | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise errors.BadSettings(f"{path} cannot be read: {error}", hint="check RECOVERY_LOG_DIR, or delete this file") from error
