"""Lists the models that callers may use, by the configuration and the workers of now."""

from dataclasses import dataclass, field
from uuid import UUID

from services.gateway.facts import policies
from services.gateway.facts.config_snapshot import ConfigSource
from services.gateway.scheduling import routing
from services.gateway.scheduling.dispatch import Dispatch
from shared.api.auth import Principal
from shared.api.gateway import ServedModel, ServedModels
from shared.protocol.directory import Directory
from shared.types import ModelName, Role, TenantId

#: Anonymous callers see only the public models.
_ANONYMOUS = TenantId(UUID(int=0))


@dataclass(frozen=True, slots=True)
class UsableModels:
    source: ConfigSource
    directory: Directory
    dispatch: Dispatch
    #: Build -> scripted tool calls that it got right. A feature fills it.
    right_calls: dict[str, int] = field(default_factory=dict)

    def of(self, caller: Principal | None) -> tuple[ServedModel, ...]:
        """Return the models for this caller, the default first; for an anonymous caller, the public models."""
        tenant = _ANONYMOUS if caller is None else caller.tenant_id
        config = self.source.config
        policy = config.policies.find(None) if caller is None else config.policies.of(caller)
        names = config.names_under(policy, tenant)
        workers = policies.open_to(tenant, policy, self.directory.usable(Role.WORKER))
        startable = () if caller is None else self.dispatch.worker_stats.starts.pools
        served = routing.catalogue(workers, names, policy.allows_name, startable, self.right_calls)
        return served if caller is None else tuple(model for model in served if routing.may_name(caller, model.name, names))

    def listed(self, caller: Principal | None) -> ServedModels:
        """Return them as ``gateway.listModels`` does."""
        models = self.of(caller)
        if caller is None:
            return ServedModels(models)
        policy = self.source.config.policies.of(caller)
        return routing.listed(models, policies.open_to(caller.tenant_id, policy, self.directory.entries(Role.WORKER)))

    def may_name(self, caller: Principal, model: ModelName) -> bool:
        return routing.may_name(caller, model, self.source.config.names)

    def served(self) -> tuple[ModelName, ...]:
        """Return all models of the mesh."""
        return routing.served(self.directory.usable(Role.WORKER), self.source.config.names.seen_by(None))
