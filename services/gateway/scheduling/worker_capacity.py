"""Tracks the load of each worker: this gateway's calls by its own count, other gateways' by the worker's announcements. Pure.

An announcement is milliseconds old, our own count is exact. So each announcement is compared with our count on arrival; the difference
is other gateways' calls until the next one. A slot that we release is free immediately.

On a worker that yields, calls of batches take nothing from live ones, and get the slots that those leave. Elsewhere, a call that runs
can't make way, so they get few slots, and only where no live call was a moment ago.
"""

import math
from collections import Counter
from collections.abc import Mapping

import msgspec

from shared.protocol.directory import Announcement, DirectoryEntry, ModelOffer
from shared.types import ModelName, NodeId

#: A worker whose queue is long enough may queue this share of its slots, and at least one call, so that a slot has work while the end of
#: one answer and the next prompt are on their way. Measured with answers of 0.5 s on 4 slots: without it, slots are idle 5 % of the time at
#: a round trip of 20 ms and 18 % at 100 ms; with one queued call, 1 % and 5 %. On 32 slots, four queued calls leave 3 % and 12 %. Longer
#: answers lose less, and queued calls can neither be overtaken nor moved.
_HELD_SHARE = 1 / 8

#: For calls of batches on a worker that doesn't yield: this share of its slots, at least one, after so long without live calls.
_BATCH_SHARE, _QUIET_SECONDS = 1 / 4, 1.0


_NOTHING: Counter[ModelName] = Counter()


class WorkerCapacity(msgspec.Struct, frozen=True):
    """The load of one model on one worker."""

    #: Answers generated at the same time.
    slots: int
    #: Calls that run or wait there.
    busy: int
    #: How many calls may wait there.
    queue: int

    @property
    def free(self) -> int:
        """Return the free slots; negative if calls wait there."""
        return self.slots - self.busy

    @property
    def has_room(self) -> bool:
        return self.free + min(self.queue, max(1, int(self.slots * _HELD_SHARE))) > 0


class Occupancy:
    """Counts the calls on every worker."""

    def __init__(self) -> None:
        #: Live calls, and those of batches.
        self._own_calls: dict[NodeId, dict[ModelName, int]] = {}
        self._own_batch: dict[NodeId, dict[ModelName, int]] = {}
        #: As the worker counts what is busy.
        self._other_calls: dict[NodeId, dict[ModelName, int]] = {}
        #: When a worker that doesn't yield last had a live call.
        self._live_at: dict[tuple[NodeId, ModelName], float] = {}
        #: Free slots left to other gateways.
        self._delegated: dict[NodeId, Counter[ModelName]] = {}

    def begin(self, node: NodeId, model: ModelName, *, is_batch: bool = False) -> None:
        running = (self._own_batch if is_batch else self._own_calls).setdefault(node, {})
        running[model] = running.get(model, 0) + 1

    def end(self, node: NodeId, model: ModelName, now: float, *, is_batch: bool = False) -> None:
        calls = self._own_batch if is_batch else self._own_calls
        running = calls[node]
        running[model] -= 1
        if not running[model]:
            del running[model]
        if not running:
            del calls[node]
        if not is_batch:
            self._live_at[node, model] = now

    def apply_announcement(self, announcement: Announcement) -> None:
        self._other_calls[announcement.node] = {offer.name: self._count_others(announcement, offer) for offer in announcement.models}
        self._delegated.pop(announcement.node, None)

    def delegate(self, node: NodeId, model: ModelName) -> None:
        """Leave a free slot to another gateway. The worker's next announcement shows whether it was used."""
        self._delegated.setdefault(node, Counter())[model] += 1

    def reclaim(self, node: NodeId, model: ModelName) -> None:
        """Reclaim an unused slot. Does nothing if the worker has announced itself since."""
        if self._delegated.get(node, _NOTHING)[model]:
            self._delegated[node][model] -= 1

    def record_offer(self, node: NodeId, model: ModelName) -> None:
        """Record that another gateway released a slot."""
        others = self._other_calls.get(node, {})
        others[model] = max(0, others.get(model, 0) - 1)

    def forget(self, node: NodeId) -> None:
        """Forget a worker's announcement. Our calls there still end with ``end``."""
        self._other_calls.pop(node, None)
        self._delegated.pop(node, None)
        self._live_at = {key: at for key, at in self._live_at.items() if key[0] != node}

    def capacity_of(self, worker: DirectoryEntry, offer: ModelOffer) -> WorkerCapacity:
        """Return the load as it is for live calls."""
        announcement, node = worker.announcement, worker.announcement.node
        if node not in self._other_calls:
            self.apply_announcement(announcement)
        # A worker that doesn't report per model shares its slots among its models.
        slots = offer.slots or announcement.load.slots
        others = self._other_calls[node].get(offer.name, 0) + self._delegated.get(node, _NOTHING)[offer.name]
        return WorkerCapacity(max(1, slots), self._count_own(node, offer) + others, announcement.load.queue)

    def batch_capacity_of(self, worker: DirectoryEntry, offer: ModelOffer, now: float) -> WorkerCapacity:
        """Return the load as it is for calls of batches, none of which waits at a worker."""
        seen, node = self.capacity_of(worker, offer), worker.announcement.node
        batch = max(_count(self._own_batch, node, offer), offer.batch_busy)
        if offer.yields:
            return WorkerCapacity(seen.slots, seen.busy + batch, 0)
        if seen.busy > batch:
            self._live_at[node, offer.name] = now
        is_quiet = now - self._live_at.get((node, offer.name), -math.inf) >= _QUIET_SECONDS
        slots = max(1, int(seen.slots * _BATCH_SHARE))
        return WorkerCapacity(slots, batch if is_quiet else slots, 0)

    def batch_slots_of(self, worker: DirectoryEntry, offer: ModelOffer, now: float) -> int:
        """Return how many calls of batches this gateway may have there: those that run, and free slots."""
        return _count(self._own_batch, worker.announcement.node, offer) + max(0, self.batch_capacity_of(worker, offer, now).free)

    def total(self) -> int:
        return sum(sum(running.values()) for calls in (self._own_calls, self._own_batch) for running in calls.values())

    def _count_others(self, announcement: Announcement, offer: ModelOffer) -> int:
        busy = offer.busy if offer.slots else announcement.load.running + announcement.load.queued
        return max(0, busy - self._count_own(announcement.node, offer))

    def _count_own(self, node: NodeId, offer: ModelOffer) -> int:
        """Return this gateway's calls among those that the worker counts as busy."""
        return _count(self._own_calls, node, offer) + (0 if offer.yields else _count(self._own_batch, node, offer))


def _count(calls: Mapping[NodeId, Mapping[ModelName, int]], node: NodeId, offer: ModelOffer) -> int:
    running = calls.get(node, {})
    return running.get(offer.name, 0) if offer.slots else sum(running.values())
