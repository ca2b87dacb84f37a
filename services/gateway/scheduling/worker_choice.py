"""Chooses the worker for a request: first filters the eligible candidates, then ranks them. Pure.

A candidate is a worker of the model, with every fact that the choice needs. Both parts are lists of small steps. ELIGIBILITY_STEPS return
a reason against one candidate, or an empty text; since they only exclude, a retry never reaches a worker that the first attempt couldn't
use. PREFERENCE_STEPS narrow the candidates to the better ones, or return them all. A canary, or local workers before a paid API, would be a
preference step; a new restriction is an eligibility step; each with its field of ``Candidate``. ``EligibleWorkers`` applies them to the
directory.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from services.gateway.facts import placements
from services.gateway.facts.worker_requirements import WorkerRequirements
from services.gateway.scheduling import prefix_affinity, worker_records
from services.gateway.scheduling.worker_capacity import WorkerCapacity
from services.gateway.scheduling.worker_records import WorkerStats
from shared import errors
from shared.protocol.directory import Directory, DirectoryEntry, ModelOffer, say_reasons
from shared.types import ModelName, NodeId, Role

#: Time to load a model of a few gigabytes from disk, added to the expected wait of a worker without it.
LOADING_SECONDS = 10.0
#: Longer than any other wait, added for a worker that would refuse the request because its server has asked for a pause.
RESTING_SECONDS = 60.0


class Candidate(msgspec.Struct, frozen=True):
    """One worker, as seen by one request."""

    worker: DirectoryEntry
    offer: ModelOffer
    capacity: WorkerCapacity
    #: Estimated seconds until the request would start; only good for comparing.
    wait: float
    #: Share of the prompt that the worker has processed recently.
    cached_share: float
    #: Seconds since the worker arrived.
    age_seconds: float
    #: Seconds left of its ejection for failures; 0 if none.
    ejection_seconds: float
    #: The same for a quarantine.
    quarantine_seconds: float = 0.0

    @property
    def node(self) -> NodeId:
        return self.worker.node

    @property
    def begins_immediately(self) -> bool:
        return self.offer.loaded and self.capacity.free > 0 and not self.offer.rests


Candidates = Sequence[Candidate]

#: The load guard of LocalAI's prefix routing: a worker with the cached prefix may have this many more calls than the least busy one,
#: and this many times as many.
_MORE_CALLS = 2
_TIMES_AS_MANY = 1.5


def list_candidates(
    stats: WorkerStats, requirements: WorkerRequirements, workers: Iterable[DirectoryEntry], clock: float, *, or_soon: bool = False
) -> list[Candidate]:
    """Return the ``workers`` with the model ready; with ``or_soon``, all that have it."""
    found = list(offering(requirements.model, workers, or_soon=or_soon))
    if requirements.has_images:
        found = [(worker, offer) for worker, offer in found if offer.sees_images]
    read: Mapping[NodeId, float] = {}
    if requirements.prefix_hashes:
        since = {worker.node: stats.slow_start.arrivals.get(worker.node, 0.0) for worker, _ in found}
        read = stats.prefix_affinity.shares(requirements.model, requirements.prefix_hashes, since, clock)
    candidates = []
    for worker, offer in found:
        node, occupancy = worker.node, stats.occupancy
        capacity = occupancy.batch_capacity_of(worker, offer, clock) if requirements.batch else occupancy.capacity_of(worker, offer)
        # Nearly always, no worker has a record of either kind.
        ejection = stats.outliers.ejection_seconds(node, requirements.model, clock) if stats.outliers.records else 0.0
        quarantine = stats.dishonest_workers.seconds_left(node, clock) if stats.dishonest_workers.records else 0.0
        age = clock - stats.slow_start.arrivals.get(node, -math.inf)
        candidates.append(
            Candidate(worker, offer, capacity, _wait(worker, offer, capacity), read.get(node, 0.0), age, ejection, quarantine)
        )
    return candidates


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


# --- eligibility --------------------------------------------------------------------------------------------------------


def _by_policy(requirements: WorkerRequirements, candidate: Candidate) -> str:
    found = placements.barrier(requirements.tenant, requirements.placement, candidate.worker.announcement, candidate.offer)
    return "" if found is None else placements.describe_barrier(found, requirements.placement, candidate.offer)


def _by_origin(requirements: WorkerRequirements, candidate: Candidate) -> str:
    origin, offer = requirements.origin, candidate.offer
    if origin is None or offer.continues(origin):
        return ""
    return "has another file of the model" if offer.digest != origin.digest else "has an engine that computes otherwise"


def _by_failure(requirements: WorkerRequirements, candidate: Candidate) -> str:
    return "has failed this request" if candidate.worker.node in requirements.excluded else ""


def _by_quarantine(_requirements: WorkerRequirements, candidate: Candidate) -> str:
    return worker_records.why_not(candidate.quarantine_seconds) if candidate.quarantine_seconds else ""


EligibilityStep = Callable[[WorkerRequirements, Candidate], str]
ELIGIBILITY_STEPS: tuple[EligibilityStep, ...] = (_by_policy, _by_quarantine, _by_origin, _by_failure)


def eligible(requirements: WorkerRequirements, candidates: Candidates) -> Candidates:
    """Return the candidates that may run the request, full or not. Raises NotReachable with the reasons if there is none."""
    found = [candidate for candidate in candidates if not _why_not(requirements, candidate)]
    if found:
        return found
    if not candidates:
        raise errors.NotReachable(f"no worker can run {requirements.model} now", hint="see `aicli nodes`")
    reasons = say_reasons((f"{candidate.node[:8]}…", _why_not(requirements, candidate)) for candidate in candidates)
    raise errors.NotReachable(
        f"no worker of {requirements.model} may run this request: {reasons}", hint="see `aicli nodes`, or ask an administrator"
    )


def _why_not(requirements: WorkerRequirements, candidate: Candidate) -> str:
    return next((why for step in ELIGIBILITY_STEPS if (why := step(requirements, candidate))), "")


# --- preference ---------------------------------------------------------------------------------------------------------


def without_outliers(candidates: Candidates) -> Candidates:
    """Drop ejected workers; if all are ejected, keep the first to return, so that a model never loses its last worker."""
    return [candidate for candidate in candidates if not candidate.ejection_seconds] or [
        min(candidates, key=lambda candidate: candidate.ejection_seconds)
    ]


def _starting_immediately(_requirements: WorkerRequirements, candidates: Candidates, _rng: random.Random) -> Candidates:
    """Prefer workers that have the model loaded and a free slot, else the shortest wait."""
    ready = [candidate for candidate in candidates if candidate.begins_immediately]
    if ready:
        return ready
    least = min(candidate.wait for candidate in candidates)
    return [candidate for candidate in candidates if candidate.wait == least]


def _with_cached_prefix(_requirements: WorkerRequirements, candidates: Candidates, _rng: random.Random) -> Candidates:
    least = min(candidate.capacity.busy for candidate in candidates)
    most = min(least + _MORE_CALLS, least * _TIMES_AS_MANY + 1)
    readers = [
        candidate for candidate in candidates if candidate.cached_share >= prefix_affinity.MIN_SHARE and candidate.capacity.busy <= most
    ]
    longest = max((candidate.cached_share for candidate in readers), default=0.0)
    return [candidate for candidate in readers if candidate.cached_share == longest] or candidates


def _in_slow_start(_requirements: WorkerRequirements, candidates: Candidates, rng: random.Random) -> Candidates:
    """Include a new worker in a tenth of the draws at first, then in more and more."""
    shares = [worker_records.slow_start_share(candidate.age_seconds) for candidate in candidates]
    if all(share == 1.0 for share in shares):
        return candidates
    return [candidate for candidate, share in zip(candidates, shares, strict=True) if rng.random() < share] or candidates


PreferenceStep = Callable[[WorkerRequirements, Candidates, random.Random], Candidates]
PREFERENCE_STEPS: tuple[PreferenceStep, ...] = (_starting_immediately, _with_cached_prefix, _in_slow_start)


def choose_worker(requirements: WorkerRequirements, candidates: Candidates, rng: random.Random) -> Candidate | None:
    """Return one with room from the eligible ``candidates``; None if all are full. The last step draws two and takes the better one,
    because other gateways see the same announcements and would otherwise all pick the same least loaded worker."""
    with_room = without_outliers(candidates) if candidates else ()
    if requirements.takes_slot:
        with_room = [candidate for candidate in with_room if candidate.capacity.has_room]
    if len(with_room) <= 1:
        return with_room[0] if with_room else None
    for step in PREFERENCE_STEPS:
        with_room = step(requirements, with_room, rng)
    first, second = rng.sample(with_room, 2) if len(with_room) > 1 else (with_room[0], with_room[0])
    return first if first.wait <= second.wait else second


#: With several gateways, an announced slot is used only after this time: the announcement may predate another gateway's call.
_ROOM_SECONDS = 0.1


class EligibleWorkers:
    """Filters the directory's workers by what a request requires."""

    def __init__(self, directory: Directory, worker_stats: WorkerStats, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._worker_stats = worker_stats
        self._clock = clock
        #: Whether a model must not run any more.
        self.is_revoked: Callable[[ModelName], bool] = lambda model: False
        #: When each worker was first seen with room.
        self._room: dict[ModelName, dict[NodeId, float]] = {}

    def list_eligible(self, requirements: WorkerRequirements) -> Sequence[Candidate]:
        """Return the workers that may run the request now; none if one is loading the model or restarting its engine, if nothing is known
        of one because our own connection was lost, or if a machine can be started. Raises NotReachable if there is no such worker either,
        or NotStarted. An answer that has begun may continue with a revoked version."""
        if requirements.origin is None and self.is_revoked(requirements.model):
            raise errors.NotReachable(f"{requirements.model} was revoked", hint="use another version")
        candidates = list_candidates(self._worker_stats, requirements, self._directory.reachable(Role.WORKER), self._clock())
        try:
            return eligible(requirements, candidates)
        except errors.NotReachable:
            present = [entry for entry in self._directory.entries(Role.WORKER) if entry.alive and not entry.announcement.draining]
            usable_soon = list_candidates(self._worker_stats, requirements, present, self._clock(), or_soon=True)
            waited_for = [candidate for candidate in usable_soon if not (candidate.offer.ready and candidate.worker.is_reachable)]
            found = [candidate for candidate in waited_for if not _why_not(requirements, candidate)]
            if requirements.has_alternative and requirements.origin is None and found and all(each.offer.ready for each in found):
                # Another model is better than a worker of which nothing is known.
                raise errors.NotConnected("our own connection to NATS is lost", retry_after_seconds=1) from None
            if found:
                return ()
            if not candidates and self._worker_stats.starts.begin(requirements, self._clock()):
                return ()
            raise

    def refusal(self, requirements: WorkerRequirements) -> errors.NotReachable | None:
        """Return why no worker may run the request any more; None if one may."""
        try:
            self.list_eligible(requirements)
        except errors.NotReachable as error:
            return error
        return None

    def hears_none(self, model: ModelName) -> bool:
        """Return whether nothing is known of the model's workers, because our own connection was lost."""
        found = [worker for worker, _ in offering(model, self._directory.usable(Role.WORKER), or_soon=True)]
        return bool(found) and not any(worker.is_reachable for worker in found)

    def owners(self) -> set[str]:
        return {entry.announcement.owner for entry in self._directory.usable(Role.WORKER)}

    def capacity(self, model: ModelName) -> dict[NodeId, WorkerCapacity]:
        found = offering(model, self._directory.reachable(Role.WORKER))
        return {worker.node: self._worker_stats.occupancy.capacity_of(worker, offer) for worker, offer in found}

    def room_lasts(self, model: ModelName) -> bool:
        """Return whether some worker has had room for a while."""
        now, before = self._clock(), self._room.get(model, {})
        self._room[model] = {node: before.get(node, now) for node, capacity in self.capacity(model).items() if capacity.has_room}
        return any(now - since >= _ROOM_SECONDS for since in self._room[model].values())

    def forget_room(self) -> None:
        """Reset what ``room_lasts`` has seen."""
        self._room.clear()
