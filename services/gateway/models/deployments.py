"""Puts models on machines as the deployments of the configuration say, and takes them away again.

One gateway does so. Its orders may be repeated: a worker that has a model, or is getting it, does nothing. So nothing is lost if a gateway
dies, and workers serve what they have without any gateway.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from services.gateway.facts.model_names import NamedVersion, VersionedNames
from services.gateway.models import placement_plan
from services.gateway.models.deployment_store import DeploymentSession, DeploymentStore, Order, Orders
from services.gateway.models.placement_plan import Action, Assignment, Held, Machine, Step, Wanted
from shared import errors
from shared.api import inference
from shared.api.deployments import CopyState, Deployment, ModelCopy
from shared.api.model_copies import VERSION_SOURCE
from shared.background.item_kinds import ItemKind
from shared.background.items import BackgroundItems
from shared.config_documents import DeploymentDocument
from shared.models import version_names
from shared.protocol.directory import Announcement, Directory, DirectoryEntry, ModelOffer, ModelPull
from shared.rpc import RpcClient
from shared.telemetry import logs
from shared.telemetry.metrics_registry import Metrics
from shared.timing.bounded_waits import wait_until_set
from shared.types import ModelName, NodeId, Role, TenantId

#: Between two rounds: while nothing changes, and at least, so that many changes make few rounds.
ROUND_SECONDS, PAUSE_SECONDS = 2.0, 0.2
#: A machine that refused a model is asked again.
REFUSAL_SECONDS = 300.0
#: Orders are written again, in case that another gateway has written others.
ORDERS_SECONDS = 30.0
#: Workers answer at once; a load takes longer, and goes on when nobody waits for it.
_ORDER_SECONDS = 5.0
#: Of one round.
_MAX_ORDERS = 64

_log = logs.get(part="deployments")


@dataclass(frozen=True, slots=True)
class PlacedVersion:
    """What one deployment puts on machines: the model of its source, or one of its versions."""

    deployment: ModelName
    document: DeploymentDocument
    #: What workers call it.
    name: ModelName
    source: str
    #: It is served as soon as it is loaded.
    is_next: bool = False
    #: It is kept for a rollback.
    is_spare: bool = False

    @property
    def digest(self) -> str:
        """Return the version's digest; empty for a model of a public source."""
        return self.source.removeprefix(VERSION_SOURCE) if self.source.startswith(VERSION_SOURCE) else ""

    @property
    def wanted(self) -> Wanted:
        document = self.document
        copies = None if document.copies == "all" else document.copies
        loads = (document.preload or self.is_next) and not self.is_spare
        return Wanted(self.name, copies, document.labels, document.nodes, loads, self.is_spare)


#: Returns what decides how much memory the model of a source needs; None if nobody knows before it is there.
FindFacts = Callable[[str], Awaitable[inference.ModelFacts | None]]
#: Returns the deployments of the current configuration.
ReadDocuments = Callable[[], Mapping[str, DeploymentDocument]]
ReadVersions = Callable[[], VersionedNames]
#: Lets a channel of a model serve a version, if that is what it was to serve next.
ServeNext = Callable[[str, str, int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class FactsOfRound:
    """Finds the facts of each source once in a round, however many machines get its model: they are read from the store."""

    find: FindFacts
    _known: dict[str, inference.ModelFacts | None] = field(default_factory=dict)
    _finding: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def read(self, source: str) -> inference.ModelFacts | None:
        async with self._finding:
            if source not in self._known:
                self._known[source] = await self.find(source)
        return self._known[source]


@dataclass(slots=True)
class Deployments:
    """``run`` it in each gateway."""

    nodes: Directory
    rpc: RpcClient
    store: DeploymentStore
    read_documents: ReadDocuments
    read_versions: ReadVersions
    find_facts: FindFacts
    serve_next: ServeNext
    metrics: Metrics
    items: BackgroundItems
    #: Set by whoever changes what ``read_documents`` and ``read_versions`` return.
    changed: asyncio.Event
    clock: Callable[[], float] = time.monotonic
    #: Why machines refused, and until when that counts.
    _refusals: dict[tuple[NodeId, ModelName], tuple[str, float]] = field(default_factory=dict)
    #: What was last written, and when.
    _orders: Orders | None = None
    _ordered_at: float = 0.0
    #: Machines as they last were.
    _seen: dict[NodeId, Machine] = field(default_factory=dict)

    @property
    def documents(self) -> dict[ModelName, DeploymentDocument]:
        return {ModelName(name): body for name, body in self.read_documents().items()}

    def knows(self, name: str) -> bool:
        """Return whether a pushed model, one of its versions or a channel has this name."""
        versions = self.read_versions()
        return name in versions.digests or _channel_of(name) in versions.channels

    def has_versions(self, name: str) -> bool:
        """Return whether a model was pushed whose version or channel this would be, and a version of it may be loaded."""
        model = version_names.strip_version(ModelName(name))
        return any(version_names.strip_version(each) == model for each in self.read_versions().digests)

    def is_deployed(self, channel: str) -> bool:
        """Return whether the mesh puts a channel such as ``llama3@stable`` on machines."""
        return any(
            not document.source and _channel_of(name) == channel and self.is_owned(name, document)
            for name, document in self.documents.items()
        )

    def is_owned(self, name: str, document: DeploymentDocument) -> bool:
        """Return whether a pushed model belongs to whom the document names."""
        return _is_owned(name, document, self.read_versions())

    def owner_of(self, name: str) -> TenantId | None:
        """Return whose a pushed model is; None: the mesh's, or nobody's."""
        return self.read_versions().owners.get(version_names.strip_version(ModelName(name)))

    def _entries(self) -> list[DirectoryEntry]:
        return [entry for entry in self.nodes.entries(Role.WORKER) if _counts(entry)]

    async def list(self, name: ModelName | None) -> tuple[Deployment, ...]:
        """Raises Unavailable."""
        entries, refusals, versions = self._entries(), await self.store.read_refusals(), self.read_versions()
        machines = [_machine(entry.announcement) for entry in entries]
        found = []
        for each, document in self.documents.items():
            if name in {None, each}:
                placed = list(versions_of(each, document, versions))
                assigned = [placement_plan.assign(one.wanted, machines, refusals) for one in placed]
                problem = "" if placed else _why_nothing(each, document, versions)
                found.append(_describe(each, document, list(zip(placed, assigned, strict=True)), entries, problem))
        return tuple(found)

    async def run(self) -> None:
        """Work for ever, while this gateway has the lock."""
        self.nodes.watch(self._notice)
        while True:
            try:
                async with self.store.leadership() as session:
                    self._orders = None
                    await self._lead(session)
            except errors.Unavailable as error:
                _log.warning("deployments interrupted", reason=error.message)
            await asyncio.sleep(ROUND_SECONDS)

    async def _lead(self, session: DeploymentSession) -> None:
        while True:
            is_elected = await session.take()
            self.metrics.missing_copies.clear()
            if is_elected:
                await self.step(session)
            await asyncio.sleep(PAUSE_SECONDS)
            await wait_until_set(self.changed, ROUND_SECONDS)
            self.changed.clear()

    def _notice(self, entry: DirectoryEntry) -> None:
        """Let the next round begin if a machine differs."""
        if entry.role is Role.WORKER:
            before, now = self._seen.pop(entry.node, None), _machine(entry.announcement) if _counts(entry) else None
            if now is not None:
                self._seen[entry.node] = now
            if now != before:
                self.changed.set()

    async def step(self, session: DeploymentSession) -> None:
        """Order what is left to do, and let channels serve what is loaded. Raises Unavailable."""
        now, versions = self.clock(), self.read_versions()
        placed = [one for name, document in self.documents.items() for one in versions_of(name, document, versions)]
        by_name = {one.name: one for one in placed}
        self._refusals = {key: each for key, each in self._refusals.items() if each[1] > now and key[1] in by_name}
        machines = [_machine(entry.announcement) for entry in self._entries()]
        assignments = [placement_plan.assign(one.wanted, machines, self._reasons()) for one in placed]
        paused = {one.name for one in placed if one.document.paused}
        self._count_missing(assignments, paused)
        actions = [each for each in placement_plan.plan(assignments, machines) if each.name not in paused][:_MAX_ORDERS]
        ready = _ready_channels(versions, list(zip(placed, assignments, strict=True)), machines)
        await self.items.each(ItemKind.CHANNEL, ready, self._switch, lambda channel: f"{channel.name}@{channel.word}")
        await self._write_orders(session, placed, assignments, machines)
        facts = FactsOfRound(self.find_facts)
        async with asyncio.TaskGroup() as tasks:
            for action in actions:
                order = self._carry_out(action, by_name.get(action.name), facts)
                tasks.create_task(self.items.attempt(ItemKind.ORDER, f"{action.step}/{action.name}/{action.node}", order))
        if placed or self._refusals:
            await self.store.share(self._reasons())

    async def _switch(self, channel: NamedVersion) -> None:
        assert channel.next_version is not None, "only these are ready"
        _log.info("channel switched", model=channel.name, channel=channel.word, version=channel.next_version)
        await self.serve_next(channel.name, channel.word, channel.next_version)

    async def _write_orders(
        self, session: DeploymentSession, placed: Sequence[PlacedVersion], assignments: Sequence[Assignment], machines: Sequence[Machine]
    ) -> None:
        """Let machines read the versions that are ordered there, before the orders leave. Raises Unavailable."""
        by_node = {machine.node: machine for machine in machines}
        found, new = set[Order](), set[Order]()
        for one, assignment in zip(placed, assignments, strict=True):
            for node in assignment.nodes if one.digest else ():
                machine = by_node[node]
                found.add((node, one.digest))
                # What its owner calls like a version is no order.
                if machine.accepts and not (one.document.paused and not machine.held.get(one.name)):
                    new.add((node, one.digest))
        orders, now = Orders(found, new, by_node.keys(), {one.digest for one in placed}), self.clock()
        if orders != self._orders or now - self._ordered_at >= ORDERS_SECONDS:
            await self.store.write_orders(session, orders)
            self._orders, self._ordered_at = orders, now

    def _count_missing(self, assignments: Sequence[Assignment], paused: Set[ModelName]) -> None:
        missing = dict[ModelName, int]()
        for each in assignments:
            model = version_names.strip_version(each.wanted.name)
            missing[model] = missing.get(model, 0) + (0 if each.wanted.name in paused else each.short)
        for model, short in missing.items():
            self.metrics.missing_copies.labels(model=model).set(short)
            # Prometheus only sees a counter grow that it has seen before.
            self.metrics.copy_failures.labels(model=model).inc(0)

    def _reasons(self) -> placement_plan.Refusals:
        return {key: reason for key, (reason, _) in self._refusals.items()}

    async def _carry_out(self, action: Action, placed: PlacedVersion | None, facts: FactsOfRound) -> None:
        try:
            problem = await self._order(action, placed, facts)
        # What an owner refuses, the next announcement says, and also when they accept it again.
        except (errors.PeerError, errors.NotAllowed) as error:
            _log.info("order failed", step=action.step, model=action.name, worker=action.node, reason=error.message)
            return
        except errors.AimeshError as error:
            problem = error.message
        if problem:
            _log.warning("order refused", step=action.step, model=action.name, worker=action.node, reason=problem)
            self._refusals[action.node, action.name] = problem, self.clock() + REFUSAL_SECONDS
            self.metrics.copy_failures.labels(model=version_names.strip_version(action.name)).inc()

    async def _order(self, action: Action, placed: PlacedVersion | None, facts: FactsOfRound) -> str:
        """Return why the worker can't; empty if it can. Raises what the call raises."""
        match action.step:
            case Step.FETCH:
                assert placed is not None, "only what a document wants is fetched"
                if problem := await self._find_misfit(action.node, await facts.read(placed.source)):
                    return problem
                assignment = inference.Assignment(placed.document.context, placed.document.slots)
                order = inference.EnsureModel(action.name, placed.source, assignment)
                answer = await self.rpc.call(inference.ensure_model, order, to=action.node, deadline_seconds=_ORDER_SECONDS)
                return answer.problem
            case Step.LOAD:
                load = inference.LoadModel(action.name)
                await self.rpc.call(inference.load_model, load, to=action.node, deadline_seconds=_ORDER_SECONDS)
            case Step.REMOVE:
                remove = inference.RemoveModel(action.name)
                await self.rpc.call(inference.remove_model, remove, to=action.node, deadline_seconds=_ORDER_SECONDS)
        return ""

    async def _find_misfit(self, node: NodeId, facts: inference.ModelFacts | None) -> str:
        """Return why the model can't be loaded there. Raises what the call raises: BadRequest for a machine that runs no engine."""
        request = inference.PlanModels(() if facts is None else (facts,))
        answer = await self.rpc.call(inference.plan_models, request, to=node, deadline_seconds=_ORDER_SECONDS)
        return next((fit.detail for fit in answer.fits if fit.fit is inference.Fit.NO), "")


def versions_of(name: ModelName, document: DeploymentDocument, versions: VersionedNames) -> Iterator[PlacedVersion]:
    """Yield what a deployment puts on machines: first what it serves. Pure."""
    if document.source:
        yield PlacedVersion(name, document, name, document.source)
        return
    if not _is_owned(name, document, versions):
        return
    if name in versions.digests:
        yield PlacedVersion(name, document, name, VERSION_SOURCE + versions.digests[name])
        return
    if (channel := versions.channels.get(_channel_of(name))) is None:
        return
    roles = ((channel.version, False, False), (channel.next_version, True, False), (channel.previous_version, False, True))
    seen = set[ModelName]()
    for number, is_next, is_spare in roles:
        served = ModelName(f"{channel.name}@{number}")
        # A version that was revoked, or whose files are deleted, is taken away.
        if number is not None and served in versions.digests and served not in seen:
            seen.add(served)
            yield PlacedVersion(name, document, served, VERSION_SOURCE + versions.digests[served], is_next, is_spare)


def _is_owned(name: str, document: DeploymentDocument, versions: VersionedNames) -> bool:
    return versions.owners.get(version_names.strip_version(ModelName(name))) == document.organization


def _channel_of(name: str) -> str:
    return name if "@" in name else f"{name}@{version_names.STABLE}"


def _ready_channels(
    versions: VersionedNames, placed: Sequence[tuple[PlacedVersion, Assignment]], machines: Sequence[Machine]
) -> Iterator[NamedVersion]:
    """Yield the channels whose next version is loaded wherever they are deployed, on at least as many machines as the present one."""
    held = {machine.node: machine.held for machine in machines}
    for name, channel in versions.channels.items():
        # One that was revoked is never ready.
        if f"{channel.name}@{channel.next_version}" not in versions.digests:
            continue
        next_ones = [each for one, each in placed if one.is_next and _channel_of(one.deployment) == name]
        present = ModelName(f"{channel.name}@{channel.version}")
        needed = sum(machine.held.get(present) is Held.LOADED for machine in machines)
        loaded = [all(held[node].get(each.wanted.name) is Held.LOADED for node in each.nodes) for each in next_ones]
        enough = all(not each.short or len(each.nodes) >= max(1, needed) for each in next_ones)
        if all(loaded) and enough:
            yield channel


def _counts(entry: DirectoryEntry) -> bool:
    return entry.alive and not entry.announcement.draining


def _machine(announcement: Announcement) -> Machine:
    coming = dict.fromkeys((*announcement.assigned, *(ModelName(pull.name) for pull in announcement.pulls)), Held.COMING)
    held = coming | {offer.name: _held(offer) for offer in announcement.models}
    accepts = announcement.load.accepts_models
    return Machine(
        announcement.node, announcement.labels, accepts, held, announcement.assigned, len(announcement.models), announcement.refused
    )


def _held(offer: ModelOffer) -> Held:
    if not offer.loaded:
        return Held.STORED
    return Held.LOADED if offer.ready else Held.COMING


def _why_nothing(name: ModelName, document: DeploymentDocument, versions: VersionedNames) -> str:
    model = version_names.strip_version(name)
    if not _is_owned(name, document, versions):
        owner = versions.owners.get(model)
        whose = "of the mesh" if owner is None else f"of the organization or account {owner}"
        return f"{model} is a model {whose}, and its deployment names another one"
    return f"no version of {name} is promoted; see `aicli models versions {model}`"


_STATES = {
    Held.NOTHING: CopyState.COMING,
    Held.COMING: CopyState.COMING,
    Held.STORED: CopyState.STORED,
    Held.LOADED: CopyState.LOADED,
}


def _describe(
    name: ModelName,
    document: DeploymentDocument,
    placed: Sequence[tuple[PlacedVersion, Assignment]],
    entries: Sequence[DirectoryEntry],
    problem: str,
) -> Deployment:
    held = {entry.node: _machine(entry.announcement).held for entry in entries}
    pulls = {(entry.node, pull.name): pull for entry in entries for pull in entry.announcement.pulls}
    problems = {(entry.node, offer.name): offer.problem for entry in entries for offer in entry.announcement.models}
    copies = list[ModelCopy]()
    for one, assignment in placed:
        for node in assignment.nodes:
            problem = problems.get((node, one.name), "")
            state = CopyState.REFUSED if problem else _STATES[held[node].get(one.name, Held.NOTHING)]
            pull = pulls.get((node, one.name))
            pull = pull or ModelPull("", 0, None, 0.0)
            numbers = pull.done_bytes, pull.total_bytes, pull.bytes_per_second
            copies.append(ModelCopy(node, state, one.name, *numbers, problem, one.is_spare, pull.from_peers_bytes, pull.peers))
        if not one.is_spare:
            copies += (ModelCopy(node, CopyState.REFUSED, one.name, reason=reason) for node, reason in assignment.reasons.items())
    short = max((assignment.short for one, assignment in placed if not one.is_spare), default=0)
    return Deployment(name, document, tuple(copies), short, problem)
