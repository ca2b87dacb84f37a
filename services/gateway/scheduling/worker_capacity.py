"""What runs on each worker: what this gateway has there, by its own count, and what others have, by the worker's word.  Pure.

A worker's word is some milliseconds old, our own count is exact. So each announcement is compared with our count at the moment it
is heard; what it has beyond that are the calls of other gateways, until it speaks again. A place that we give back is free at once.
"""

from collections import Counter, deque
from dataclasses import dataclass
from typing import Protocol

from shared.discovery.directory import Announcement, DirectoryEntry, ModelOffer
from shared.types import ModelName, NodeId

#: A worker may hold this share of its slots again, and at least one, as calls that wait there: while the end of an answer is on
#: its way here and the next prompt on its way there, the slot has something to do.
#: Measured with answers of 0.5 s on 4 slots: without it 5 % of the slots' time is idle at a round trip of 20 ms and 18 % at 100 ms,
#: with one call held 1 % and 5 %. On 32 slots four held leave 3 % and 12 %. Longer answers lose less, and what is held is out of
#: our hands: it can be neither put behind others nor sent elsewhere.
_HELD_SHARE = 1 / 8


_NOTHING: Counter[ModelName] = Counter()


@dataclass(frozen=True, slots=True)
class WorkerCapacity:
    """Of one model on one worker."""

    #: Answers that it gives at once.
    slots: int
    #: Calls that run or wait there.
    busy: int

    @property
    def free(self) -> int:
        """Below zero where more wait than run."""
        return self.slots - self.busy

    @property
    def has_room(self) -> bool:
        return self.free + max(1, int(self.slots * _HELD_SHARE)) > 0


class Occupancy:
    """Knows every worker that runs something of ours, and every worker that has spoken."""

    def __init__(self) -> None:
        self._ours: dict[NodeId, dict[ModelName, int]] = {}
        self._others: dict[NodeId, dict[ModelName, int]] = {}
        #: Free places that are left to other gateways.
        self._lent: dict[NodeId, Counter[ModelName]] = {}

    def begin(self, node: NodeId, model: ModelName) -> None:
        running = self._ours.setdefault(node, {})
        running[model] = running.get(model, 0) + 1

    def end(self, node: NodeId, model: ModelName) -> None:
        running = self._ours[node]
        running[model] -= 1
        if not running[model]:
            del running[model]
        if not running:
            del self._ours[node]

    def heard(self, said: Announcement) -> None:
        """The worker has just said this."""
        self._others[said.node] = {offer.name: self._beyond_ours(said, offer) for offer in said.models}
        self._lent.pop(said.node, None)

    def lend(self, node: NodeId, model: ModelName) -> None:
        """A free place is left to another gateway. What the worker says next shows whether it was taken."""
        self._lent.setdefault(node, Counter())[model] += 1

    def take_back(self, node: NodeId, model: ModelName) -> None:
        """It was not taken. Nothing happens if the worker has spoken since."""
        if self._lent.get(node, _NOTHING)[model]:
            self._lent[node][model] -= 1

    def is_offered(self, node: NodeId, model: ModelName) -> None:
        """A place that another gateway had is free."""
        others = self._others.get(node, {})
        others[model] = max(0, others.get(model, 0) - 1)

    def gone(self, node: NodeId) -> None:
        """What runs there still ends with ``end``."""
        self._others.pop(node, None)
        self._lent.pop(node, None)

    def look(self, worker: DirectoryEntry, offer: ModelOffer) -> WorkerCapacity:
        said = worker.announcement
        if said.node not in self._others:
            self.heard(said)
        # A worker that says nothing of its models shares its slots among them.
        slots, ours = (offer.slots, self._count(said.node, offer.name)) if offer.slots else (said.load.slots, self._count(said.node))
        return WorkerCapacity(
            max(1, slots), ours + self._others[said.node].get(offer.name, 0) + self._lent.get(said.node, _NOTHING)[offer.name]
        )

    def total(self) -> int:
        return sum(sum(running.values()) for running in self._ours.values())

    def _beyond_ours(self, said: Announcement, offer: ModelOffer) -> int:
        if offer.slots:
            return max(0, offer.busy - self._count(said.node, offer.name))
        return max(0, said.load.running + said.load.queued - self._count(said.node))

    def _count(self, node: NodeId, model: ModelName | None = None) -> int:
        """Without a model: of all."""
        running = self._ours.get(node, {})
        return sum(running.values()) if model is None else running.get(model, 0)


class Holdable(Protocol):
    """As ``worker_claims.Claim``."""

    @property
    def has_started(self) -> bool: ...

    def starts(self) -> None:
        """The worker has room for it now. Safe to call twice."""


class HeldClaims:
    """The calls of this gateway that wait at a worker for a free slot: this wait costs nothing.

    When a call that has a slot ends, the call held longest gets the slot. A call that gives tokens has a slot, even if another gateway's
    call made room for it.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[NodeId, ModelName], deque[Holdable]] = {}

    def hold(self, node: NodeId, model: ModelName, claim: Holdable) -> None:
        """The worker has no free slot for it."""
        self._held.setdefault((node, model), deque()).append(claim)

    def ended(self, node: NodeId, model: ModelName, claim: Holdable) -> None:
        """A claim, held or not, gives its place back."""
        held = self._held.get((node, model))
        if held is None:
            return
        had_slot = claim.has_started
        if claim in held:
            held.remove(claim)
        while had_slot and held:
            following = held.popleft()
            had_slot = following.has_started
            following.starts()
        if not held:
            del self._held[node, model]
