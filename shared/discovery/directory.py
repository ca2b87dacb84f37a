"""What a node knows of the others: who is alive, what they serve, how loaded they are. Pure; the shell brings facts and time.

A node says what it is every ANNOUNCE_SECONDS and at once on change, on every transport that leads to us: each is a route to
the one node. A route ends after GONE_AFTER_SECONDS of silence or when its link died, whichever comes first; without a route
the node is gone, and is back with its next announcement.
"""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec

from shared import errors
from shared.types import ModelName, NodeId, Role

ANNOUNCE_SECONDS = 2.0
#: Two announcements missed and the third all but due: one that is killed is left out within 6 s, a look at it included.
GONE_AFTER_SECONDS = 5.5
#: How often silence is looked for.
TICK_SECONDS = 0.25
#: A gone node stays listed this long, so that people can see since when it is missing.
FORGOTTEN_AFTER = timedelta(hours=1)
#: Nodes listed at most: a bound against a peer that announces without end.
MAX_NODES = 4096
#: An announcement is one small write.
MAX_ANNOUNCEMENT_BYTES = 16 * 1024


class ModelOffer(msgspec.Struct, array_like=True, frozen=True):
    name: Annotated[ModelName, msgspec.Meta(max_length=200)]
    context_tokens: int
    #: SHA-256 of the model's file: two workers with the same digest can continue each other's answers.
    digest: str = ""
    #: False while its engine loads or restarts: "not now" is not "nobody has it".
    ready: bool = True
    #: It gives vectors and no answers.
    only_embeds: bool = False
    #: False where it must be loaded first: the worker answers, after a wait.
    loaded: bool = True
    #: Answers of this model that it gives at once, and calls of it that run or wait; 0 slots: only ``WorkerLoad`` says.
    slots: int = 0
    busy: int = 0


class WorkerLoad(msgspec.Struct, array_like=True, frozen=True):
    """How busy a node is."""

    slots: int = 0
    running: int = 0
    queued: int = 0
    #: How long a new call would wait, as the node itself expects.
    expected_wait_seconds: float = 0.0


class Announcement(msgspec.Struct, array_like=True, frozen=True):
    """What a node says of itself."""

    role: Role
    node: NodeId
    version: str
    #: When the process started: a restarted one has the same key and another start.
    started_at: Annotated[datetime, msgspec.Meta(tz=True)]
    models: tuple[ModelOffer, ...] = ()
    load: WorkerLoad = WorkerLoad()
    draining: bool = False
    #: Why it should not be used yet, in its own words; empty when it can be.
    not_ready: str = ""
    labels: dict[str, str] = {}
    #: The last one: the process is about to end.
    leaving: bool = False
    #: The number of the revocation list that it holds.
    revocations: int = 0
    #: The user who answers for it, by its certificate; empty for the house.
    owner: str = ""
    #: What is wrong with one of its transports while another one carries this, for people; empty when nothing is.
    trouble: str = ""
    #: The process: random, made at its start. Two of them with one key are two processes that have to be told apart.
    instance: str = ""
    #: Processes that have to stop, because an older one uses the same key: ``<node>/<instance>``; see ``shared.discovery.duplicate_keys``.
    contested: tuple[str, ...] = ()
    #: By the clock of its node; older versions do not say. The directory keeps announcements without it: it alone is no news.
    made_at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Announcement).decode


def decode(body: bytes) -> Announcement:
    """Raises ProtocolViolation for what is not an announcement."""
    if len(body) > MAX_ANNOUNCEMENT_BYTES:
        raise errors.ProtocolViolation(f"an announcement of {len(body)} bytes")
    try:
        return _decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise errors.ProtocolViolation(f"not an announcement: {error}") from error


#: From the shortest way to the longest: NATS stands in the house, a relay somewhere in the world.
PATHS = ("nats", "direct", "punched", "relayed")


@dataclass(frozen=True, slots=True)
class PeerRoute:
    """One way to a node."""

    #: nats or swarm.
    transport: str
    #: One of PATHS.
    path: str
    heard_at: float


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """A node as the directory knows it. A new object for every change."""

    announcement: Announcement
    #: The best first; none when it is gone.
    routes: tuple[PeerRoute, ...]
    #: The best path, or the last one that there was; empty for one that never had any.
    path: str
    #: Alive, or gone, since then.
    since: datetime
    #: Empty while alive.
    why_gone: str
    #: It was there and was not let in, or could not be reached: known by its key alone.
    refused: bool = False

    @property
    def alive(self) -> bool:
        return bool(self.routes)

    @property
    def node(self) -> NodeId:
        return self.announcement.node

    @property
    def role(self) -> Role:
        return self.announcement.role

    @property
    def why_not(self) -> str:
        """Why it is not used; empty when it can be."""
        if not self.alive:
            return self.why_gone
        if self.announcement.draining:
            return "draining: it finishes its work and stops"
        return self.announcement.not_ready


class Directory:
    """Every node heard of. Owned by one node's loop; ``on_change`` is called with each new entry that matters."""

    def __init__(self, clock: Callable[[], float], now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._now = now
        self._entries: dict[NodeId, DirectoryEntry] = {}
        self._watchers: list[Callable[[DirectoryEntry], None]] = []
        #: Every call asks who is usable, and the answer changes with announcements only.
        self._usable: dict[Role, list[DirectoryEntry]] = {}

    # --- facts --------------------------------------------------------------------------------------------------

    def heard(self, announcement: Announcement, path: str, transport: str = "nats") -> None:
        """An announcement arrived; the transport has vouched for its role and node."""
        before = self._entries.get(announcement.node)
        if before is None and len(self._entries) >= MAX_NODES:
            return
        if announcement.leaving:
            # The farewell of a process that was replaced may arrive after the first word of its successor.
            if before is None or before.announcement.started_at == announcement.started_at:
                self.gone(announcement.node, "stopped")
            return
        is_new = before is None or not before.alive or before.announcement.started_at != announcement.started_at
        if before is None or before.refused:
            since = announcement.started_at  # one that we hear of for the first time was there before
        elif is_new:
            since = self._now()
        else:
            since = before.since
        # After a restart the other ways lead to the process that was.
        old = () if before is None or is_new else before.routes
        others = [route for route in old if route.transport != transport]
        routes = tuple(sorted([*others, PeerRoute(transport, path, self._clock())], key=_length))
        entry = DirectoryEntry(announcement, routes, routes[0].path, min(since, self._now()), "")
        self._put(entry)
        # A busy node that repeats itself is news, too: the calls that it counts may be those of somebody else now.
        is_busy = bool(announcement.load.running)
        if is_new or is_busy or before is None or before.announcement != announcement or before.path != entry.path:
            self._tell(entry)

    def lost(self, node: NodeId, transport: str, why: str) -> None:
        """The way to it by this transport has ended; it is gone if that was the only one."""
        entry = self._entries.get(node)
        if entry is None or not any(route.transport == transport for route in entry.routes):
            return
        left = tuple(route for route in entry.routes if route.transport != transport)
        if not left:
            self.gone(node, why)
            return
        entry = replace(entry, routes=left, path=left[0].path)
        self._put(entry)
        self._tell(entry)

    def gone(self, node: NodeId, why: str) -> None:
        """It said that it stops, or the last way to it ended. Nothing happens if it is not known or gone already."""
        entry = self._entries.get(node)
        if entry is None or not entry.alive:
            return
        entry = replace(entry, routes=(), since=self._now(), why_gone=why)
        self._put(entry)
        self._tell(entry)

    def refused(self, node: NodeId, role: Role, software: str, why: str) -> None:
        """It wanted in and was not let in, or could not be reached: to be shown with the reason. An alive one stays as it is."""
        before = self._entries.get(node)
        if (before is not None and before.alive) or (before is None and len(self._entries) >= MAX_NODES):
            return
        if before is None or not before.refused:
            since = self._now() if before is None else before.since
            announcement = Announcement(role, node, software, since) if before is None else before.announcement
            before = DirectoryEntry(announcement, (), "" if before is None else before.path, since, why, refused=True)
        self._put(replace(before, why_gone=why))

    def deafened(self, transport: str) -> None:
        """Nothing can be heard by this transport for now. Who has another way is taken to be reachable by that one alone; who
        has none is no less alive for our deafness."""
        for node, entry in list(self._entries.items()):
            if len(entry.routes) > 1:
                self.lost(node, transport, "")

    def tick(self, listening: Collection[str] = ("nats", "swarm")) -> None:
        """Let nodes go that have been silent on the transports that we can hear; call it every TICK_SECONDS."""
        clock, now = self._clock(), self._now()
        for node, entry in list(self._entries.items()):
            for route in entry.routes:
                if route.transport in listening and clock - route.heard_at > GONE_AFTER_SECONDS:
                    self.lost(node, route.transport, f"silent for {clock - route.heard_at:.0f} s")
            if not entry.alive and now - entry.since > FORGOTTEN_AFTER:
                del self._entries[node]

    # --- questions ------------------------------------------------------------------------------------------------

    def watch(self, watcher: Callable[[DirectoryEntry], None]) -> None:
        """Call ``watcher`` with every node that comes, goes or changes what it says, and with each word of a busy one."""
        self._watchers.append(watcher)

    def find(self, node: NodeId) -> DirectoryEntry | None:
        return self._entries.get(node)

    def entries(self, role: Role | None = None) -> list[DirectoryEntry]:
        """Every node known, gone ones included for an hour."""
        return [entry for entry in self._entries.values() if role is None or entry.role is role]

    def usable(self, role: Role) -> list[DirectoryEntry]:
        """Alive, ready, not draining. The list is the directory's own: read it, do not keep it."""
        found = self._usable.get(role)
        if found is None:
            found = self._usable[role] = [entry for entry in self._entries.values() if entry.role is role and not entry.why_not]
        return found

    def _put(self, entry: DirectoryEntry) -> None:
        self._entries[entry.node] = entry
        self._usable.pop(entry.role, None)

    def _tell(self, entry: DirectoryEntry) -> None:
        for watcher in self._watchers:
            watcher(entry)


def _length(route: PeerRoute) -> int:
    return PATHS.index(route.path) if route.path in PATHS else len(PATHS)


def pick(entries: Sequence[DirectoryEntry], rng: random.Random, wait: Callable[[DirectoryEntry], float]) -> DirectoryEntry | None:
    """Power of two choices: two at random, the one with the shorter wait. As good as asking all, without the herd that
    follows the one least-loaded node until its next announcement."""
    if not entries:
        return None
    if len(entries) == 1:
        return entries[0]
    first, second = rng.sample(entries, 2)
    return first if wait(first) <= wait(second) else second


def expected_wait(entry: DirectoryEntry, in_flight: int = 0) -> float:
    """How long a new call would wait there: the node's own word, and what we sent since it spoke."""
    load = entry.announcement.load
    busy = (load.running + load.queued + in_flight) / max(1, load.slots)
    return load.expected_wait_seconds + busy
