"""The models that may serve a request, what is sent to each, and the workers that it has tried."""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Generic, TypeVar

import msgspec

from services.gateway.billing.reservations import HeldCredits
from services.gateway.facts.model_routes import Route
from services.gateway.facts.request_record import RouteUse
from services.gateway.facts.upstream_prices import TargetHold, TargetSpending, UpstreamPrices
from services.gateway.facts.worker_requirements import WorkerRequirements
from services.gateway.idempotency.idempotency_keys import OrphanedKeyUse
from services.gateway.scheduling.worker_claims import Claim
from shared import errors
from shared.api.generation import Usage
from shared.config_documents import ModerationFormat
from shared.types import MicroCredits, ModelName, RequestStatus

#: A long queue is no failure of its target, nor is our own connection.
_NO_FAULTS = (errors.Overloaded, *errors.OWN_CONNECTION_LOST)

Call = TypeVar("Call")


class ServingTarget(msgspec.Struct, frozen=True):
    """A model that may serve a request."""

    model: ModelName
    #: None without a route.
    route: RouteUse | None = None
    #: These two: see ``RouteTarget``.
    ceiling_micro: MicroCredits | None = None
    format: ModerationFormat | None = None
    #: See ``Route``.
    cache_seconds: int | None = None

    @property
    def spending_key(self) -> tuple[str, str]:
        """Return route and target, under which upstream money is counted."""
        return ("", self.model) if self.route is None else (self.route.route, self.route.target)


class SharedClaims:
    """The workers of an answer that several requests may read, and what they cost upstream. Each micro-credit is in one row: in that of the
    request that asked the workers, however far the others have read, and in those of the others once it has ended."""

    def __init__(self) -> None:
        #: In their order.
        self.claims: list[tuple[ServingTarget, Claim]] = []
        #: By claim: what is known to be due, and what of it is in rows.
        self._due: tuple[int, ...] = ()
        self._counted: tuple[int, ...] = ()
        self._is_left = False

    def count(self, due: Sequence[int], *, asked_workers: bool) -> list[int]:
        """Return what of these costs belongs in the row of a request that ends."""
        self._due = tuple(map(max, zip_longest(self._due, due, fillvalue=0)))
        self._is_left = self._is_left or asked_workers
        if not self._is_left:
            return []
        counted, self._counted = self._counted, self._due
        return [now - before for now, before in zip_longest(self._due, counted, fillvalue=0)]


class TargetAttempts(msgspec.Struct):
    """The targets and workers that a request has tried."""

    #: The last one tried; before that, the model that was found. None until then.
    target: ServingTarget | None = None
    #: How a route serves the request; None without one.
    route: RouteUse | None = None
    #: In their order.
    claims: list[tuple[ServingTarget, Claim]] = []
    #: Those that write the answer it gets; None if it can't share one. And whether others asked them.
    shared: SharedClaims | None = None
    has_joined: bool = False
    #: How long it waited for workers that were starting.
    start_wait_seconds: float = 0.0
    #: The target that was drawn for it has failed, and another one was tried.
    has_fallen_back: bool = False

    def try_target(self, target: ServingTarget) -> None:
        self.target, self.route = target, target.route

    def add_claim(self, target: ServingTarget, claim: Claim) -> None:
        """Record that a worker is about to run the request."""
        self.claims.append((target, claim))
        self.start_wait_seconds += claim.start_wait_seconds

    def leave_target(self, error: errors.AimeshError) -> None:
        """Record that another target must serve the request."""
        is_drawn = self.route is not None and self.route.target == self.route.variant
        self.has_fallen_back = self.has_fallen_back or (is_drawn and not isinstance(error, _NO_FAULTS))

    def find_fault(self, status: RequestStatus, failure: errors.AimeshError | None, *, complete: bool, cached: bool) -> bool | None:
        """Return whether the target that was drawn for the request has failed; None if that isn't known, or not the target's doing."""
        if self.has_fallen_back:
            return True
        if self.route is None or self.route.target != self.route.variant or cached:
            return None
        if status is RequestStatus.SUCCESS:
            return False
        is_no_worker = isinstance(failure, errors.NotReachable)
        is_its_doing = status in {RequestStatus.ERROR, RequestStatus.TIMEOUT} and not isinstance(failure, _NO_FAULTS)
        # A complete answer that can't be checked is no fault of its target.
        return True if is_its_doing and not complete and (self.claims or is_no_worker) else None

    def spending(
        self, upstream: UpstreamPrices, usage: Usage, likely_prompt_tokens: int, *, has_delivered: bool
    ) -> tuple[TargetSpending, ...]:
        """Return what it has cost upstream: the last attempt by its usage, earlier ones by their prompt if it was read."""
        # Other servers count the prompt at the end only.
        prompt = Usage(likely_prompt_tokens, 0)
        whole = msgspec.structs.replace(usage, prompt_tokens=usage.prompt_tokens or likely_prompt_tokens) if has_delivered else None

        def costs(claims: Sequence[tuple[ServingTarget, Claim]], last: Usage | None) -> list[int]:
            used = [prompt if claim.was_accepted else None for _, claim in claims]
            if claims and last is not None:
                used[-1] = last
            return [
                0 if one is None or claim.provider is None else upstream.cost(target.model, one)
                for one, (target, claim) in zip(used, claims, strict=True)
            ]

        if self.shared is None:
            return _spent(self.claims, costs(self.claims, whole))
        answering = self.shared.claims
        # Those of targets before this one.
        failed = [found for found in self.claims if found not in answering]
        due = self.shared.count(costs(answering, whole), asked_workers=not self.has_joined)
        return (*_spent(failed, costs(failed, None)), *_spent(answering, due))


def _spent(claims: Sequence[tuple[ServingTarget, Claim]], costs: Sequence[int]) -> tuple[TargetSpending, ...]:
    found = zip(claims, costs, strict=False)
    return tuple(TargetSpending(*target.spending_key, MicroCredits(micro)) for (target, _), micro in found if micro)


class TargetCall(msgspec.Struct, Generic[Call], frozen=True):
    """What to send to the workers of one target."""

    target: ServingTarget
    requirements: WorkerRequirements
    call: Call


class TargetChoice(msgspec.Struct, frozen=True):
    """The models that may serve a request, in the order in which they are tried."""

    targets: tuple[ServingTarget, ...]
    #: As the caller knows it.
    model: ModelName
    upstream: UpstreamPrices
    #: None without a route.
    route: Route | None = None
    #: What stays at the target that was drawn for it; empty without a route.
    unit: bytes = b""
    #: Whether the caller may know which target serves it.
    shows_target: bool = True

    @property
    def version(self) -> ModelName | None:
        """Return the version of a pushed model that serves it, if the caller may know; of a route, its own headers tell."""
        served = self.targets[0].model
        return served if self.route is None and self.shows_target and "@" in served else None

    @property
    def models(self) -> tuple[ModelName, ...]:
        return tuple([target.model for target in self.targets])

    def continuing(self, key_use: OrphanedKeyUse) -> "TargetChoice":
        """Keep to the model that began the answer: another one would write another text. Raises AnswerGone if the caller has a part, and
        that model is no target any more."""
        if key_use.model is None:
            return self
        targets = tuple(target for target in self.targets if target.model == key_use.model)
        if not targets and key_use.is_resumed:
            raise errors.AnswerGone(
                "the gateway that ran this request is gone, and the model that began the answer may not continue it",
                hint="send the request again without Last-Event-ID",
            )
        return msgspec.structs.replace(self, targets=targets or self.targets)

    def affordable(self, held: HeldCredits) -> "TargetChoice":
        """Raise NotReachable if all that the credits cover have reached their ceilings."""
        if len(self.targets) == 1 and not held.over_ceiling:
            return self
        covered = tuple(target for target in self.targets if target.model in held.prices)
        left = tuple(target for target in covered if target.route is None or target.route.target not in held.over_ceiling)
        if not left:
            names = ", ".join(sorted(held.over_ceiling))
            raise errors.NotReachable(
                f"{names} may cost no more today, and no other target is left", hint="retry tomorrow, or ask for a higher daily_ceiling"
            )
        return msgspec.structs.replace(self, targets=left)

    def find_hold(self, target: ServingTarget, most: Usage) -> TargetHold | None:
        """Return what the request may cost at the target; None without a ceiling."""
        if target.ceiling_micro is None:
            return None
        return TargetHold(*target.spending_key, target.model, self.upstream.cost(target.model, most), target.ceiling_micro)

    def requirements(self, common: WorkerRequirements) -> tuple[WorkerRequirements, ...]:
        if len(self.targets) == 1 and common.model == self.targets[0].model:
            return (common,)
        *others, last = self.models
        spill = None if self.route is None else self.route.spill_after_seconds
        return (
            *(
                msgspec.structs.replace(
                    common, model=model, has_alternative=True, most_wait_seconds=common.most_wait_seconds if spill is None else spill
                )
                for model in others
            ),
            msgspec.structs.replace(common, model=last),
        )

    def calls(self, common: WorkerRequirements, call: Callable[[ServingTarget], Call]) -> tuple[TargetCall[Call], ...]:
        requirements = self.requirements(common)
        return tuple(TargetCall(target, needs, call(target)) for target, needs in zip(self.targets, requirements, strict=True))
