"""Finds the workers that may run a request, and those with room."""

import contextlib
from collections.abc import Callable, Sequence

from services.gateway import node_interface
from services.gateway.scheduling import candidates, worker_choice
from services.gateway.scheduling.candidates import Candidate, WorkerStats
from services.gateway.scheduling.routing import WorkerRequirements
from services.gateway.scheduling.worker_capacity import WorkerCapacity
from services.gateway.scheduling.worker_choice import PromptPrivacy
from shared import errors
from shared.discovery.directory import DirectoryEntry
from shared.types import ModelName, NodeId, Role

#: With several gateways, an announced place is used only after this time: the announcement may predate another gateway's call.
_ROOM_SECONDS = 0.1


class EligibleWorkers:
    """Filters the directory's workers by what a request requires."""

    def __init__(
        self, directory: node_interface.NodeDirectory, worker_stats: WorkerStats, rule: PromptPrivacy, clock: Callable[[], float]
    ) -> None:
        self._directory = directory
        self._worker_stats = worker_stats
        self._rule = rule
        self._clock = clock
        #: When each worker was first seen with room.
        self._room: dict[ModelName, dict[NodeId, float]] = {}

    def rows(self, requirements: WorkerRequirements) -> Sequence[Candidate]:
        """Return the workers that may run the request now; none if one is loading the model or restarting its engine. Raises NotReachable
        if there is no such worker either."""
        table = self._worker_stats.table(requirements, self._usable(), self._clock())
        try:
            return worker_choice.eligible(requirements, table, self._rule)
        except errors.NotReachable:
            there = [entry for entry in self._directory.entries(Role.WORKER) if entry.alive and not entry.announcement.draining]
            soon = self._worker_stats.table(requirements, there, self._clock(), or_soon=True)
            if any(not row.offer.ready for row in soon):
                with contextlib.suppress(errors.NotReachable):
                    worker_choice.eligible(requirements, [row for row in soon if not row.offer.ready], self._rule)
                    return ()
            raise

    def refusal(self, requirements: WorkerRequirements) -> errors.NotReachable | None:
        """Return why no worker may run the request any more; None if one may."""
        try:
            self.rows(requirements)
        except errors.NotReachable as error:
            return error
        return None

    def owners(self) -> set[str]:
        """Return the owners of the usable workers."""
        return {entry.announcement.owner for entry in self._usable()}

    def capacity(self, model: ModelName) -> dict[NodeId, WorkerCapacity]:
        occupancy = self._worker_stats.occupancy
        return {worker.node: occupancy.capacity_of(worker, offer) for worker, offer in candidates.offering(model, self._usable())}

    def room_lasts(self, model: ModelName) -> bool:
        """Return whether some worker has had room for a while."""
        now, before = self._clock(), self._room.get(model, {})
        self._room[model] = {node: before.get(node, now) for node, capacity in self.capacity(model).items() if capacity.has_room}
        return any(now - since >= _ROOM_SECONDS for since in self._room[model].values())

    def forget_room(self) -> None:
        """Reset what ``room_lasts`` has seen."""
        self._room.clear()

    def _usable(self) -> Sequence[DirectoryEntry]:
        return self._directory.usable(Role.WORKER)
