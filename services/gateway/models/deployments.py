"""Puts models on machines as the deployments of the configuration say, and takes them away again.

One gateway does so. Its orders may be repeated: a worker that has a model, or is getting it, does nothing. So nothing is lost if a gateway
dies, and workers serve what they have without any gateway.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from services.gateway.facts.config_snapshot import DocumentKey, StoredDocument
from services.gateway.models import placement_plan
from services.gateway.models.deployment_store import DeploymentSession, DeploymentStore
from services.gateway.models.placement_plan import Action, Assignment, Held, Machine, Step, Wanted
from shared import errors
from shared.api import inference
from shared.api.deployments import CopyState, Deployment, ModelCopy
from shared.config_documents import ConfigKind, DeploymentDocument
from shared.node import lifecycle
from shared.protocol.directory import Announcement, Directory, DirectoryEntry, ModelOffer
from shared.rpc import RpcClient
from shared.telemetry import logs
from shared.types import ModelName, NodeId, Role

ROUND_SECONDS = 2.0
#: A machine that refused a model is asked again.
REFUSAL_SECONDS = 300.0
#: Workers answer at once; a load takes longer, and goes on when nobody waits for it.
_ORDER_SECONDS = 5.0
#: Of one round.
_MOST_ORDERS = 64

_log = logs.get(part="deployments")


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """The deployments and machines as this gateway sees them."""

    documents: dict[ModelName, DeploymentDocument]
    entries: tuple[DirectoryEntry, ...]

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        return tuple(
            Wanted(name, None if each.copies == "all" else each.copies, each.labels, each.nodes, each.preload)
            for name, each in self.documents.items()
        )

    @property
    def machines(self) -> tuple[Machine, ...]:
        return tuple(_machine(entry.announcement) for entry in self.entries)


#: Returns what decides how much memory the model of a source needs; None if nobody knows before it is there.
FindFacts = Callable[[str], inference.ModelFacts | None]
#: Returns the documents of the current configuration.
ReadDocuments = Callable[[], Mapping[DocumentKey, StoredDocument]]


@dataclass(slots=True)
class Deployments:
    """``run`` it in each gateway."""

    nodes: Directory
    rpc: RpcClient
    store: DeploymentStore
    read_documents: ReadDocuments
    find_facts: FindFacts
    clock: Callable[[], float] = time.monotonic
    #: Why machines refused, and until when that counts.
    _refusals: dict[tuple[NodeId, ModelName], tuple[str, float]] = field(default_factory=dict)

    def view(self) -> DeploymentView:
        documents = {
            ModelName(name): stored.body
            for (kind, name), stored in self.read_documents().items()
            if kind is ConfigKind.DEPLOYMENT and isinstance(stored.body, DeploymentDocument)
        }
        alive = (entry for entry in self.nodes.entries(Role.WORKER) if entry.alive and not entry.announcement.draining)
        return DeploymentView(documents, tuple(alive))

    async def list(self, name: ModelName | None) -> tuple[Deployment, ...]:
        """Raises Unavailable."""
        view, refusals = self.view(), await self.store.read_refusals()
        machines = view.machines
        assignments = (placement_plan.assign(each, machines, refusals) for each in view.wanted if name in {None, each.name})
        return tuple(_describe(each, view) for each in assignments)

    async def run(self) -> None:
        """Work for ever, while this gateway has the lock."""
        while True:
            try:
                async with self.store.leadership() as session:
                    await self._lead(session)
            except errors.Unavailable as error:
                _log.warning("deployments interrupted", reason=error.message)
            await asyncio.sleep(ROUND_SECONDS)

    async def _lead(self, session: DeploymentSession) -> None:
        while True:
            if await session.take():
                await self.step()
            await asyncio.sleep(ROUND_SECONDS)

    async def step(self) -> None:
        """Order what is left to do. Raises Unavailable."""
        now, view = self.clock(), self.view()
        self._refusals = {key: each for key, each in self._refusals.items() if each[1] > now and key[1] in view.documents}
        machines = view.machines
        assignments = [placement_plan.assign(each, machines, self._reasons()) for each in view.wanted]
        paused = {name for name, document in view.documents.items() if document.paused}
        actions = [each for each in placement_plan.plan(assignments, machines) if each.name not in paused][:_MOST_ORDERS]
        async with lifecycle.background() as tasks:
            for order in [tasks.create_task(self._carry_out(action, view.documents)) for action in actions]:
                await order
        if view.documents or self._refusals:
            await self.store.share(self._reasons())

    def _reasons(self) -> placement_plan.Refusals:
        return {key: reason for key, (reason, _) in self._refusals.items()}

    async def _carry_out(self, action: Action, documents: dict[ModelName, DeploymentDocument]) -> None:
        try:
            problem = await self._order(action, documents.get(action.name))
        # What an owner refuses, the next announcement says, and also when they accept it again.
        except (errors.PeerError, errors.NotAllowed) as error:
            _log.info("order failed", step=action.step, model=action.name, worker=action.node, reason=error.message)
            return
        except errors.AimeshError as error:
            problem = error.message
        if problem:
            _log.warning("order refused", step=action.step, model=action.name, worker=action.node, reason=problem)
            self._refusals[action.node, action.name] = problem, self.clock() + REFUSAL_SECONDS

    async def _order(self, action: Action, document: DeploymentDocument | None) -> str:
        """Return why the worker can't; empty if it can. Raises what the call raises."""
        match action.step:
            case Step.FETCH:
                assert document is not None, "only what a document wants is fetched"
                if problem := await self._find_misfit(action.node, document.source):
                    return problem
                order = inference.EnsureModel(action.name, document.source, inference.Assignment(document.context, document.slots))
                answer = await self.rpc.call(inference.ensure_model, order, to=action.node, deadline_seconds=_ORDER_SECONDS)
                return answer.problem
            case Step.LOAD:
                load = inference.LoadModel(action.name)
                await self.rpc.call(inference.load_model, load, to=action.node, deadline_seconds=_ORDER_SECONDS)
            case Step.REMOVE:
                remove = inference.RemoveModel(action.name)
                await self.rpc.call(inference.remove_model, remove, to=action.node, deadline_seconds=_ORDER_SECONDS)
        return ""

    async def _find_misfit(self, node: NodeId, source: str) -> str:
        """Return why the model can't be loaded there. Raises what the call raises."""
        if (facts := self.find_facts(source)) is None:
            return ""
        answer = await self.rpc.call(inference.plan_models, inference.PlanModels((facts,)), to=node, deadline_seconds=_ORDER_SECONDS)
        return next((fit.detail for fit in answer.fits if fit.fit is inference.Fit.NO), "")


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


_STATES = {
    Held.NOTHING: CopyState.COMING,
    Held.COMING: CopyState.COMING,
    Held.STORED: CopyState.STORED,
    Held.LOADED: CopyState.LOADED,
}


def _describe(assignment: Assignment, view: DeploymentView) -> Deployment:
    name = assignment.wanted.name
    machines = {machine.node: machine for machine in view.machines}
    pulls = {(entry.node, pull.name): pull for entry in view.entries for pull in entry.announcement.pulls}
    copies = list[ModelCopy]()
    for node in assignment.nodes:
        state = _STATES[machines[node].held.get(name, Held.NOTHING)]
        pull = pulls.get((node, name))
        numbers = () if pull is None else (pull.done_bytes, pull.total_bytes, pull.bytes_per_second)
        copies.append(ModelCopy(node, state, *numbers))
    copies += (ModelCopy(node, CopyState.REFUSED, reason=reason) for node, reason in assignment.reasons.items())
    return Deployment(name, view.documents[name], tuple(copies), assignment.short)
