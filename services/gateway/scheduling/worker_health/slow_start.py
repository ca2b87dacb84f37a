"""Since when each worker is there, and how much is sent to one that has just come.  Pure; the caller brings both clocks."""

from datetime import datetime

from shared.discovery.directory import DirectoryEntry
from shared.types import NodeId

#: A worker that has just come gets a tenth of its share, and all of it after this time: whatever makes its first answers slow, or
#: ends it again, then meets few.
SLOW_START_SECONDS = 30.0
_FIRST_SHARE = 0.1


class SlowStart:
    def __init__(self) -> None:
        self._since: dict[NodeId, tuple[datetime, float]] = {}

    def heard(self, worker: DirectoryEntry, clock: float, now: datetime) -> bool:
        """True where it has come, or come back as another process."""
        before = self._since.get(worker.node)
        if before is not None and before[0] == worker.since:
            return False
        # One that we hear of for the first time has been there since it started.
        self._since[worker.node] = (worker.since, clock - max(0.0, (now - worker.since).total_seconds()))
        return True

    def gone(self, node: NodeId) -> None:
        self._since.pop(node, None)

    def arrived(self, node: NodeId) -> float | None:
        """By the caller's clock; None for one that nothing was heard of."""
        found = self._since.get(node)
        return None if found is None else found[1]

    def share(self, node: NodeId, clock: float) -> float:
        """From 0.1 to 1."""
        arrived = self.arrived(node)
        return 1.0 if arrived is None else min(1.0, _FIRST_SHARE + (1 - _FIRST_SHARE) * (clock - arrived) / SLOW_START_SECONDS)
