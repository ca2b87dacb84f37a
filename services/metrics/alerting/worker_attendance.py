"""Which workers were there, and which of them are missed: since when and why, also over a restart of this service. Pure.

The directory of this node knows who went before its eyes, and forgets it with the process. Whoever said goodbye, drained or was revoked
was meant to go and is not missed; nor is one that was never let in.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from services.metrics.alerting.rules.evaluation import labels
from services.metrics.alerting.sample_window import Sample
from shared.discovery.directory import FORGOTTEN_AFTER, MAX_NODES, Announcement, DirectoryEntry
from shared.telemetry import instruments
from shared.types import SERVICE_NAMES, NodeId, Role

#: After a start so long nobody is missed who was there before it: links over Hyperswarm are made anew one after the other.
MEETING: Final = timedelta(seconds=60)
#: Of what was the matter; a peer may have said it.
_MOST_WORDS: Final = 200
_WENT_UNSEEN: Final = "it was here before the metrics service started anew, and did not come back"


@dataclass(frozen=True, slots=True)
class AttendedWorker:
    """A worker that was there."""

    node: NodeId
    #: As in a directory's ``DirectoryEntry``: the last best path to it.
    path: str
    #: Since when it is gone; None while it is there.
    gone_at: datetime | None = None
    why: str = ""


class WorkerAttendance:
    """One for the service."""

    def __init__(self) -> None:
        self._members: dict[NodeId, AttendedWorker] = {}
        #: The first look; None before it.
        self._began_at: datetime | None = None

    # --- facts ------------------------------------------------------------------------------------------------------

    def look(self, entries: Iterable[DirectoryEntry], is_revoked: Callable[[NodeId], bool], now: datetime) -> None:
        """What the directory knows at this moment."""
        if self._began_at is None:
            self._began_at = now
        seen = set()
        for entry in entries:
            # One that was never reached since the start is known by its key alone.
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
        """Who was there when this replica ended; said once. What was seen since it began is known better."""
        for member in members:
            if len(self._members) < MAX_NODES:
                # A clock that was wrong may have left a later moment.
                gone_at = None if member.gone_at is None else min(member.gone_at, now)
                self._members.setdefault(member.node, replace(member, gone_at=gone_at))

    # --- questions --------------------------------------------------------------------------------------------------

    def members(self) -> dict[NodeId, AttendedWorker]:
        """All that has to outlive the service."""
        return dict(self._members)

    def missed(self) -> dict[NodeId, DirectoryEntry]:
        """As a directory has them that has seen them go."""
        return {node: _entry(member, member.gone_at) for node, member in self._members.items() if member.gone_at is not None}

    def samples(self) -> Iterator[Sample]:
        """As the rules look at them."""
        for node in self.missed():
            where = labels(service=SERVICE_NAMES[Role.WORKER], node=instruments.node_label(node))
            yield Sample(instruments.NODE_UP.name, where, 0.0)


def _entry(member: AttendedWorker, gone_at: datetime) -> DirectoryEntry:
    return DirectoryEntry(Announcement(Role.WORKER, member.node, "", gone_at), (), member.path, gone_at, member.why)


def _plain(text: str) -> str:
    """PostgreSQL keeps no NUL."""
    return "".join(each if each.isprintable() else " " for each in text[:_MOST_WORDS])
