"""Tracks the load of each worker: this gateway's calls by its own count, other gateways' by the worker's announcements. Pure.

An announcement is milliseconds old, our own count is exact. So each announcement is compared with our count on arrival; the difference
is other gateways' calls until the next one. A slot that we release is free immediately.
"""

from collections import Counter

import msgspec

from shared.protocol.directory import Announcement, DirectoryEntry, ModelOffer
from shared.types import ModelName, NodeId

#: A worker whose queue is long enough may queue this share of its slots, and at least one call, so that a slot has work while the end of
#: one answer and the next prompt are on their way. Measured with answers of 0.5 s on 4 slots: without it, slots are idle 5 % of the time at
#: a round trip of 20 ms and 18 % at 100 ms; with one queued call, 1 % and 5 %. On 32 slots, four queued calls leave 3 % and 12 %. Longer
#: answers lose less, and queued calls can neither be overtaken nor moved.
_HELD_SHARE = 1 / 8


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
        self._own_calls: dict[NodeId, dict[ModelName, int]] = {}
        self._other_calls: dict[NodeId, dict[ModelName, int]] = {}
        #: Free slots left to other gateways.
        self._delegated: dict[NodeId, Counter[ModelName]] = {}

    def begin(self, node: NodeId, model: ModelName) -> None:
        running = self._own_calls.setdefault(node, {})
        running[model] = running.get(model, 0) + 1

    def end(self, node: NodeId, model: ModelName) -> None:
        running = self._own_calls[node]
        running[model] -= 1
        if not running[model]:
            del running[model]
        if not running:
            del self._own_calls[node]

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

    def capacity_of(self, worker: DirectoryEntry, offer: ModelOffer) -> WorkerCapacity:
        announcement, node = worker.announcement, worker.announcement.node
        if node not in self._other_calls:
            self.apply_announcement(announcement)
        # A worker that doesn't report per model shares its slots among its models.
        slots, own = (offer.slots, self._count(node, offer.name)) if offer.slots else (announcement.load.slots, self._count(node))
        others = self._other_calls[node].get(offer.name, 0) + self._delegated.get(node, _NOTHING)[offer.name]
        return WorkerCapacity(max(1, slots), own + others, announcement.load.queue)

    def total(self) -> int:
        return sum(sum(running.values()) for running in self._own_calls.values())

    def _count_others(self, announcement: Announcement, offer: ModelOffer) -> int:
        if offer.slots:
            return max(0, offer.busy - self._count(announcement.node, offer.name))
        return max(0, announcement.load.running + announcement.load.queued - self._count(announcement.node))

    def _count(self, node: NodeId, model: ModelName | None = None) -> int:
        running = self._own_calls.get(node, {})
        return sum(running.values()) if model is None else running.get(model, 0)
