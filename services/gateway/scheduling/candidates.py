"""The table that decides where a request runs: a row for each worker of its model, with every fact that a decision needs.  Pure.

A row is made here and nowhere else, and ``worker_choice`` reads nothing but rows. A new kind of decision (a canary, an A/B test, local
workers before a paid API, a price) is a fact more in the row, and a step more in ``worker_choice``.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from services.gateway.scheduling.prefix_affinity import PrefixAffinity
from services.gateway.scheduling.routing import WorkerRequirements
from services.gateway.scheduling.worker_capacity import Occupancy, WorkerCapacity
from services.gateway.scheduling.worker_health.worker_records import DishonestWorkers, Outliers, SlowStart
from shared.discovery.directory import ANNOUNCE_SECONDS, DirectoryEntry, ModelOffer
from shared.types import ModelName, NodeId

#: What a model of some gigabytes takes to be loaded from a disk: so much longer may the wait for a worker be that has it.
LOADING_SECONDS = 10.0
#: A process that runs on beside another one with the same key announces itself again within this time.
TWIN_SECONDS = ANNOUNCE_SECONDS + 0.5


@dataclass(frozen=True, slots=True)
class Candidate:
    """One worker, as one request sees it."""

    worker: DirectoryEntry
    offer: ModelOffer
    seats: WorkerCapacity
    #: Seconds until it would begin, as far as can be told: good for comparing.
    wait: float
    #: Which share of the prompt it has read lately.
    has_read: float
    #: 0.1 for one that has just come, up to 1.
    share: float
    #: Put aside for so long, for its failures; 0 where it is not.
    rest_seconds: float
    #: Gets nothing for so long, for what it told; 0 where it does.
    quarantine_seconds: float = 0.0

    @property
    def node(self) -> NodeId:
        return self.worker.node

    @property
    def begins_at_once(self) -> bool:
        return self.offer.loaded and self.seats.free > 0


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What this gateway has seen of the workers."""

    occupancy: Occupancy = field(default_factory=Occupancy)
    arrivals: SlowStart = field(default_factory=SlowStart)
    outliers: Outliers = field(default_factory=Outliers)
    readers: PrefixAffinity = field(default_factory=PrefixAffinity)
    strikes: DishonestWorkers = field(default_factory=DishonestWorkers)
    #: Who is there, and when its process started.
    processes: dict[NodeId, datetime] = field(default_factory=dict)
    #: When a node was heard as another process while the one before was not known to be gone.
    replaced_at: dict[NodeId, float] = field(default_factory=dict)

    def heard(self, worker: DirectoryEntry, clock: float, now: datetime) -> None:
        """The directory has news of it."""
        if not worker.alive:
            self.occupancy.gone(worker.node)
            self.arrivals.gone(worker.node)
            self.outliers.forget(worker.node)
            self.processes.pop(worker.node, None)
            self.replaced_at.pop(worker.node, None)
            return
        started_at = worker.announcement.started_at
        if self.processes.get(worker.node, started_at) != started_at:
            self.replaced_at[worker.node] = clock
        self.processes[worker.node] = started_at
        self.occupancy.heard(worker.announcement)
        if self.arrivals.heard(worker, clock, now):
            self.outliers.forget(worker.node)

    def is_there(self, worker: DirectoryEntry, clock: float) -> bool:
        """Whether it may still run as the process that it was. Two processes with one key are heard in turn, and neither is gone."""
        started_at = self.processes.get(worker.node)
        if started_at in (None, worker.announcement.started_at):
            return started_at is not None
        return clock - self.replaced_at.get(worker.node, -math.inf) < TWIN_SECONDS

    def table(self, wish: WorkerRequirements, workers: Iterable[DirectoryEntry], clock: float, *, or_soon: bool = False) -> list[Candidate]:
        """Of ``workers``, those that have the model ready, or with ``or_soon`` those that have it at all."""
        found = list(offering(wish.model, workers, or_soon=or_soon))
        since = {worker.node: self.arrivals.arrived(worker.node) or 0.0 for worker, _ in found} if wish.beginnings else {}
        read = self.readers.shares(wish.model, wish.beginnings, since, clock)
        rows = []
        for worker, offer in found:
            seats = self.occupancy.look(worker, offer)
            rest = self.outliers.rest_seconds(worker.node, wish.model, clock)
            share = self.arrivals.share(worker.node, clock)
            away = self.strikes.seconds_left(worker.node, clock)
            rows.append(Candidate(worker, offer, seats, _wait(worker, offer, seats), read.get(worker.node, 0.0), share, rest, away))
        return rows


def offering(model: ModelName, workers: Iterable[DirectoryEntry], *, or_soon: bool = False) -> Iterator[tuple[DirectoryEntry, ModelOffer]]:
    for worker in workers:
        for offer in worker.announcement.models:
            if offer.name == model and (offer.ready or or_soon):
                yield worker, offer
                break


def _wait(worker: DirectoryEntry, offer: ModelOffer, seats: WorkerCapacity) -> float:
    """As ``directory.expected_wait``, of one model: what a worker says of its wait is of the fullest that it has."""
    full = seats.free <= 0 or not offer.slots
    said = worker.announcement.load.expected_wait_seconds if full else 0.0
    return said + seats.busy / seats.slots + (0.0 if offer.loaded else LOADING_SECONDS)
