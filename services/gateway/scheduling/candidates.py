"""Builds the table for choosing a worker: a row for each worker of the model, with every fact that the choice needs. Pure.

``worker_choice`` reads nothing else. A new criterion (a canary, local workers before a paid API, a price) is a field here and a step in
``worker_choice``.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from services.gateway.scheduling.prefix_affinity import PrefixAffinity
from services.gateway.scheduling.routing import WorkerRequirements
from services.gateway.scheduling.worker_capacity import Occupancy, WorkerCapacity
from services.gateway.scheduling.worker_records import DishonestWorkers, Outliers, SlowStart
from services.gateway.scheduling.worker_starts import WorkerStarts
from shared.protocol.directory import ANNOUNCE_SECONDS, DirectoryEntry, ModelOffer
from shared.types import ModelName, NodeId

#: Time to load a model of a few gigabytes from disk, added to the expected wait of a worker without it.
LOADING_SECONDS = 10.0
#: Longer than any other wait, added for a worker that would refuse the request because its server has asked for a pause.
RESTING_SECONDS = 60.0
#: Two processes with the same key announce themselves in turn within this time.
TWIN_SECONDS = ANNOUNCE_SECONDS + 0.5


@dataclass(frozen=True, slots=True)
class Candidate:
    """One worker, as seen by one request."""

    worker: DirectoryEntry
    offer: ModelOffer
    capacity: WorkerCapacity
    #: Estimated seconds until the request would start; only good for comparing.
    wait: float
    #: Share of the prompt that the worker has processed recently.
    cached_share: float
    #: Share of traffic in slow start, from 0.1 to 1.
    share: float
    #: Seconds left of its ejection for failures; 0 if none.
    ejection_seconds: float
    #: Seconds left of its quarantine; 0 if none.
    quarantine_seconds: float = 0.0

    @property
    def node(self) -> NodeId:
        return self.worker.node

    @property
    def begins_immediately(self) -> bool:
        return self.offer.loaded and self.capacity.free > 0 and not self.offer.rests


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

    def apply_change(self, worker: DirectoryEntry, clock: float, now: datetime) -> None:
        self.starts.apply_change(worker)
        if not worker.alive:
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

    def may_be_running(self, worker: DirectoryEntry, clock: float) -> bool:
        """Return whether the same process may still run. Two processes with one key announce themselves in turn, so neither is gone."""
        started_at = self.processes.get(worker.node)
        if started_at in (None, worker.announcement.started_at):
            return started_at is not None
        return clock - self.replaced_at.get(worker.node, -math.inf) < TWIN_SECONDS

    def table(
        self, requirements: WorkerRequirements, workers: Iterable[DirectoryEntry], clock: float, *, or_soon: bool = False
    ) -> list[Candidate]:
        """Return the ``workers`` with the model ready; with ``or_soon``, all that have it."""
        found = list(offering(requirements.model, workers, or_soon=or_soon))
        if requirements.has_images:
            found = [(worker, offer) for worker, offer in found if offer.sees_images]
        since = {worker.node: self.slow_start.arrived_at(worker.node) or 0.0 for worker, _ in found} if requirements.prefix_hashes else {}
        read = self.prefix_affinity.shares(requirements.model, requirements.prefix_hashes, since, clock)
        rows = []
        for worker, offer in found:
            capacity, cached = self.occupancy.capacity_of(worker, offer), read.get(worker.node, 0.0)
            ejection = self.outliers.ejection_seconds(worker.node, requirements.model, clock)
            share = self.slow_start.share(worker.node, clock)
            quarantine = self.dishonest_workers.seconds_left(worker.node, clock)
            rows.append(Candidate(worker, offer, capacity, _wait(worker, offer, capacity), cached, share, ejection, quarantine))
        return rows


def offering(model: ModelName, workers: Iterable[DirectoryEntry], *, or_soon: bool = False) -> Iterator[tuple[DirectoryEntry, ModelOffer]]:
    for worker in workers:
        for offer in worker.announcement.models:
            if offer.name == model and (offer.ready or or_soon):
                yield worker, offer
                break


def _wait(worker: DirectoryEntry, offer: ModelOffer, capacity: WorkerCapacity) -> float:
    """Estimate the wait for one model; the worker announces it only for its busiest model (see ``directory.expected_wait``)."""
    full = capacity.free <= 0 or not offer.slots
    expected_wait = worker.announcement.load.expected_wait_seconds if full else 0.0
    delay = (0.0 if offer.loaded else LOADING_SECONDS) + (RESTING_SECONDS if offer.rests else 0.0)
    return expected_wait + capacity.busy / capacity.slots + delay
