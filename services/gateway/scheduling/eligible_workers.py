"""Finds the workers that may run a request now, and those that have room."""

import contextlib
from collections.abc import Callable, Sequence

from services.gateway import node_interface
from services.gateway.scheduling import candidates, worker_choice
from services.gateway.scheduling.candidates import Candidate, Knowledge
from services.gateway.scheduling.routing import WorkerRequirements
from services.gateway.scheduling.worker_capacity import WorkerCapacity
from services.gateway.scheduling.worker_choice import PromptPrivacy
from shared import errors
from shared.discovery.directory import DirectoryEntry
from shared.types import ModelName, NodeId, Role

#: Where other gateways wait, too, a place that a worker announces is given out after so long: what it says may be older than a call
#: that another gateway has just sent there.
_ROOM_SECONDS = 0.1


class EligibleWorkers:
    """One for the gateway."""

    def __init__(
        self, directory: node_interface.NodeDirectory, knowledge: Knowledge, rule: PromptPrivacy, clock: Callable[[], float]
    ) -> None:
        self._directory = directory
        self._knowledge = knowledge
        self._rule = rule
        self._clock = clock
        #: Workers that were seen with room, and since when.
        self._room: dict[ModelName, dict[NodeId, float]] = {}

    def rows(self, wish: WorkerRequirements) -> Sequence[Candidate]:
        """Those that may run it now; none where one is about to, since it loads the model or its engine starts again. Raises
        NotReachable where there is no such hope."""
        table = self._knowledge.table(wish, self._usable(), self._clock())
        try:
            return worker_choice.eligible(wish, table, self._rule)
        except errors.NotReachable:
            there = [entry for entry in self._directory.entries(Role.WORKER) if entry.alive and not entry.announcement.draining]
            soon = self._knowledge.table(wish, there, self._clock(), or_soon=True)
            if any(not row.offer.ready for row in soon):
                with contextlib.suppress(errors.NotReachable):
                    worker_choice.eligible(wish, [row for row in soon if not row.offer.ready], self._rule)
                    return ()
            raise

    def refusal(self, wish: WorkerRequirements) -> errors.NotReachable | None:
        """Why no worker may run it any more; None where one may."""
        try:
            self.rows(wish)
        except errors.NotReachable as error:
            return error
        return None

    def owners(self) -> set[str]:
        """Of the workers that can be used."""
        return {entry.announcement.owner for entry in self._usable()}

    def seats(self, model: ModelName) -> dict[NodeId, WorkerCapacity]:
        return {worker.node: self._knowledge.occupancy.look(worker, offer) for worker, offer in candidates.offering(model, self._usable())}

    def room_lasts(self, model: ModelName) -> bool:
        """Whether a worker has had room for a while."""
        now, before = self._clock(), self._room.get(model, {})
        self._room[model] = {node: before.get(node, now) for node, seats in self.seats(model).items() if seats.has_room}
        return any(now - since >= _ROOM_SECONDS for since in self._room[model].values())

    def forget_room(self) -> None:
        """All that ``room_lasts`` has seen."""
        self._room.clear()

    def _usable(self) -> Sequence[DirectoryEntry]:
        return self._directory.usable(Role.WORKER)
