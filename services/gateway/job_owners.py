"""Answers what jobs ask, by the configuration and the workers of now."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from services.gateway.job_rules import BatchCapacity
from services.gateway.requests.target_choice import TargetSearch
from services.gateway.scheduling import routing
from shared import errors
from shared.api.auth import IdentifyOwner, Principal
from shared.api.gateway import ServedModel
from shared.types import ModelName


@dataclass(frozen=True, slots=True)
class JobOwners:
    """See ``JobRules``."""

    search: TargetSearch
    ask_auth: Callable[[IdentifyOwner], Awaitable[Principal]]
    #: Returns the models that a caller may use, the default first.
    catalogue: Callable[[Principal], tuple[ServedModel, ...]]

    async def identify(self, owner: IdentifyOwner) -> Principal:
        return await self.ask_auth(owner)

    def may_run(self, owner: Principal, model: ModelName) -> bool:
        config = self.search.source.config
        policy, names = config.policies.of(owner), config.names.seen_by(owner.tenant_id)
        if not policy.allows_name(model) or not routing.may_name(owner, model, names):
            return False
        if names.find_route(model) or names.find_pattern(model):
            return True
        try:
            self.search.resolve(model, names, policy)
        except errors.UnknownModel:
            return False
        except errors.NotReachable as error:
            # Otherwise it is a model that the mesh has had.
            if error.retry_after_seconds is not None:
                raise
        return True

    def choose_model(self, owner: Principal, named: str | None) -> ModelName:
        served = self.catalogue(owner) if named is None else ()
        model = served[0].name if served else ModelName(named or "")
        if not model or not self.may_run(owner, model):
            raise errors.UnknownModel(f"there is no model {model[:200]!r} that you may use", hint="see GET /v1/models")
        return model

    def runs_as_batch(self, owner: Principal, wants_flex: bool | None) -> bool:
        return self.search.source.config.terms_of(owner).runs_as_batch(wants_flex)

    def line_limit_of(self, owner: Principal) -> int | None:
        return self.search.source.config.limits.plan_of(owner.tier).queued_lines

    def file_limit_of(self, owner: Principal) -> int | None:
        return self.search.source.config.limits.plan_of(owner.tier).file_bytes

    def price_id_of(self, model: ModelName) -> int | None:
        names, ledger = self.search.source.config.names, self.search.ledger
        route = names.find_route(model)
        if route is not None:
            return ledger.price_id_of(ModelName(route.name)) if route.has_own_price else None
        return ledger.price_id_of(names.resolve(model))

    def find_capacity(self, model: ModelName) -> BatchCapacity | None:
        names = self.search.source.config.names
        try:
            route = names.find_route(model)
        except errors.ConfigUnreadable:
            return None  # another gateway may read the route, and run its lines
        found = self.search.dispatch.batch_room(frozenset({names.resolve(model)}) if route is None else route.models)
        return None if found is None else BatchCapacity(*found)
