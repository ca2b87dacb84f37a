"""Detects workers that join or leave the mesh. Pure."""

from datetime import datetime

from shared.api import events
from shared.discovery.directory import DirectoryEntry
from shared.types import NodeId, Role


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
