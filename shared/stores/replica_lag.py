"""Decides whether a replica may answer. Pure; the caller brings the time. Positions are bytes of the primary's write-ahead log.

A clock of another machine never counts: a replica is behind by the time since the primary had what the replica lacks.
"""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

#: Older positions are forgotten, so that a longer lag reads as this many seconds.
MAX_SAMPLES = 600


class ReplicaState(StrEnum):
    USED = "used"
    BEHIND = "behind"
    #: It accepts writes, or copies another database.
    PROMOTED = "promoted"
    FOREIGN = "foreign"
    #: The primary does not answer, or began to answer too recently to tell.
    UNKNOWN = "unknown"
    AWAY = "away"


DETAILS = {
    ReplicaState.USED: "",
    ReplicaState.BEHIND: "it is too far behind; see its disk, its network and long queries",
    ReplicaState.PROMOTED: "it is no standby any more; correct DATABASE_READ_URL, or DATABASE_URL if this is the new primary",
    ReplicaState.FOREIGN: "it is a copy of another database; correct DATABASE_READ_URL",
    ReplicaState.UNKNOWN: "how far it is behind is unknown; the primary does not answer, or has only just begun to",
    ReplicaState.AWAY: "it does not answer; is it running, and is DATABASE_READ_URL right?",
}


@dataclass(frozen=True, slots=True)
class ServerPosition:
    """What a server says about itself."""

    is_standby: bool
    #: The same for a primary and its standbys.
    system: int
    #: The end of what a primary has written, or a standby has replayed.
    position: int


class ReplicaLag:
    def __init__(self, allowed_seconds: float) -> None:
        self._allowed_seconds = allowed_seconds
        self._system = 0
        #: Time and position of the primary, oldest first.
        self._samples: deque[tuple[float, int]] = deque(maxlen=MAX_SAMPLES)
        #: The replica had all that was written before this time.
        self._fresh_at: float | None = None

    def note_primary(self, found: ServerPosition, now: float) -> None:
        """A new primary may have lost the end of the old one's log, whose positions then mean nothing."""
        if self._samples and (found.system != self._system or found.position < self._samples[-1][1]):
            self._samples.clear()
        self._system = found.system
        self._samples.append((now, found.position))

    def judge(self, found: ServerPosition, now: float) -> ReplicaState:
        required = next((position for at, position in self._samples if at >= now - self._allowed_seconds), None)
        if not found.is_standby:
            return ReplicaState.PROMOTED
        if required is None:
            return ReplicaState.UNKNOWN
        if found.system != self._system:
            return ReplicaState.FOREIGN
        missing = next((at for at, position in self._samples if position > found.position), self._samples[-1][0])
        self._fresh_at = missing if self._fresh_at is None else max(missing, self._fresh_at)
        if found.position >= required:
            return ReplicaState.USED
        return ReplicaState.BEHIND if self._samples[0][0] < now - self._allowed_seconds else ReplicaState.UNKNOWN

    def seconds(self, now: float) -> float:
        """Return how far the replica is behind at most. It grows while the replica is down."""
        if self._fresh_at is None:
            self._fresh_at = now
        return max(0.0, now - self._fresh_at)
