"""The names under which callers know models: routes, aliases and the default. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from services.gateway.facts.model_routes import Route
from services.gateway.facts.unreadable import Unreadable
from shared.config_documents import is_pattern
from shared.models.version_names import STABLE
from shared.types import ModelName, TenantId

#: Ollama's tag for a model without a version.
_LATEST = ":latest"
#: In the name of a version by its digest.
_DIGEST = "@sha256:"


@dataclass(frozen=True, slots=True)
class NamedVersion:
    """What may stand behind the @ of a model's name, and the version that it means."""

    name: str
    organization: TenantId | None
    #: A channel, or the digest of a manifest.
    word: str
    #: None: a channel that serves nothing.
    version: int | None
    #: Of a channel: what a rollback takes it to, and what it will serve once that is loaded.
    previous_version: int | None = None
    next_version: int | None = None
    #: It must not run any more.
    is_revoked: bool = False


@dataclass(frozen=True, slots=True)
class VersionedNames:
    """The names of versions of models, which workers serve as ``llama3@7``."""

    #: Such as ``llama3``, ``llama3@canary`` and ``llama3@sha256:…``.
    aliases: Mapping[str, str] = field(default_factory=dict)
    #: Model -> the account or organization that it belongs to. The mesh's models are not here.
    owners: Mapping[str, TenantId] = field(default_factory=dict)
    #: The digest of the manifest of each version that may be loaded, by its served name.
    digests: Mapping[ModelName, str] = field(default_factory=dict)
    #: By names such as ``llama3@stable``.
    channels: Mapping[str, NamedVersion] = field(default_factory=dict)
    #: The served names of versions that must not run any more.
    revoked: frozenset[ModelName] = frozenset()

    @classmethod
    def of(cls, rows: Iterable[NamedVersion]) -> "VersionedNames":
        aliases, owners = dict[str, str](), dict[str, TenantId]()
        digests, channels, revoked = dict[ModelName, str](), dict[str, NamedVersion](), set[ModelName]()
        for row in rows:
            name, served = f"{row.name}@{row.word}", f"{row.name}@{row.version}"
            if row.is_revoked:
                revoked.add(ModelName(served))
                continue
            if row.version is not None:
                aliases[name] = served
                if row.word == STABLE:
                    aliases[row.name] = served
            if row.organization is not None:
                owners[row.name] = row.organization
            if _DIGEST in name:
                digests[ModelName(served)] = row.word
            else:
                channels[name] = row
        return cls(aliases, owners, digests, channels, frozenset(revoked))


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
    #: See ``VersionedNames``.
    owners: Mapping[str, TenantId] = field(default_factory=dict)
    #: The routes and aliases that this gateway can't read, by name.
    unreadable: Mapping[str, Unreadable] = field(default_factory=dict)
    #: Models of others, whose versions don't exist for the caller.
    hidden: frozenset[str] = frozenset()
    #: See ``VersionedNames``.
    revoked: frozenset[ModelName] = frozenset()

    def seen_by(self, tenant: TenantId | None) -> "ModelNames":
        """Return the names that exist for an account or organization; None: for everybody."""
        if not self.owners:
            return self
        hidden = frozenset(model for model, owner in self.owners.items() if owner != tenant)
        aliases = {alias: name for alias, name in self.aliases.items() if _model_of(name) not in hidden}
        return replace(self, aliases=aliases, hidden=hidden)

    def hides(self, name: str) -> bool:
        """Return whether this is a version of a model of others, or a revoked one."""
        return name in self.revoked or (bool(self.hidden) and _model_of(name) in self.hidden)

    def aliases_of(self, model: ModelName) -> tuple[str, ...]:
        """Digests are left out: nobody wants to read them in a list."""
        return tuple(alias for alias, name in self.aliases.items() if name == model and _DIGEST not in alias)

    def find_route(self, wanted: ModelName | None) -> Route | None:
        """Return the route that a request names, or the default if it names none; None for a served model or an alias. Raises
        ConfigUnreadable."""
        requested = wanted or self.default or ""
        for name in spellings(requested):
            if name not in self.routes and (unreadable := self.unreadable.get(name)) is not None:
                raise unreadable.problem()
        return next((self.routes[name] for name in spellings(requested) if name in self.routes), None)

    def find_pattern(self, requested: ModelName) -> Route | None:
        """Return the route with the longest pattern for a name that is not served; None for the alias of a model that isn't. Raises
        ConfigUnreadable."""
        if not self.aliases.keys().isdisjoint(spellings(requested)):
            return None
        found = (name for name in (*self.routes, *self.unreadable) if is_pattern(name) and requested.startswith(name[:-1]))
        longest = max(found, key=len, default="")
        if longest in self.unreadable:
            raise self.unreadable[longest].problem()
        return self.routes.get(longest)

    def public_name(self, wanted: ModelName | None, model: ModelName) -> ModelName:
        """Return the name under which a caller knows the served model that it asked for."""
        requested = wanted or self.default
        named = () if requested is None else spellings(requested)
        aliases = self.aliases_of(model)
        asked = next((alias for alias in aliases if alias in named), aliases[0] if self.only_routes and aliases else model)
        return ModelName(asked)

    def resolve(self, name: ModelName) -> ModelName:
        return ModelName(self.aliases.get(name, name))


def _model_of(name: str) -> str:
    """Return the model of a version's name; empty for another name: anybody may have called a model like the file of a worker."""
    model, at, _ = name.partition("@")
    return model if at else ""


def spellings(name: str) -> tuple[str, ...]:
    if name.endswith(_LATEST):
        return name, name.removesuffix(_LATEST)
    return (name,) if ":" in name else (name, name + _LATEST)
