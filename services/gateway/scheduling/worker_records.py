"""Remembers each worker's failures, arrival and wrong token counts. Pure.

- ``Outliers`` works like Envoy's outlier detection: five failures in a row eject a worker for 30 s, then for 60 s, and so on. A model's
  last worker is never ejected (``worker_choice.without_outliers``).
- ``SlowStart`` sends few requests to a new worker.
- ``DishonestWorkers`` quarantines workers that report wrong token counts. Wrong counts are never billed (``active_prompt``), but such a
  worker may lie elsewhere too. A restart of the worker doesn't end a quarantine; time or an administrator's pardon does. ``quarantine``
  shares it between gateways and persists it.
- ``WorkerStats`` is all that this gateway has observed about the workers.
"""

import math
from collections import deque
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from services.gateway.scheduling.prefix_affinity import PrefixAffinity
from services.gateway.scheduling.worker_capacity import Occupancy
from services.gateway.scheduling.worker_starts import WorkerStarts
from shared import errors
from shared.api import events
from shared.protocol.directory import ANNOUNCE_SECONDS, DirectoryEntry
from shared.types import ModelName, NodeId, Role

#: Workers that were lost within this time belong together, unless a request proves otherwise.
LOSSES_SECONDS = 60.0
FAILURES = 5
EJECTION_SECONDS = 30.0
#: Envoy's max_ejection_time.
MAX_EJECTION_SECONDS = 300.0
#: After this time without an ejection, the next one lasts EJECTION_SECONDS again.
FORGIVEN_SECONDS = 300.0

#: Errors that indicate a faulty worker; being full, draining or of another version does not.
_FAULTS = (errors.LinkLost, errors.NotReachable, errors.ModelCrashed, errors.Unavailable, errors.ProtocolViolation, errors.DeadlineExceeded)


@dataclass(slots=True)
class _FailureRecord:
    failures: int = 0
    ejections: int = 0
    until: float = 0.0


class Outliers:
    """Tracks failures for each worker and model, because a broken model says nothing about the worker's others."""

    def __init__(self) -> None:
        #: Only for workers that have failed and are still present.
        self.records: dict[tuple[NodeId, ModelName], _FailureRecord] = {}

    def record_failure(self, node: NodeId, model: ModelName, error: errors.AimeshError, now: float) -> bool:
        """Record a failure; return whether it ejects the worker."""
        if not isinstance(error, _FAULTS):
            return False
        record = self.records.setdefault((node, model), _FailureRecord())
        if now < record.until:
            return False  # the call started before the ejection
        record.failures += 1
        if record.failures < FAILURES:
            return False
        record.ejections = record.ejections + 1 if now - record.until < FORGIVEN_SECONDS else 1
        record.failures = 0
        record.until = now + min(MAX_EJECTION_SECONDS, EJECTION_SECONDS * record.ejections)
        return True

    def record_delivery(self, node: NodeId, model: ModelName) -> None:
        if record := self.records.get((node, model)):
            record.failures = 0

    def forget(self, node: NodeId) -> None:
        """Forget a worker that left or restarted."""
        for key in [key for key in self.records if key[0] == node]:
            del self.records[key]

    def ejection_seconds(self, node: NodeId, model: ModelName, now: float) -> float:
        """Return the seconds left of an ejection; 0 if none."""
        record = self.records.get((node, model))
        return 0.0 if record is None else max(0.0, record.until - now)


#: A new worker gets a tenth of its share at first and all of it after this time: few requests meet its slow first answers, or an early
#: crash.
SLOW_START_SECONDS = 30.0
_FIRST_SHARE = 0.1


class SlowStart:
    """Remembers when each worker arrived."""

    def __init__(self) -> None:
        #: When each worker arrived, by the caller's clock.
        self.arrivals: dict[NodeId, float] = {}
        self._since: dict[NodeId, datetime] = {}

    def record_start(self, worker: DirectoryEntry, clock: float, now: datetime) -> bool:
        """Return whether the worker is new or has restarted."""
        if self._since.get(worker.node) == worker.since:
            return False
        self._since[worker.node] = worker.since
        # A worker first seen now has been present since it started.
        self.arrivals[worker.node] = clock - max(0.0, (now - worker.since).total_seconds())
        return True

    def forget(self, node: NodeId) -> None:
        self._since.pop(node, None)
        self.arrivals.pop(node, None)


def slow_start_share(age_seconds: float) -> float:
    """Return a number from 0.1 to 1."""
    return min(1.0, _FIRST_SHARE + (1 - _FIRST_SHARE) * age_seconds / SLOW_START_SECONDS)


#: Number of strikes that start a quarantine, and for how long a strike counts.
STRIKES, WITHIN_SECONDS = 3, 3600.0
QUARANTINE_SECONDS = 3600.0


@dataclass(slots=True)
class _StrikeRecord:
    struck_at: deque[float] = field(default_factory=lambda: deque(maxlen=STRIKES))
    until: float = 0.0


class DishonestWorkers:
    """Tracks each worker's wrong token counts and its quarantine."""

    def __init__(self) -> None:
        #: Only workers with strikes; few, because each needs a certificate.
        self.records: dict[NodeId, _StrikeRecord] = {}

    def strike(self, node: NodeId, now: float) -> bool:
        """Record a wrong count; return whether it starts a quarantine."""
        record = self.records.setdefault(node, _StrikeRecord())
        if now < record.until:
            return False  # the call started before the quarantine
        record.struck_at.append(now)
        if len(record.struck_at) < STRIKES or now - record.struck_at[0] > WITHIN_SECONDS:
            return False
        record.struck_at.clear()
        record.until = now + QUARANTINE_SECONDS
        return True

    def learn(self, left: Mapping[NodeId, float], now: float, *, unless: Set[NodeId] = frozenset()) -> None:
        """Apply the quarantines of all gateways, except for the workers of ``unless``."""
        for node in (self.records.keys() | left.keys()) - unless:
            record = self.records.setdefault(node, _StrikeRecord())
            seconds = left.get(node, 0.0)
            if seconds or now < record.until:
                # Quarantined elsewhere, or pardoned.
                record.struck_at.clear()
            record.until = now + seconds if seconds else 0.0

    def seconds_left(self, node: NodeId, now: float) -> float:
        """Return the seconds left of a quarantine; 0 if none."""
        record = self.records.get(node)
        return 0.0 if record is None else max(0.0, record.until - now)


def why_not(seconds_left: float) -> str:
    """Return the reason as text; empty if not in quarantine."""
    if not seconds_left:
        return ""
    return f"is in quarantine for {max(1, round(seconds_left / 60))} min: it reported wrong token counts {STRIKES} times"


class WorkerPresence:
    """Tracks the live workers, so that each join and leave is published once."""

    def __init__(self) -> None:
        self._alive: set[NodeId] = set()

    def changed(self, entry: DirectoryEntry, now: datetime) -> events.WorkerJoined | events.WorkerLeft | None:
        """Return the event to publish; None if the worker neither joined nor left."""
        if entry.role is not Role.WORKER or entry.alive == (entry.node in self._alive):
            return None
        if entry.alive:
            self._alive.add(entry.node)
            return events.WorkerJoined(at=now, node=entry.node, models=tuple(offer.name for offer in entry.announcement.models))
        self._alive.remove(entry.node)
        return events.WorkerLeft(at=now, node=entry.node, why=entry.why_gone)


#: Two processes with the same key announce themselves in turn within this time.
TWIN_SECONDS = ANNOUNCE_SECONDS + 0.5


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """What this gateway has observed about the workers."""

    occupancy: Occupancy = field(default_factory=Occupancy)
    slow_start: SlowStart = field(default_factory=SlowStart)
    outliers: Outliers = field(default_factory=Outliers)
    prefix_affinity: PrefixAffinity = field(default_factory=PrefixAffinity)
    dishonest_workers: DishonestWorkers = field(default_factory=DishonestWorkers)
    starts: WorkerStarts = field(default_factory=WorkerStarts)
    #: Start time of each live worker's process.
    processes: dict[NodeId, datetime] = field(default_factory=dict)
    #: When a worker appeared as a new process while the old one was still considered alive.
    replaced_at: dict[NodeId, float] = field(default_factory=dict)
    #: When workers were lost, oldest first. An orderly stop is no loss.
    _lost_at: deque[float] = field(default_factory=partial(deque, maxlen=1000))

    def apply_change(self, worker: DirectoryEntry, clock: float, now: datetime) -> None:
        self.starts.apply_change(worker)
        if not worker.alive:
            if worker.node in self.processes and not worker.has_left:
                self._lost_at.append(clock)
            self.occupancy.forget(worker.node)
            self.slow_start.forget(worker.node)
            self.outliers.forget(worker.node)
            self.processes.pop(worker.node, None)
            self.replaced_at.pop(worker.node, None)
            return
        started_at = worker.announcement.started_at
        if self.processes.get(worker.node, started_at) != started_at:
            self.replaced_at[worker.node] = clock
        self.processes[worker.node] = started_at
        self.occupancy.apply_announcement(worker.announcement)
        if self.slow_start.record_start(worker, clock, now):
            self.outliers.forget(worker.node)

    def count_losses(self, clock: float) -> int:
        """Return how many workers were lost recently."""
        while self._lost_at and clock - self._lost_at[0] > LOSSES_SECONDS:
            self._lost_at.popleft()
        return len(self._lost_at)

    def may_be_running(self, worker: DirectoryEntry, clock: float) -> bool:
        """Return whether the same process may still run. Two processes with one key announce themselves in turn, so neither is gone."""
        started_at = self.processes.get(worker.node)
        if started_at in (None, worker.announcement.started_at):
            return started_at is not None
        return clock - self.replaced_at.get(worker.node, -math.inf) < TWIN_SECONDS
