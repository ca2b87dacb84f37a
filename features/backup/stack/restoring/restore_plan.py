"""Chooses what to restore: a backup, and the segments of the write-ahead log that lead from it to a moment. Pure.

After each restore PostgreSQL continues on a new timeline. What the old timeline wrote behind that point is abandoned: only the history of
the newest timeline is followed.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from features.backup.stack import layout
from features.backup.stack.catalog import StoreCatalog
from features.backup.stack.layout import BackupManifest, RestoreRefused, Segment
from shared import errors

LATEST = "latest"
_HISTORY_LINE = re.compile(r"(?P<timeline>\d+)\s+(?P<lsn>[0-9A-Fa-f]+/[0-9A-Fa-f]+)(\s.*)?")


@dataclass(frozen=True, slots=True)
class TimelineEnd:
    timeline: int
    #: Where the next timeline begins; infinite for the newest.
    end_lsn: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreTarget:
    """Where to stop. Without any of these: at the end."""

    #: The last commits are those of this moment.
    at: datetime | None = None
    #: A restore point, whose moment is ``at``.
    point: str | None = None
    #: As soon as the backup is consistent.
    is_backup_end: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePlan:
    backup: BackupManifest
    target: RestoreTarget
    timeline: int
    #: Contiguous, from the start of the backup. The moment may be reached before the last one.
    segments: tuple[Segment, ...]
    #: The first segment that is missing, though later ones are here: nothing behind it can be reached.
    gap: Segment | None
    #: The timelines whose history PostgreSQL gets.
    histories: tuple[int, ...]

    @property
    def needed_bytes(self) -> int:
        """The disk that the restore takes, with a tenth more: PostgreSQL writes while it recovers."""
        plain = sum(part.plain_size for part in self.backup.parts) + len(self.segments) * self.backup.segment_size
        return plain + plain // 10


@dataclass(frozen=True, slots=True)
class RecoveryHole:
    """Between these moments nothing can be restored."""

    #: What was surely before it.
    since: datetime
    #: The next backup; None if there is none yet.
    until: datetime | None
    #: PostgreSQL's name of the first missing segment.
    missing: str


@dataclass(frozen=True, slots=True)
class RecoveryWindow:
    """The recoverable moments. Backups older than ``first`` can be restored as they are."""

    first: datetime
    last: datetime
    holes: tuple[RecoveryHole, ...]


def parse_history(text: str) -> tuple[TimelineEnd, ...]:
    """Parse PostgreSQL's ``.history`` file, oldest timeline first. Raises BadSettings."""
    lines = [line.strip() for line in text.splitlines()]
    matches = [_HISTORY_LINE.fullmatch(line) for line in lines if line and not line.startswith("#")]
    if not all(matches):
        raise errors.BadSettings("a history of a timeline cannot be read", hint="use another backup: aicli stack backups")
    return tuple(TimelineEnd(int(match["timeline"]), layout.parse_lsn(match["lsn"])) for match in matches if match)


def plan(catalog: StoreCatalog, which: str, target: RestoreTarget, histories: Mapping[int, Sequence[TimelineEnd]]) -> RestorePlan:
    """``which`` is a backup's name or ``latest``. Raises RestoreRefused."""
    if not catalog.backups:
        raise RestoreRefused("the store has no backup", hint="make one: aicli stack backup")
    newest = _newest_timeline(catalog)
    path = _path(newest, histories)
    if which == LATEST:
        backup = _latest(catalog, path, target)
    else:
        backup = _named(catalog, which)
        if not _is_on(path, backup):  # abandoned by an earlier restore, and asked for
            path = _path(backup.timeline, histories)
        if target.at is None:
            target = RestoreTarget(is_backup_end=True)
    if target.at is not None and target.at < backup.finished_at:
        raise RestoreRefused(
            f"the backup {backup.name} can be restored from {moment(backup.finished_at, is_first=True)} on",
            hint="use that time, or `latest`",
        )
    if not any(part.name == layout.DATA for part in backup.parts):
        raise RestoreRefused(
            f"the backup {backup.name} has no database", hint="restore it at its provider first, then add --database-restored"
        )
    last = _last(catalog)
    if target.at is not None and target.at > last:
        raise RestoreRefused(f"the last moment that can be restored is {moment(last)}", hint=f"use --at {moment(last)}, or no --at")
    segments, gap = _chain(catalog, path, backup, _last_needed(catalog, path, backup, target))
    consistent = (backup.stop_lsn - 1) // backup.segment_size
    if not segments or segments[-1].number < consistent:
        missing = gap or Segment(backup.timeline, (segments[-1].number + 1) if segments else backup.start_lsn // backup.segment_size)
        raise RestoreRefused(
            f"{missing.object(backup.segment_size)} is missing, and the backup {backup.name} needs it",
            hint="use another backup: aicli stack backups",
        )
    known = tuple(sorted(catalog.histories))
    return RestorePlan(backup=backup, target=target, timeline=path[-1].timeline, segments=segments, gap=gap, histories=known)


def window(catalog: StoreCatalog, histories: Mapping[int, Sequence[TimelineEnd]]) -> RecoveryWindow | None:
    """None without a backup."""
    path = _path(_newest_timeline(catalog), histories) if catalog.backups else ()
    backups = [backup for backup in catalog.backups if _is_on(path, backup)]
    if not backups:
        return None
    first, holes = None, []
    for backup, following in zip(backups, [*backups[1:], None], strict=True):
        until = None if following is None else (following.stop_lsn - 1) // backup.segment_size
        segments, gap = _chain(catalog, path, backup, until)
        if until is not None and gap is None and (not segments or segments[-1].number < until):
            gap = Segment(backup.timeline, until)
        if gap is None:
            first = first or backup.finished_at
        elif first is not None or following is None:
            first = first or backup.finished_at
            holes.append(
                RecoveryHole(backup.finished_at, None if following is None else following.finished_at, gap.file(backup.segment_size))
            )
    return RecoveryWindow(first or backups[-1].finished_at, _last(catalog), tuple(holes))


def refusal_of_gap(plan: RestorePlan, reachable: datetime) -> RestoreRefused:
    """``reachable`` is the last moment before the gap."""
    assert plan.gap is not None
    return RestoreRefused(
        f"{plan.gap.object(plan.backup.segment_size)} is missing: the last moment before it that can be restored is {moment(reachable)}",
        hint=f"use --at {moment(reachable)}, or a later backup: aicli stack backups",
    )


def moment(at: datetime, *, is_first: bool = False) -> str:
    """Return the whole second, as --at reads it: the one before, or the one behind if it is the first that can be restored."""
    second = at.replace(microsecond=0)
    return f"{second + timedelta(seconds=is_first and second < at):%Y-%m-%dT%H:%M:%SZ}"


def _newest_timeline(catalog: StoreCatalog) -> int:
    used = (*(segment.timeline for segment in catalog.segments), *(backup.timeline for backup in catalog.backups))
    return max((*used, *catalog.histories))


def _path(timeline: int, histories: Mapping[int, Sequence[TimelineEnd]]) -> tuple[TimelineEnd, ...]:
    """Return the timelines that lead to this one, oldest first."""
    return (*histories.get(timeline, ()), TimelineEnd(timeline, math.inf))


def _is_on(path: Sequence[TimelineEnd], backup: BackupManifest) -> bool:
    return any(each.timeline == backup.timeline and backup.stop_lsn <= each.end_lsn for each in path)


def _last(catalog: StoreCatalog) -> datetime:
    finished = catalog.backups[-1].finished_at
    return finished if catalog.state is None else max(finished, catalog.state.until)


def _latest(catalog: StoreCatalog, path: Sequence[TimelineEnd], target: RestoreTarget) -> BackupManifest:
    backups = [backup for backup in catalog.backups if _is_on(path, backup)]
    if not backups:
        raise RestoreRefused("no backup belongs to the newest timeline", hint="restore one by its name: aicli stack backups")
    before = [backup for backup in backups if target.at is None or backup.finished_at <= target.at]
    if not before:
        first = moment(backups[0].finished_at, is_first=True)
        raise RestoreRefused(f"the first moment that can be restored is {first}", hint=f"use --at {first}, or a later time")
    return before[-1]


def _named(catalog: StoreCatalog, name: str) -> BackupManifest:
    for backup in catalog.backups:
        if backup.name == name:
            return backup
    raise RestoreRefused(f"the store has no backup {name[:100]!r}", hint="list them with: aicli stack backups")


def _last_needed(catalog: StoreCatalog, path: Sequence[TimelineEnd], backup: BackupManifest, target: RestoreTarget) -> int | None:
    """Return the last segment that can have commits before the target; None for all."""
    if target.is_backup_end:
        return (backup.stop_lsn - 1) // backup.segment_size
    if target.at is None:
        return None
    later = (each for each in catalog.backups if each.started_at > target.at and _is_on(path, each))
    return min(((each.stop_lsn - 1) // each.segment_size for each in later), default=None)


def _chain(
    catalog: StoreCatalog, path: Sequence[TimelineEnd], backup: BackupManifest, last: int | None
) -> tuple[tuple[Segment, ...], Segment | None]:
    """Return the segments from the backup on without a gap, and the first missing one if there are later ones."""
    have, spans = frozenset(catalog.segments), tuple(_spans(path, backup.segment_size))
    on_path = (each.number for each in have for span in spans if each.timeline == span.timeline and span.contains(each.number))
    highest = min(max(on_path, default=-1), math.inf if last is None else last)
    chain: list[Segment] = []
    number = backup.start_lsn // backup.segment_size
    while number <= highest:
        timelines = [span.timeline for span in reversed(spans) if span.contains(number)]
        wanted = Segment(timelines[0], number)
        # Or an unfinished segment, or the old timeline's last one, as long as the new one's first is not here.
        found = [each for timeline in timelines for each in (Segment(timeline, number), Segment(timeline, number, is_partial=True))]
        segment = next((each for each in found if each in have), None)
        if segment is not None:
            chain.append(segment)
        if segment != wanted:
            return tuple(chain), wanted if segment is None or number < highest else None
        number += 1
    return tuple(chain), None


@dataclass(frozen=True, slots=True)
class _Span:
    """The segments of a timeline."""

    timeline: int
    first: float
    last: float

    def contains(self, number: int) -> bool:
        return self.first <= number <= self.last


def _spans(path: Sequence[TimelineEnd], segment_size: int) -> Iterator[_Span]:
    """A timeline begins in the middle of the old one's last segment, which both have (PostgreSQL's XLogFileReadAnyTLI)."""
    first = 0.0
    for each in path:
        last = each.end_lsn // segment_size if each.end_lsn != math.inf else math.inf
        yield _Span(each.timeline, first, last)
        first = last
