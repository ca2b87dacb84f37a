"""Knows the other nodes: which are alive, what they serve, and how loaded they are. Pure; the shell brings facts and time.

A node announces itself every ANNOUNCE_SECONDS and on every change, over each of its transports; each transport is a route to it. A
route ends when its link is lost or after GONE_AFTER_SECONDS of silence. A node without routes is gone until its next announcement.
While our own connection is lost, nothing is known of the nodes behind it: their routes stay, and can't be used before they are heard again.
"""

import random
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec

from shared import errors
from shared.types import Ability, ModelName, NodeId, Role

ANNOUNCE_SECONDS = 2.0
#: Two announcements missed and the third due: a killed node is dropped within 6 s, including the time to notice.
GONE_AFTER_SECONDS = 5.5
TICK_SECONDS = 0.25
#: Why a node is gone that was stopped.
STOPPED = "stopped"
#: Why a process that has not said yet what it offers should not be used.
STARTING = "starting"
#: How long a gone node stays listed, so that people can see since when it is missing.
FORGOTTEN_AFTER = timedelta(hours=1)
#: Requests that a worker may queue if its ENGINE_QUEUE is not set.
DEFAULT_QUEUE = 32
MAX_NODES = 4096
#: Usage is dated by PostgreSQL's clock, and certificates have a leeway of minutes. Logs and traces suffer first.
MAX_CLOCK_ERROR_SECONDS = 2.0
_CLOCK_SAMPLES = 3
MAX_ANNOUNCEMENT_BYTES = 16 * 1024
#: More would take the room of other models.
MAX_ASSIGNED = 32
MAX_FEATURES = 100


#: Of one model. All of them share an announcement.
MAX_PROBLEM_CHARACTERS = 150
#: Callers need one reason; operators have `aicli nodes`.
_MAX_SAID = 3


def say_reasons(found: Iterable[tuple[str, str]], between: str = " ") -> str:
    """Return which subjects have which reason, at most three each. A reason is said once, for all that have it."""
    subjects: dict[str, list[str]] = {}
    for subject, reason in found:
        subjects.setdefault(reason, []).append(subject)
    return "; ".join(_names(named) + between + reason for reason, named in list(subjects.items())[:_MAX_SAID])


def _names(names: Sequence[str]) -> str:
    more = len(names) - _MAX_SAID
    return ", ".join(names[:_MAX_SAID]) + (f" and {more} more" if more > 0 else "")


class ResumeOrigin(msgspec.Struct, array_like=True, frozen=True):
    """What an answer was begun with: another file, build of the engine, processor or precision may choose other tokens."""

    digest: str
    numerics: str = ""


class ModelOffer(msgspec.Struct, array_like=True, frozen=True):
    name: Annotated[ModelName, msgspec.Meta(max_length=200)]
    context_tokens: int
    #: SHA-256 of the model file.
    digest: str = ""
    #: False while its engine loads or restarts: callers may wait for it.
    ready: bool = True
    only_embeds: bool = False
    #: False if it is loaded on the first request.
    loaded: bool = True
    #: Concurrent answers of this model, and its running and waiting calls. With 0 slots only ``WorkerLoad`` counts.
    slots: int = 0
    busy: int = 0
    #: The provider that gets the prompts; empty if they stay on the operator's machines.
    provider: Annotated[str, msgspec.Meta(max_length=64)] = ""
    #: It answers no prompts, and says whether texts are harmful.
    only_moderates: bool = False
    #: Its server has asked for a pause, so other targets and workers come first.
    rests: bool = False
    #: Where its server is, for people.
    region: Annotated[str, msgspec.Meta(max_length=64)] = ""
    #: Always false. It has the place of a former field, because the fields of an array are known by their places.
    unused: bool = False
    #: ``Ability`` or newer ones.
    abilities: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=32)], ...], msgspec.Meta(max_length=32)] = ()
    #: Its name is that of a model, a colon and that of an adapter.
    is_adapter: bool = False
    #: Another server runs it, for example vLLM.
    is_upstream: bool = False
    #: That server's name for it, if this is an alias.
    upstream_model: Annotated[str, msgspec.Meta(max_length=200)] = ""
    #: Loaded for agents, it would have the context that they need.
    can_suit_agents: bool = False
    #: Equal for engines that compute the same tokens; empty if another server computes, or while the model isn't loaded.
    numerics: Annotated[str, msgspec.Meta(max_length=32)] = ""
    #: Its running and waiting calls of batches. If it ``yields``, they make way for live ones, and ``busy`` doesn't count them.
    batch_busy: int = 0
    yields: bool = False
    #: Why it can't be served, for people; empty if it can.
    problem: Annotated[str, msgspec.Meta(max_length=MAX_PROBLEM_CHARACTERS)] = ""
    #: As another server writes it, such as Q4_K_M; empty if it doesn't.
    quantization: Annotated[str, msgspec.Meta(max_length=32)] = ""

    def continues(self, origin: ResumeOrigin) -> bool:
        """Return whether it can continue an answer that began so. A worker whose model isn't loaded checks it itself."""
        return self.digest == origin.digest and (self.numerics == origin.numerics or not self.loaded)

    @property
    def answers_prompts(self) -> bool:
        return not (self.only_embeds or self.only_moderates)

    @property
    def parent(self) -> ModelName | None:
        """The model whose adapter this is. Not a field: 64 long names would not fit an announcement twice."""
        return ModelName(self.name.rpartition(":")[0]) if self.is_adapter else None

    @property
    def sees_images(self) -> bool:
        return Ability.IMAGES in self.abilities


class ModelPull(msgspec.Struct, array_like=True, frozen=True):
    """A download of a model that is running."""

    name: Annotated[str, msgspec.Meta(max_length=200)]
    done_bytes: int
    total_bytes: int | None
    bytes_per_second: float
    #: Of ``done_bytes``: from other workers, and from how many.
    from_peers_bytes: int = 0
    peers: int = 0


class WorkerLoad(msgspec.Struct, array_like=True, frozen=True):
    slots: int = 0
    running: int = 0
    queued: int = 0
    expected_wait_seconds: float = 0.0
    #: How many calls of each model may wait; more are refused.
    queue: int = DEFAULT_QUEUE
    #: Memory for models, of a worker that has none; 0 for others.
    free_bytes: int = 0
    #: Whether administrators may put models on it.
    accepts_models: bool = True


class ConfigReading(msgspec.Struct, array_like=True, frozen=True):
    """What a gateway says about the configuration."""

    #: The release whose documents it can read.
    reads: Annotated[str, msgspec.Meta(max_length=64)]
    #: The oldest release whose gateways may answer requests, and the revision that this comes from; 0 before it has read the configuration.
    needs: Annotated[str, msgspec.Meta(max_length=64)] = ""
    revision: int = 0


class Announcement(msgspec.Struct, array_like=True, frozen=True):
    role: Role
    node: NodeId
    version: str
    #: When the process started. A restarted process has the same key and another start time.
    started_at: Annotated[datetime, msgspec.Meta(tz=True)]
    models: tuple[ModelOffer, ...] = ()
    load: WorkerLoad = WorkerLoad()
    draining: bool = False
    #: Why it should not be used yet; empty when it is ready.
    not_ready: str = ""
    labels: dict[str, str] = {}
    leaving: bool = False
    #: The number of its revocation list.
    revocations: int = 0
    #: The user responsible for it, from its certificate; empty for the platform's own nodes.
    owner: str = ""
    #: What is wrong with one of its transports while another still works; empty when nothing is.
    trouble: str = ""
    #: A random id of the process. Two instances with one key are two processes.
    instance: str = ""
    #: Processes that must stop because an older one uses the same key, as ``<node>/<instance>``. See ``duplicate_keys``.
    contested: tuple[str, ...] = ()
    #: By the node's clock. None in the directory, where it alone would be a change.
    made_at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    pulls: tuple[ModelPull, ...] = ()
    #: Names of the settings that it has and that every replica of its service needs; see ``config.Variable.on_all_replicas``.
    settings: tuple[str, ...] = ()
    #: What it works without, such as an unused GPU or a missing library, and how to change that; empty if nothing.
    warning: str = ""
    #: Those of its models that the mesh has put there.
    assigned: Annotated[tuple[ModelName, ...], msgspec.Meta(max_length=MAX_ASSIGNED)] = ()
    #: Models that were removed from it by its owner or an administrator, so the mesh doesn't put them there again.
    refused: Annotated[tuple[ModelName, ...], msgspec.Meta(max_length=MAX_ASSIGNED)] = ()
    #: Of a gateway; None of release 0.3.
    config: ConfigReading | None = None
    #: Why it is ``leaving``, for people; empty if somebody stopped it.
    leave_reason: Annotated[str, msgspec.Meta(max_length=MAX_PROBLEM_CHARACTERS)] = ""
    #: Of a gateway: which revision of the models' versions it uses.
    models_revision: int | None = None
    #: See ``shared.features``.
    features: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=100)], ...], msgspec.Meta(max_length=MAX_FEATURES)] = ()
    #: Whether it reaches NATS over a WebSocket.
    over_web: bool = False
    #: What the owner of its machine may want to know, and is no problem; empty if nothing.
    notice: Annotated[str, msgspec.Meta(max_length=MAX_PROBLEM_CHARACTERS)] = ""

    @property
    def reads_release(self) -> str:
        """Return the release whose documents of the configuration it can read."""
        return self.version if self.config is None else self.config.reads


encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Announcement).decode


def decode(body: bytes) -> Announcement:
    """Raises ProtocolViolation if the body is not an announcement."""
    if len(body) > MAX_ANNOUNCEMENT_BYTES:
        raise errors.ProtocolViolation(f"an announcement of {len(body)} bytes")
    try:
        return _decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise errors.ProtocolViolation(f"not an announcement: {error}") from error


#: The fastest first. ``web``: NATS, which the other side reaches over a WebSocket.
PATHS = ("nats", "direct", "punched", "web", "relayed")


@dataclass(frozen=True, slots=True)
class PeerRoute:
    transport: str
    path: str
    last_seen_at: float
    #: False from the loss of our own connection until the node is heard again.
    is_certain: bool = True


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """What the directory knows about a node. Every change makes a new object."""

    announcement: Announcement
    routes: tuple[PeerRoute, ...]
    #: The best path, or the last one; empty if there never was one.
    path: str
    since: datetime
    why_gone: str
    #: It was refused or could not be reached, so only its key is known.
    refused: bool = False
    #: How many seconds its clock was ahead of ours, by its last announcements. A late announcement makes it look behind.
    clock_samples: tuple[float, ...] = ()

    @property
    def alive(self) -> bool:
        return bool(self.routes)

    @property
    def is_reachable(self) -> bool:
        """Return whether it can be called now: not if it is gone, or while its routes are uncertain."""
        return any(route.is_certain for route in self.routes)

    @property
    def has_left(self) -> bool:
        """Whether it is gone in an orderly way, as its last announcement said."""
        return self.announcement.leaving

    @property
    def node(self) -> NodeId:
        return self.announcement.node

    @property
    def role(self) -> Role:
        return self.announcement.role

    @property
    def clock_offset(self) -> float | None:
        """Return how many seconds its clock is ahead of ours; None if that is not known yet."""
        return min(self.clock_samples, key=abs) if len(self.clock_samples) == _CLOCK_SAMPLES else None

    @property
    def why_not(self) -> str:
        """Return why the node must not be used; empty if it may be."""
        if not self.alive:
            return self.why_gone
        if self.announcement.draining:
            return "draining: it finishes its work and stops"
        return self.announcement.not_ready


class Directory:
    """All known nodes. Owned by one node's event loop."""

    def __init__(self, clock: Callable[[], float], now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._now = now
        self._entries: dict[NodeId, DirectoryEntry] = {}
        self._watchers: list[Callable[[DirectoryEntry], None]] = []
        #: A cache: every call asks which nodes are usable, but only announcements change that.
        self._usable: dict[Role, list[DirectoryEntry]] = {}
        self._reachable: dict[Role, list[DirectoryEntry]] = {}

    def apply_announcement(self, announcement: Announcement, path: str, transport: str = "nats") -> None:
        """Handle an announcement whose role and node the transport has verified."""
        before = self._entries.get(announcement.node)
        if before is None and len(self._entries) >= MAX_NODES:
            return
        samples = () if before is None else before.clock_samples
        if announcement.made_at is not None:
            samples = (*samples[1 - _CLOCK_SAMPLES :], (announcement.made_at - self._now()).total_seconds())
        announcement = msgspec.structs.replace(announcement, made_at=None)
        if announcement.leaving:
            # The last announcement of a replaced process may arrive after its successor's first announcement.
            if before is not None and before.announcement.started_at == announcement.started_at:
                self._put(replace(before, announcement=msgspec.structs.replace(before.announcement, leaving=True)))
                self.mark_gone(announcement.node, announcement.leave_reason or STOPPED)
            return
        is_new = before is None or not before.alive or before.announcement.started_at != announcement.started_at
        was_reachable = before is not None and before.is_reachable
        if before is None or before.refused:
            since = announcement.started_at  # it was running before its first announcement arrived
        elif is_new:
            since = self._now()
        else:
            since = before.since
        # After a restart the other routes lead to the old process.
        old = () if before is None or is_new else before.routes
        others = [route for route in old if route.transport != transport]
        routes = tuple(sorted([*others, PeerRoute(transport, path, self._clock())], key=_length))
        entry = DirectoryEntry(announcement, routes, routes[0].path, min(since, self._now()), "", clock_samples=samples)
        self._put(entry)
        # A busy node's repeated announcement matters too: its load may come from other gateways' calls now.
        is_busy = bool(announcement.load.running)
        is_changed = not was_reachable or before is None or before.announcement != announcement or before.path != entry.path
        if is_new or is_busy or is_changed:
            self._notify(entry)

    def remove_route(self, node: NodeId, transport: str, why: str) -> None:
        """Remove the route over this transport. Without another route the node is gone."""
        entry = self._entries.get(node)
        if entry is None or not any(route.transport == transport for route in entry.routes):
            return
        left = tuple(route for route in entry.routes if route.transport != transport)
        if not left:
            self.mark_gone(node, why)
            return
        entry = replace(entry, routes=left, path=left[0].path)
        self._put(entry)
        self._notify(entry)

    def mark_gone(self, node: NodeId, why: str, *, corrects: bool = False) -> None:
        """Mark the node as gone. Does nothing if it is unknown, or already gone unless ``corrects``: a revoked node may stop before we hear
        why."""
        entry = self._entries.get(node)
        if entry is None or not (entry.alive or corrects):
            return
        entry = replace(entry, routes=(), since=self._now(), why_gone=why)
        self._put(entry)
        self._notify(entry)

    def add_refused(self, node: NodeId, role: Role, software: str, why: str) -> None:
        """List a node that was refused or could not be reached, with the reason. An alive node does not change."""
        before = self._entries.get(node)
        if (before is not None and before.alive) or (before is None and len(self._entries) >= MAX_NODES):
            return
        if before is None or not before.refused:
            since = self._now() if before is None else before.since
            announcement = Announcement(role, node, software, since) if before is None else before.announcement
            before = DirectoryEntry(announcement, (), "" if before is None else before.path, since, why, refused=True)
        self._put(replace(before, why_gone=why))

    def transport_lost(self, transport: str) -> None:
        """Our own connection is lost. Drop its routes from nodes with another route; those of the others are uncertain."""
        for node, entry in list(self._entries.items()):
            if len(entry.routes) > 1:
                self.remove_route(node, transport, "")
            elif any(route.transport == transport for route in entry.routes):
                self._put(replace(entry, routes=tuple(replace(route, is_certain=False) for route in entry.routes)))

    def transport_back(self, transport: str) -> None:
        """Our own connection is back. The silence of the nodes behind it counts from now."""
        now = self._clock()
        for entry in list(self._entries.values()):
            if any(route.transport == transport for route in entry.routes):
                routes = (replace(each, last_seen_at=now) if each.transport == transport else each for each in entry.routes)
                self._put(replace(entry, routes=tuple(routes)))

    def tick(self, listening: Collection[str] = ("nats", "swarm")) -> None:
        """Remove nodes that were silent on the transports that work. Call it every TICK_SECONDS."""
        clock, now = self._clock(), self._now()
        for node, entry in list(self._entries.items()):
            for route in entry.routes:
                if route.transport in listening and clock - route.last_seen_at > GONE_AFTER_SECONDS:
                    self.remove_route(node, route.transport, f"silent for {clock - route.last_seen_at:.0f} s")
            if not entry.alive and now - entry.since > FORGOTTEN_AFTER:
                del self._entries[node]

    def watch(self, watcher: Callable[[DirectoryEntry], None]) -> None:
        """Call ``watcher`` whenever a node comes, goes or changes, and on every announcement of a busy node."""
        self._watchers.append(watcher)

    def find(self, node: NodeId) -> DirectoryEntry | None:
        return self._entries.get(node)

    def entries(self, role: Role | None = None) -> list[DirectoryEntry]:
        """Return all known nodes, including those that have gone within the last hour."""
        return [entry for entry in self._entries.values() if role is None or entry.role is role]

    def usable(self, role: Role) -> list[DirectoryEntry]:
        """Return the nodes that are alive, ready and not draining, as far as known. The list is reused: do not keep it."""
        found = self._usable.get(role)
        if found is None:
            found = self._usable[role] = [entry for entry in self._entries.values() if entry.role is role and not entry.why_not]
        return found

    def reachable(self, role: Role) -> list[DirectoryEntry]:
        """Return the usable nodes that can be called now. The list is reused: do not keep it."""
        found = self._reachable.get(role)
        if found is None:
            found = self._reachable[role] = [entry for entry in self.usable(role) if entry.is_reachable]
        return found

    def features_of(self, role: Role) -> dict[str, NodeId]:
        """Return each feature that nodes of ``role`` have that can be called now, with one of them."""
        return {feature: entry.node for entry in reversed(self.reachable(role)) for feature in entry.announcement.features}

    def _put(self, entry: DirectoryEntry) -> None:
        self._entries[entry.node] = entry
        self._usable.pop(entry.role, None)
        self._reachable.pop(entry.role, None)

    def _notify(self, entry: DirectoryEntry) -> None:
        for watcher in self._watchers:
            watcher(entry)


def _length(route: PeerRoute) -> int:
    return PATHS.index(route.path) if route.path in PATHS else len(PATHS)


def find_wrong_clocks(entries: Iterable[DirectoryEntry], own: NodeId) -> dict[NodeId, str]:
    """Return what is wrong with clocks that differ from those of most live nodes, ours included."""
    known = ((entry.node, entry.clock_offset) for entry in entries if entry.alive)
    offsets = {own: 0.0, **{node: offset for node, offset in known if offset is not None}}
    middle = statistics.median_low(offsets.values()) if len(offsets) > 2 else 0.0
    aheads = {node: offset - middle for node, offset in offsets.items()}
    return {
        node: f"its clock is {abs(ahead):,.0f} s {'ahead of' if ahead > 0 else 'behind'} the mesh's: set it, for example with NTP"
        for node, ahead in aheads.items()
        if abs(ahead) > MAX_CLOCK_ERROR_SECONDS
    }


def pick(entries: Sequence[DirectoryEntry], rng: random.Random, wait: Callable[[DirectoryEntry], float]) -> DirectoryEntry | None:
    """Pick the node with the shorter wait of two random ones ("power of two choices"). Always picking the least loaded node would send
    all calls to it until its next announcement."""
    if not entries:
        return None
    if len(entries) == 1:
        return entries[0]
    first, second = rng.sample(entries, 2)
    return first if wait(first) <= wait(second) else second


def expected_wait(entry: DirectoryEntry, in_flight: int = 0) -> float:
    """Return how long a new call would wait there: the node's own estimate plus what we have sent since."""
    load = entry.announcement.load
    busy = (load.running + load.queued + in_flight) / max(1, load.slots)
    return load.expected_wait_seconds + busy
