"""Tells the mesh which workers came and went. Pure; the directory brings each change."""

from datetime import datetime

from shared.api import events
from shared.discovery.directory import DirectoryEntry
from shared.types import NodeId, Role


class WorkerPresence:
    """The workers that are alive, so that each comes once and goes once."""

    def __init__(self) -> None:
        self._alive: set[NodeId] = set()

    def changed(self, entry: DirectoryEntry, now: datetime) -> events.WorkerJoined | events.WorkerLeft | None:
        """What to publish; None for a change that is neither a coming nor a going."""
        if entry.role is not Role.WORKER or entry.alive == (entry.node in self._alive):
            return None
        if entry.alive:
            self._alive.add(entry.node)
            return events.WorkerJoined(at=now, node=entry.node, models=tuple(offer.name for offer in entry.announcement.models))
        self._alive.remove(entry.node)
        return events.WorkerLeft(at=now, node=entry.node, why=entry.why_gone)
