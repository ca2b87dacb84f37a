"""Track missing workers across restarts of this service. Pure.

The directory knows only workers that disappeared since this process started. Workers that were stopped, drained, revoked or never
admitted are not missing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from shared.protocol.directory import FORGOTTEN_AFTER, MAX_NODES, Announcement, DirectoryEntry
from shared.types import NodeId, Role

#: After a start, no worker counts as missing for this time: links over Hyperswarm come back one after another.
MEETING: Final = timedelta(seconds=60)
#: Truncates reasons, because peers can supply them.
_MAX_WORDS: Final = 200
_WENT_UNSEEN: Final = "it has not come back since the metrics service restarted"


@dataclass(frozen=True, slots=True)
class AttendedWorker:
    node: NodeId
    #: The last path to it, as in ``DirectoryEntry``.
    path: str
    gone_at: datetime | None = None
    why: str = ""


class WorkerAttendance:
    """The known workers, present and missing."""

    def __init__(self) -> None:
        self._members: dict[NodeId, AttendedWorker] = {}
        self._began_at: datetime | None = None

    def look(self, entries: Iterable[DirectoryEntry], is_revoked: Callable[[NodeId], bool], now: datetime) -> None:
        """Update from the directory."""
        if self._began_at is None:
            self._began_at = now
        seen = set()
        for entry in entries:
            # Without a path, it was not reached since the start.
            if entry.role is Role.WORKER and entry.path:
                seen.add(entry.node)
                self._see(entry)
        for member in list(self._members.values()):
            if is_revoked(member.node) or (member.gone_at is not None and now - member.gone_at > FORGOTTEN_AFTER):
                del self._members[member.node]
            elif member.node not in seen and member.gone_at is None and now - self._began_at >= MEETING:
                self._members[member.node] = replace(member, gone_at=now, why=_WENT_UNSEEN)

    def _see(self, entry: DirectoryEntry) -> None:
        if entry.announcement.draining:
            self._members.pop(entry.node, None)
        elif entry.node in self._members or len(self._members) < MAX_NODES:
            gone_at = None if entry.alive else entry.since
            self._members[entry.node] = AttendedWorker(entry.node, entry.path, gone_at, _plain(entry.why_gone))

    def recall(self, members: Iterable[AttendedWorker], now: datetime) -> None:
        """Restore the workers known before the restart. Call this once. Newer facts take precedence."""
        for member in members:
            if len(self._members) < MAX_NODES:
                # A wrong clock may have stored a later time.
                gone_at = None if member.gone_at is None else min(member.gone_at, now)
                self._members.setdefault(member.node, replace(member, gone_at=gone_at))

    def members(self) -> dict[NodeId, AttendedWorker]:
        """Return the workers to store."""
        return dict(self._members)

    def missed(self) -> dict[NodeId, DirectoryEntry]:
        """Return the missing workers as directory entries."""
        return {node: _entry(member, member.gone_at) for node, member in self._members.items() if member.gone_at is not None}


def _entry(member: AttendedWorker, gone_at: datetime) -> DirectoryEntry:
    return DirectoryEntry(Announcement(Role.WORKER, member.node, "", gone_at), (), member.path, gone_at, member.why)


def _plain(text: str) -> str:
    """Replace control characters, because PostgreSQL rejects NUL."""
    return "".join(each if each.isprintable() else " " for each in text[:_MAX_WORDS])
