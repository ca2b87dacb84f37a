"""Notices that the database was replaced by an older one, and makes the platform stricter than it was.

``RecoveryStart.begin`` replays the log before anything else of auth starts, and ``finish`` does the rest before auth answers anyone. A
restore is a row of the database until everything was done, so a start that is killed in between is continued by the next one.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol
from uuid import UUID, uuid4

import msgspec
from prometheus_client import Gauge

from services.auth import audit_records
from services.auth.audit.anchoring import Anchoring, AnchorKeys
from services.auth.audit.audit_store import AuditStore
from services.auth.audit_records import AuditTrail
from services.auth.recovery import recovery_lines
from services.auth.recovery import replay as replays
from services.auth.recovery.recovery_lines import LogEnd
from services.auth.recovery.recovery_log import RecoveryLog, replaced
from services.auth.recovery.recovery_store import DatabasePlace, RecoveryStore
from services.auth.recovery.replay import LogFile, Replay
from services.auth.sessions.active_keys import ActiveKeys
from shared import audit_anchors, errors
from shared.api.method import Body
from shared.audit_anchors import Anchor
from shared.node import lifecycle
from shared.stores import signed_lines
from shared.stores.cache import Cache
from shared.telemetry import logs
from shared.types import MeshName

STATE_SECONDS = 10
_STATE_NAME = "recovery_state"
#: Everything that lets somebody in. What counts requests and failed logins stays.
SESSION_KEYS = ("auth:session:*", "auth:session_family:*", "auth:sessions_of:*", "auth:halfway_of:*", "auth:link:*", "auth:oidc:*")

_log = logs.get(part="recovery")


class RecoveryState(Body, frozen=True, kw_only=True):
    """What this database was when it was last seen: the content of ``recovery_state``."""

    system: str
    timeline: int
    lsn: int
    number: int
    #: The newest restore that was handled, and when.
    restore: UUID | None = None
    restored_at: datetime | None = None


class RestoreFacts(Body, frozen=True, kw_only=True):
    """What is known about a restore."""

    why: str
    #: Replayed lines of the recovery log.
    lines: int = 0
    #: The highest signing epoch in the log.
    epoch: int = 0
    last_seen: datetime | None = None


class PublishedList(Protocol):
    """What this node has seen of the mesh's revocation list and topics."""

    @property
    def number(self) -> int: ...

    @property
    def topics(self) -> tuple[tuple[int, bytes], ...]: ...


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


@dataclass(frozen=True, slots=True)
class RecoveryFolder:
    """``RECOVERY_LOG_DIR``; every method blocks."""

    path: Path

    def ensure(self) -> None:
        """Raises BadSettings."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise errors.BadSettings(
                f"RECOVERY_LOG_DIR {self.path} cannot be created: {error.strerror}", hint="check its parent"
            ) from error

    def read_state(self) -> RecoveryState | None:
        try:
            return msgspec.json.decode((self.path / _STATE_NAME).read_bytes(), type=RecoveryState)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise errors.BadSettings(
                f"{self.path / _STATE_NAME} cannot be read: {error}", hint="check RECOVERY_LOG_DIR, or delete this file"
            ) from error

    def write_state(self, state: RecoveryState) -> None:
        signed_lines.replace(self.path / _STATE_NAME, msgspec.json.encode(state))


class RecoveryStart:
    """Also the task that keeps ``recovery_state``. Without a folder it does nothing."""

    def __init__(
        self,
        rows: RecoveryStore,
        log: RecoveryLog,
        folder: RecoveryFolder | None,
        restored: Gauge,
        *,
        keys: AnchorKeys,
        mesh: MeshName,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._rows = rows
        self._log = log
        self._folder = folder
        self._keys = keys
        self._mesh = mesh
        self._restored = restored
        self._now = now
        self._state: RecoveryState | None = None

    async def begin(self, replay: Replay, anchors: "LostRows", own_name: str) -> None:
        """Replay what the database lacks. Raises BadSettings for a damaged log, and Unavailable."""
        if self._folder is None:
            return
        self._folder.ensure()
        self._state = await asyncio.to_thread(self._folder.read_state)
        head = await self._rows.head()
        files = await replays.read_files(self._folder.path, head, self._rows, self._keys, self._mesh)
        is_behind = await anchors.are_some_ahead(None if self._state is None else self._state.restored_at)
        await self._replay(replay, files, head, is_behind_anchors=is_behind)
        own = [file.checked.end for file in files if file.path.name == own_name]
        self._log.begin(own[0] if own else recovery_lines.START)

    async def finish(self, ending: "AccessEnding", trail: AuditTrail, anchors: "LostRows") -> None:
        """Do the rest after a restore. Raises BadSettings if the audit log differs from its anchors, and Unavailable."""
        if self._folder is None:
            return
        if (found := await self._rows.find_open_restore()) is not None:
            restore, details = found
            facts = msgspec.json.decode(details, type=RestoreFacts)
            await ending.end_everything(facts.epoch)
            lost = await anchors.count(None if self._state is None else self._state.restored_at)
            async with self._rows.transaction() as transaction:
                if await self._rows.close_restores(transaction):
                    seen = "" if facts.last_seen is None else facts.last_seen.isoformat()
                    act = audit_records.of_mesh(
                        "database.restored", None, target=restore, why=facts.why, last_seen=seen,
                        log_lines_replayed=str(facts.lines), lost_rows=str(lost),
                    )  # fmt: skip
                    await trail.add(transaction, act)
            _log.warning("the database was restored; sessions have ended", why=facts.why, lines=facts.lines, lost_rows=lost)
        await self._write(await self._rows.place())

    async def run(self) -> None:
        """Run until canceled."""
        if self._folder is not None:
            await lifecycle.every(STATE_SECONDS, self.write_state)

    async def write_state(self) -> None:
        """Raises Unavailable, and Internal if the database was replaced while auth runs."""
        if self._folder is not None:
            end, place = self._log.end, await self._rows.place()
            if place.head.number < end.number or (place.head.number == end.number and place.head != end):
                raise replaced()
            await self._write(place)

    async def _replay(self, replay: Replay, files: tuple[LogFile, ...], head: LogEnd, *, is_behind_anchors: bool) -> None:
        newer = files[-1].checked.newer if files else ()
        log_number = files[-1].checked.end.number if files else 0
        async with self._rows.replaying() as (transaction, now_head):
            place = replace(await self._rows.place(), head=now_head)
            # Another replica may have replayed some of them a moment ago.
            lines = newer[max(0, now_head.number - head.number) :]
            why = find_rollback(self._state, place, log_number)
            if why is None and is_behind_anchors:
                why = "an anchor of the audit log is ahead of the database"
            if why is None or (not lines and self._is_known(place)):
                return
            if lines:
                await replay.apply(transaction, lines)
            epochs = [int(line.subject) for line in newer if line.kind == "signing_keys.rotated_at_once"]
            seen = None if not newer else newer[-1].at
            facts = RestoreFacts(why=why, lines=len(lines), epoch=max(epochs, default=0), last_seen=seen)
            await self._rows.add_restore(transaction, uuid4(), msgspec.json.encode(facts).decode())
        _log.warning("the database is older than it was: the recovery log was replayed", why=why, lines=len(lines))

    def _is_known(self, place: DatabasePlace) -> bool:
        """Return whether another replica has found this restore since this one last ran."""
        return self._state is not None and place.restore is not None and place.restore != self._state.restore

    async def _write(self, place: DatabasePlace) -> None:
        assert self._folder is not None
        self._restored.set(place.is_restored)
        before = (None, None) if self._state is None else (self._state.restore, self._state.restored_at)
        self._state = RecoveryState(
            system=place.system, timeline=place.timeline, lsn=place.lsn, number=place.head.number,
            restore=place.restore, restored_at=before[1] if place.restore == before[0] else self._now(),
        )  # fmt: skip
        try:
            await asyncio.to_thread(self._folder.write_state, self._state)
        except OSError as error:
            _log.error("the recovery state cannot be written", folder=str(self._folder.path), reason=error.strerror)


class AccessEnding:
    """Ends what the restored database, or Valkey, would still accept. Every step may run twice."""

    def __init__(self, rows: RecoveryStore, signers: ActiveKeys, cache: Cache, published: PublishedList) -> None:
        self._rows = rows
        self._signers = signers
        self._cache = cache
        self._published = published

    async def end_everything(self, epoch: int) -> None:
        """``epoch``: the highest signing epoch in the recovery log. Raises Unavailable."""
        async with self._signers.rotating(at_once=True, above=epoch):
            pass
        for pattern in SESSION_KEYS:
            await self._cache.delete_matching(pattern)
        await self._rows.drop_password_resets()
        seen = max((each for each, _ in self._published.topics), default=0)
        await self._rows.raise_list(self._published.number, seen)


class LostRows:
    """Compares the audit log with its anchors."""

    def __init__(self, audit: AuditStore, anchoring: Anchoring) -> None:
        self._audit = audit
        self._anchoring = anchoring

    async def count(self, since: datetime | None) -> int:
        """Return how many rows the anchors know and the database lacks. ``since``: the last restore; older anchors may be of rows that were
        lost then. Raises BadSettings if a row differs from its anchor, which no restore causes, and Unavailable."""
        by_chain: dict[str, list[Anchor]] = {}
        for anchor in (await self._anchoring.read())[0]:
            if since is None or anchor.at > since:
                by_chain.setdefault(anchor.chain, []).append(anchor)
        return sum([await self._count(chain, anchors) for chain, anchors in by_chain.items()])

    async def are_some_ahead(self, since: datetime | None) -> bool:
        """Return whether one of the newest anchors knows a row that the database lacks. Raises Unavailable."""
        newest = await self._anchoring.read_newest()
        recent = {anchor.chain: anchor for anchor in newest if since is None or anchor.at > since}
        good = audit_anchors.check(recent.values(), self._anchoring.keys.ids).good
        ends = [(anchor, await self._audit.end_of(anchor.chain)) for anchor in good]
        return any(anchor.sequence > end.last_row for anchor, end in ends)

    async def _count(self, chain: str, anchors: list[Anchor]) -> int:
        last = (await self._audit.end_of(chain)).last_row
        newest = self._newest(anchors)
        kept = self._newest([anchor for anchor in anchors if anchor.sequence <= last])
        if kept is not None:
            async for row, *_ in self._audit.read_chain(chain, after=kept.sequence - 1, until=kept.sequence):
                if row.hash != kept.hash:
                    raise errors.BadSettings(
                        f"the audit log was changed: row {kept.sequence} of the chain {chain} differs from its anchor",
                        hint="treat it as a break-in (docs/runbooks/audit_chain_broken.md)",
                    )
        return 0 if newest is None else max(0, newest.sequence - last)

    def _newest(self, anchors: list[Anchor]) -> Anchor | None:
        """Return the one with the highest number that is signed. Its hash covers all rows before it, so the others need no check."""
        by_number = sorted(anchors, key=lambda anchor: anchor.sequence, reverse=True)
        return next((anchor for anchor in by_number if audit_anchors.check([anchor], self._anchoring.keys.ids).good), None)
