"""Finds node keys that two processes use at the same time. Pure; the caller brings the time.

The proof is that each process announced itself twice, SPACING_SECONDS apart, at least OVERLAP_SECONDS after the other's first one. After a
restart, announcements of the dead process may still arrive late over the second transport; so announcements made before the other
process started only count after LATE_SECONDS. They do count then, because clocks may differ. The younger process must stop. Only
``started_at`` decides which process that is, so that all nodes agree.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import datetime

from shared.protocol.directory import ANNOUNCE_SECONDS, MAX_NODES, Announcement
from shared.types import NodeId, Role

OVERLAP_SECONDS = 5.0
#: No transport delays announcements this long.
LATE_SECONDS = 60.0
#: Announcements that were buffered somewhere arrive in one burst.
SPACING_SECONDS = ANNOUNCE_SECONDS / 2
SILENT_SECONDS = 30.0
#: Processes per node: limits what a peer that invents instances can make us store.
MAX_PROCESSES = 8
MAX_REPORTED = 16
#: Ours have 16. With longer ones, MAX_TOLD of them would not fit into an announcement.
MAX_INSTANCE_CHARACTERS = 64
TRUSTED_REPORTERS = frozenset({Role.AUTH, Role.GATEWAY, Role.METRICS})


@dataclass(slots=True)
class _KeyProcess:
    started_at: datetime
    first_at: float
    last_at: float
    #: Other processes of the node -> when this one announced itself OVERLAP_SECONDS after them.
    outlived: dict[str, float] = field(default_factory=dict)
    #: Other processes that this one certainly outlived, because it announced itself twice.
    proven: set[str] = field(default_factory=set)


class DuplicateKeys:
    def __init__(self) -> None:
        self._nodes: OrderedDict[NodeId, dict[str, _KeyProcess]] = OrderedDict()
        #: Names as in ``process_name``; the newest finding is at the end.
        self._younger: dict[str, None] = {}

    @property
    def younger(self) -> tuple[str, ...]:
        """Return the processes that must stop, for our announcement. Only the newest if there are many."""
        return tuple(self._younger)[-MAX_REPORTED:]

    def must_stop(self, process: str, announcement: Announcement) -> bool:
        """Return whether the named process must stop, by our own findings or those of a trusted peer."""
        return process in self._younger or (announcement.role in TRUSTED_REPORTERS and process in announcement.contested)

    def record_announcement(self, announcement: Announcement, now: float) -> bool:
        """Handle an announcement. Returns True if it proves a new duplicate."""
        node = announcement.node
        self._forget_nodes(now)
        processes = self._nodes.setdefault(node, {})
        self._nodes.move_to_end(node)
        self._forget_processes(node, processes, now)
        instance = announcement.instance
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

    def _compare(self, node: NodeId, processes: dict[str, _KeyProcess], announcement: Announcement, other: str, now: float) -> bool:
        instance = announcement.instance
        process, another = processes[instance], processes[other]
        may_be_late = announcement.made_at is not None and announcement.made_at < another.started_at
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
        """Drop nodes that went silent, and the longest silent ones if there are too many."""
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
    """Return a name that includes the node, which transports verify. The instance alone is public and chosen by its sender."""
    return f"{node}/{instance}"


#: More links within this time than restarts or outages explain. Each node is reported at most once per QUIET_SECONDS.
MAX_LINKS = 6
WINDOW_SECONDS = 60.0
QUIET_SECONDS = 600.0


class DuplicateLinks:
    """Detects links that are replaced too often: Hyperswarm keeps one connection per key, so two processes with the same key, possibly a
    stolen one, disconnect each other again and again."""

    def __init__(self) -> None:
        self._opened: OrderedDict[NodeId, deque[float]] = OrderedDict()
        self._reported_at: dict[NodeId, float] = {}

    def opened(self, node: NodeId, now: float) -> bool:
        """Note that a link to this node has opened. Returns whether to report the node."""
        times = self._opened.setdefault(node, deque(maxlen=MAX_LINKS))
        self._opened.move_to_end(node)
        if len(self._opened) > MAX_NODES:
            forgotten, _ = self._opened.popitem(last=False)
            self._reported_at.pop(forgotten, None)
        times.append(now)
        is_contested = len(times) == MAX_LINKS and now - times[0] <= WINDOW_SECONDS
        if not is_contested or now - self._reported_at.get(node, -QUIET_SECONDS) < QUIET_SECONDS:
            return False
        self._reported_at[node] = now
        return True
