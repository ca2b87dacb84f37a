"""Finds models in the catalog, on the mesh and on the hub, and asks the workers where they fit."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from services.gateway.configuration.live_configuration import LiveConfiguration
from services.gateway.models import catalog
from services.gateway.models.catalog import Catalog
from services.gateway.models.hub import Hub
from shared import errors
from shared.api import inference
from shared.api import model_search as api
from shared.api.auth import Principal
from shared.api.gateway import ServedModel
from shared.api.inference import Fit, ModelFacts, ModelFit
from shared.api.model_search import FoundModel, MachineFit
from shared.config_documents import CatalogDocument, ConfigKind
from shared.protocol.directory import Directory, DirectoryEntry
from shared.rpc import RpcCall, RpcClient, serves
from shared.rpc.audit_reporting import AuditReporting
from shared.types import Role

#: For the answers of all workers.
PLAN_SECONDS = 3.0
MAX_WORKERS = 64
_RANKS = {Fit.YES: 0, Fit.PARTLY: 1, Fit.UNKNOWN: 2, Fit.NO: 3}


@dataclass(frozen=True, slots=True)
class ModelSearch:
    live: LiveConfiguration
    rpc: RpcClient
    nodes: Directory
    #: None if the settings forbid to ask it.
    hub: Hub | None
    #: The models that a caller may use now.
    list_served: Callable[[Principal], Iterable[ServedModel]]
    audit_reporting: AuditReporting
    builtin: Catalog

    @property
    def catalog(self) -> Catalog:
        return {**self.builtin, **self.live.config.catalog}

    def find_facts(self, source: str) -> ModelFacts | None:
        """Return what the catalog knows about the model of a source."""
        known = catalog.find(self.catalog, source)
        return None if known is None else catalog.facts(known[1])

    def find_source(self, name: str) -> str:
        """Return the catalog's source of a model. Raises UnknownModel."""
        if (known := catalog.find(self.catalog, name)) is None:
            raise self._unknown_model(name)
        return known[1].source

    def _unknown_model(self, name: str) -> errors.UnknownModel:
        near = " or ".join(catalog.nearest(self.catalog, name))
        hint = f"did you mean {near}?" if near else "see `aicli models search`, or name a source such as hf:OWNER/REPO:QUANT"
        return errors.UnknownModel(f"no model is called {name[:80]!r}", hint=hint)

    @serves(api.search_models)
    async def search(self, request: api.SearchModels, call: RpcCall) -> api.FoundModels:
        served, words = {model.name: model for model in self.list_served(call.principal)}, request.text.lower().split()
        rows = [catalog.found(name, model, is_served=name in served) for name, model in catalog.search(self.catalog, request.text)]
        others = [name for name in served if name not in self.catalog and all(word in name.lower() for word in words)]
        rows += (FoundModel(name=name, origin="mesh", is_served=True) for name in others)
        notes: tuple[str, ...] = ()
        if self.hub is not None and request.hub and words:
            try:
                rows += await self.hub.search(request.text, request.limit)
            except errors.AimeshError:
                notes = ("Hugging Face does not answer",)
        rows = rows[: request.limit]
        if request.fits:
            fits = iter(await self._ask_workers([catalog.facts(row.model) for row in rows if row.model is not None]))
            rows = [row if row.model is None else msgspec.structs.replace(row, fits=next(fits)) for row in rows]
        return api.FoundModels(tuple(rows), notes)

    @serves(api.plan_model)
    async def plan(self, request: api.PlanModel, call: RpcCall) -> FoundModel:
        """Raises UnknownModel, and NotFound for a source that its hub doesn't have."""
        known, problem, header = catalog.find(self.catalog, request.reference), "", b""
        name, model = known or (request.reference, None)
        if model is None and not name.startswith(("hf:", "ollama:", "oci://", "https://")):
            raise self._unknown_model(name)
        try:
            if self.hub is None:
                raise errors.Unavailable("its size isn't known before the download")
            model, file = await self.hub.look_up(name if model is None else model.source, model)
            header = await self.hub.read_header(file)
        except errors.AimeshError as error:
            problem = error.message
            if model is None and not isinstance(error, errors.PeerError):
                raise
        if model is None:
            row = FoundModel(
                name=name,
                origin="hub",
                fits=tuple(_unknown(worker, problem) for worker in self._workers() if worker.alive and not worker.announcement.draining),
            )
        else:
            (fits,) = await self._ask_workers([catalog.facts(model, header)])
            row = msgspec.structs.replace(catalog.found(name, model), origin="catalog" if known else "hub", fits=fits)
        served = {each for model in self.list_served(call.principal) for each in (model.name, *model.aliases)}
        return msgspec.structs.replace(row, is_served=name in served)

    @serves(api.refresh_catalog)
    async def refresh(self, request: api.RefreshCatalog, call: RpcCall) -> api.RefreshedCatalog:
        """Raises NotAllowed if the settings forbid to ask the hub, and Unavailable if it answers nothing."""
        if self.hub is None:
            raise errors.NotAllowed("this gateway may not ask the hub", hint="set MODEL_HUB=on")
        async with asyncio.TaskGroup() as tasks:
            checks = {name: tasks.create_task(_check(self.hub, model)) for name, model in self.catalog.items()}
        results = {name: check.result() for name, check in checks.items()}
        problems = tuple(f"{name}: {result}" for name, result in results.items() if isinstance(result, str))
        if len(problems) == len(results):
            raise errors.Unavailable(f"nothing could be checked; is there a network? {problems[0]}")
        bodies = {(ConfigKind.CATALOG_MODEL, name): body for name, body in results.items() if not isinstance(body, str)}
        author = call.principal.user_id
        done = await self.live.change(lambda _revision, _current: bodies, origin="applied", author=author, note="catalog refresh")
        changed = tuple(name for _, name in done.changed)
        self.audit_reporting.report_action("catalog.refresh", call.principal, target=", ".join(changed)[:200])
        return api.RefreshedCatalog(changed, problems)

    def _workers(self) -> list[DirectoryEntry]:
        return self.nodes.entries(Role.WORKER)[:MAX_WORKERS]

    async def _ask_workers(self, facts: Sequence[ModelFacts]) -> list[tuple[MachineFit, ...]]:
        """Return for each model how it fits the workers, the best first."""
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(self._ask(worker, facts)) for worker in self._workers() if facts]
        return [tuple(sorted((task.result()[position] for task in asked), key=_rank)) for position in range(len(facts))]

    async def _ask(self, worker: DirectoryEntry, facts: Sequence[ModelFacts]) -> Sequence[MachineFit]:
        try:
            if not worker.alive:
                raise errors.Unavailable(f"it is away: {worker.why_gone}")
            if worker.announcement.draining:
                raise errors.Draining("it is shutting down")
            request = inference.PlanModels(tuple(facts))
            answer = await self.rpc.call(inference.plan_models, request, to=worker.node, deadline_seconds=PLAN_SECONDS)
            fits = [_machine_fit(worker, fit) for _, fit in zip(facts, answer.fits, strict=True)]
        except errors.BadRequest as error:
            fits = [_machine_fit(worker, ModelFit(fit=Fit.NO, detail=error.message))] * len(facts)
        except (errors.AimeshError, ValueError) as error:
            fits = [_unknown(worker, getattr(error, "message", "it answered something else"))] * len(facts)
        return fits


async def _check(hub: Hub, model: CatalogDocument) -> CatalogDocument | str:
    """Return the entry with what the hub says, or why there is nothing."""
    try:
        return (await hub.look_up(model.source, model))[0]
    except errors.AimeshError as error:
        return error.message


def _machine_fit(worker: DirectoryEntry, fit: ModelFit) -> MachineFit:
    return MachineFit(**msgspec.structs.asdict(fit), worker=worker.node, accepts_models=worker.announcement.load.accepts_models)


def _unknown(worker: DirectoryEntry, why: str) -> MachineFit:
    return _machine_fit(worker, ModelFit(fit=Fit.UNKNOWN, detail=why))


def _rank(fit: MachineFit) -> tuple[bool, int, bool, int, int, str]:
    return not fit.accepts_models, _RANKS[fit.fit], not fit.on_gpu, -fit.context_tokens, -fit.free_bytes, fit.worker
