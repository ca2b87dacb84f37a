"""What jobs ask about their owners and models, answered by the configuration and the workers of now."""

from collections.abc import Awaitable, Callable

import msgspec

from services.gateway.requests.target_choice import TargetSearch
from services.gateway.scheduling import routing
from shared import errors
from shared.api.auth import IdentifyOwner, Principal
from shared.api.gateway import ServedModel
from shared.types import ModelName


class BatchCapacity(msgspec.Struct, frozen=True):
    """What a model's workers have for lines of batches."""

    #: Those that run lines of this gateway, and free ones.
    slots: int
    waits_live: bool


class JobRules:
    """Every answer is of now: nothing that a job has stored grants rights."""

    def __init__(
        self,
        search: TargetSearch,
        identify: Callable[[IdentifyOwner], Awaitable[Principal]],
        catalogue: Callable[[Principal], tuple[ServedModel, ...]],
    ) -> None:
        """``catalogue`` returns the models that a caller may use, the default first."""
        self._search, self._catalogue = search, catalogue
        #: Raises NotAuthenticated or NotAllowed if the owner has no rights any more.
        self.identify = identify

    def may_run(self, owner: Principal, model: ModelName) -> bool:
        """Return whether the owner may name the model, whose workers may be away. Raises NotReachable while that isn't known."""
        terms = self._search.source.config.terms_of(owner)
        if not terms.policy.allows_name(model) or not routing.may_name(owner, model, terms.names):
            return False
        if terms.names.find_route(model) or terms.names.find_pattern(model):
            return True
        try:
            self._search.resolve(model, terms.names, terms.policy)
        except errors.UnknownModel:
            return False
        except errors.NotReachable as error:
            # Otherwise it is a model that the mesh has had.
            if error.retry_after_seconds is not None:
                raise
        return True

    def choose_model(self, owner: Principal, named: str | None) -> ModelName:
        """Return the model that a request names, or the default one. Raises UnknownModel."""
        served = self._catalogue(owner) if named is None else ()
        model = served[0].name if served else ModelName(named or "")
        if not model or not self.may_run(owner, model):
            raise errors.UnknownModel(f"there is no model {model[:200]!r} that you may use", hint="see GET /v1/models")
        return model

    def runs_as_batch(self, owner: Principal, wants_flex: bool | None) -> bool:
        """Return whether a request waits behind live ones, if it wants to or says nothing. Raises PolicyForbidden."""
        return self._search.source.config.terms_of(owner).runs_as_batch(wants_flex)

    def line_limit_of(self, owner: Principal) -> int | None:
        """Return how many lines may wait; None: any number."""
        return self._search.source.config.limits.plan_of(owner.tier).queued_lines

    def file_limit_of(self, owner: Principal) -> int | None:
        """Return how many bytes all files may have; None: any number."""
        return self._search.source.config.limits.plan_of(owner.tier).file_bytes

    def price_id_of(self, model: ModelName) -> int | None:
        """Return the price that a job keeps; None: each line pays that of its day, because each target of the route has its own."""
        names, ledger = self._search.source.config.names, self._search.ledger
        route = names.find_route(model)
        if route is not None:
            return ledger.price_id_of(ModelName(route.name)) if route.has_own_price else None
        return ledger.price_id_of(names.resolve(model))

    def find_capacity(self, model: ModelName) -> BatchCapacity | None:
        """Return None if no worker serves the model."""
        names = self._search.source.config.names
        try:
            route = names.find_route(model)
        except errors.ConfigUnreadable:
            return None  # another gateway may read the route, and run its lines
        found = self._search.dispatch.batch_room(frozenset({names.resolve(model)}) if route is None else route.models)
        return None if found is None else BatchCapacity(*found)
