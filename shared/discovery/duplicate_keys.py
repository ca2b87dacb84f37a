"""Find node keys that two processes use at the same time, from the announcements that a node hears. Pure; the caller brings the time.

Two processes of one node are proven when each was heard twice, at least SPACING_SECONDS apart, OVERLAP_SECONDS or more after the other
was first heard. A restart proves nothing, also after kill -9: what a dead process announced may arrive late over the second transport.
So what a process announced before the other one started counts only after LATE_SECONDS; not never, for clocks differ. The younger
process has to stop. Which one is younger is a matter of ``started_at`` alone, so that all nodes agree, also where the clocks of two
machines differ.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime

from shared.discovery.directory import ANNOUNCE_SECONDS, MAX_NODES, Announcement
from shared.types import NodeId, Role

OVERLAP_SECONDS = 5.0
#: No transport holds announcements back for so long.
LATE_SECONDS = 60.0
#: Announcements that were buffered somewhere come in one burst.
SPACING_SECONDS = ANNOUNCE_SECONDS / 2
#: A process that was not heard for so long is forgotten.
SILENT_SECONDS = 30.0
#: Processes of one node that are told apart: a bound on what a peer that invents instances can make us keep.
MAX_PROCESSES = 8
#: Younger processes that one announcement names.
MAX_TOLD = 16
#: Ours are 16 characters. Longer ones are not told apart: 16 of them would not fit into an announcement.
MAX_INSTANCE_CHARACTERS = 64
#: The roles that are believed when they name a process that has to stop.
TELLERS = frozenset({Role.AUTH, Role.GATEWAY, Role.METRICS})


@dataclass(slots=True)
class _KeyProcess:
    started_at: datetime
    first_at: float
    last_at: float
    #: Other processes of the node -> when this one was first heard OVERLAP_SECONDS after them.
    outlived: dict[str, float] = field(default_factory=dict)
    #: Other processes that this one certainly outlived: it was heard twice.
    proven: set[str] = field(default_factory=set)


class DuplicateKeys:
    def __init__(self) -> None:
        #: The node that was heard last is at the end.
        self._nodes: OrderedDict[NodeId, dict[str, _KeyProcess]] = OrderedDict()
        #: Names of processes, as in ``process_name``; the one that was found last is at the end.
        self._younger: dict[str, None] = {}

    @property
    def younger(self) -> tuple[str, ...]:
        """The names of the processes that have to stop, for the announcement of this node; the newest findings where there are many."""
        return tuple(self._younger)[-MAX_TOLD:]

    def must_stop(self, process: str, announcement: Announcement) -> bool:
        """Whether the process of this name has to stop, by what we have heard and by what a peer that hears both says."""
        return process in self._younger or (announcement.role in TELLERS and process in announcement.contested)

    def heard(self, announcement: Announcement, now: float) -> bool:
        """Take an announcement in; True if it proves a contest that was not known."""
        node = announcement.node
        self._forget_nodes(now)
        processes = self._nodes.setdefault(node, {})
        self._nodes.move_to_end(node)
        self._forget_processes(node, processes, now)
        instance = instance_of(announcement)
        if announcement.leaving:
            self._drop(node, processes, instance)
            return False
        if instance not in processes and len(processes) < MAX_PROCESSES and len(instance) <= MAX_INSTANCE_CHARACTERS:
            processes[instance] = _KeyProcess(announcement.started_at, now, now)
        process = processes.get(instance)
        if process is None:
            return False
        process.last_at = now
        found = [self._compare(node, processes, announcement, other, now) for other in processes if other != instance]
        return any(found)

    def _compare(self, node: NodeId, processes: dict[str, _KeyProcess], heard: Announcement, other: str, now: float) -> bool:
        instance = instance_of(heard)
        process, another = processes[instance], processes[other]
        may_be_late = heard.made_at is not None and heard.made_at < another.started_at
        if now - another.first_at < (LATE_SECONDS if may_be_late else OVERLAP_SECONDS):
            return False
        if now - process.outlived.setdefault(other, now) >= SPACING_SECONDS:
            process.proven.add(other)
        if other not in process.proven or instance not in another.proven:
            return False
        younger = max(instance, other, key=lambda each: (processes[each].started_at, each))
        name = process_name(node, younger)
        is_new = name not in self._younger
        self._younger[name] = None
        return is_new

    def _forget_nodes(self, now: float) -> None:
        """Those that nobody hears any more, and the ones heard longest ago where there are too many."""
        while self._nodes:
            node, processes = next(iter(self._nodes.items()))
            is_silent = all(now - process.last_at > SILENT_SECONDS for process in processes.values())
            if not is_silent and len(self._nodes) <= MAX_NODES:
                return
            del self._nodes[node]
            for instance in list(processes):
                self._drop(node, processes, instance)

    def _forget_processes(self, node: NodeId, processes: dict[str, _KeyProcess], now: float) -> None:
        for silent in [instance for instance, process in processes.items() if now - process.last_at > SILENT_SECONDS]:
            self._drop(node, processes, silent)

    def _drop(self, node: NodeId, processes: dict[str, _KeyProcess], instance: str) -> None:
        processes.pop(instance, None)
        self._younger.pop(process_name(node, instance), None)
        for process in processes.values():
            process.outlived.pop(instance, None)
            process.proven.discard(instance)


def process_name(node: NodeId, instance: str) -> str:
    """The instance alone proves nothing: it is public, and its sender chooses it. The node is what the transports vouch for."""
    return f"{node}/{instance}"


def instance_of(announcement: Announcement) -> str:
    """Older versions name no instance; they are told apart by the time of their start."""
    return announcement.instance or announcement.started_at.isoformat()
