"""Finds what else on the mesh has the name of a model that somebody pushes."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from services.gateway.facts import model_names
from services.gateway.facts.config_snapshot import ConfigSource
from shared.config_documents import is_pattern
from shared.models import version_names
from shared.protocol.directory import Directory
from shared.types import ModelName, Role


@dataclass(frozen=True, slots=True)
class NameUse:
    """What has a name already, for people; empty if nothing has it."""

    #: Requests for the name get this instead of the pushed model.
    hidden_by: str = ""
    #: The mesh serves, routes or deploys something else under the name, or calls it so.
    used_by: str = ""


@dataclass(frozen=True, slots=True)
class NameUses:
    source: ConfigSource
    nodes: Directory
    list_deployments: Callable[[], frozenset[ModelName]]
    #: Reads what other gateways have changed. Raises Unavailable.
    reload: Callable[[], Awaitable[object]]

    async def find(self, model: ModelName) -> NameUse:
        await self.reload()
        hidden_by = self._find_hiding(model)
        return NameUse(hidden_by, hidden_by or self._find_other(model))

    def _find_hiding(self, model: ModelName) -> str:
        names = self.source.config.names
        for name in model_names.spellings(model):
            target = names.aliases.get(name, name)
            if version_names.strip_version(ModelName(target)) not in {name, model}:
                return f"{name} is an alias of {target}"
            route = names.routes.get(name)
            if route is not None and model not in map(version_names.strip_version, route.models):
                return f"{name} is a route"
        return ""

    def _find_other(self, model: ModelName) -> str:
        names, spelled = self.source.config.names, model_names.spellings(model)
        if pattern := next((each for each in names.routes if is_pattern(each) and model.startswith(each[:-1])), None):
            return f"the route {pattern} has it"
        if names.default in spelled or any(name in names.routes for name in spelled):
            return "it is a route, or the default model"
        if model in map(version_names.strip_version, self.list_deployments()):
            return "it is deployed"
        workers = self.nodes.entries(Role.WORKER)
        if any(offer.name in spelled for worker in workers for offer in worker.announcement.models):
            return "a worker serves a model with this name"
        return ""
