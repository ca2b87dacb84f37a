"""The names under which callers know models: routes, aliases and the default. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.gateway.facts.model_routes import Route
from shared.config_documents import is_pattern
from shared.types import ModelName

#: Ollama's tag for a model without a version.
_LATEST = ":latest"


@dataclass(frozen=True, slots=True)
class ModelNames:
    """Aliases and default of the served models."""

    aliases: Mapping[str, str]
    #: None: the first served model.
    default: str | None
    #: Callers may not name served models, only routes.
    only_routes: bool = False
    #: Routes that do more than an alias.
    routes: Mapping[str, Route] = field(default_factory=dict)

    def aliases_of(self, model: ModelName) -> tuple[str, ...]:
        return tuple(alias for alias, name in self.aliases.items() if name == model)

    def find_route(self, wanted: ModelName | None) -> Route | None:
        """Return the route that a request names, or the default if it names none; None for a served model or an alias."""
        requested = wanted or self.default or ""
        return next((self.routes[name] for name in spellings(requested) if name in self.routes), None)

    def find_pattern(self, requested: ModelName) -> Route | None:
        """Return the route with the longest pattern for a name that is not served; None for the alias of a model that isn't."""
        if not self.aliases.keys().isdisjoint(spellings(requested)):
            return None
        found = (name for name in self.routes if is_pattern(name) and requested.startswith(name[:-1]))
        return self.routes.get(max(found, key=len, default=""))

    def public_name(self, wanted: ModelName | None, model: ModelName) -> ModelName:
        """Return the name under which a caller knows the served model that it asked for."""
        requested = wanted or self.default
        named = () if requested is None else spellings(requested)
        aliases = self.aliases_of(model)
        asked = next((alias for alias in aliases if alias in named), aliases[0] if self.only_routes and aliases else model)
        return ModelName(asked)

    def resolve(self, name: ModelName) -> ModelName:
        return ModelName(self.aliases.get(name, name))


def spellings(name: str) -> tuple[str, ...]:
    if name.endswith(_LATEST):
        return name, name.removesuffix(_LATEST)
    return (name,) if ":" in name else (name, name + _LATEST)
