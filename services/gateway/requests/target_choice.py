"""The targets that may serve a request, in the order in which they are tried. Pure."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from services.gateway import prompt_admission
from services.gateway.billing.ledger import HeldCredits
from services.gateway.billing.request_record import RouteUse
from services.gateway.config_snapshot import ConfigSnapshot
from services.gateway.idempotency.idempotency_keys import NewKeyUse, Orphaned
from services.gateway.limits.upstream_prices import TargetHold, UpstreamPrices
from services.gateway.requests.active_request import ServingTarget
from services.gateway.scheduling import route_choice
from services.gateway.scheduling.policies import Policy
from services.gateway.scheduling.route_choice import POLICY_REASONS, DropReason, Route, RouteDecision
from services.gateway.scheduling.routing import ModelNames, WorkerRequirements
from shared import errors
from shared.api.auth import Principal
from shared.api.generation import Usage
from shared.protocol.directory import DirectoryEntry
from shared.types import ModelName

Call = TypeVar("Call")


@dataclass(frozen=True, slots=True)
class TargetCall(Generic[Call]):
    """What to send to the workers of one target."""

    target: ServingTarget
    requirements: WorkerRequirements
    call: Call


@dataclass(frozen=True, slots=True)
class TargetChoice:
    """The models that may serve a request, in the order in which they are tried."""

    targets: tuple[ServingTarget, ...]
    #: None without a route.
    route: Route | None = None

    @property
    def models(self) -> tuple[ModelName, ...]:
        return tuple(target.model for target in self.targets)

    def continuing(self, claim: NewKeyUse | Orphaned | None) -> "TargetChoice":
        """Keep to the model that began the answer: another one would write another text. Raises AnswerGone if the caller has a part, and
        that model is no target any more."""
        if not isinstance(claim, Orphaned) or claim.model is None:
            return self
        targets = tuple(target for target in self.targets if target.model == claim.model)
        if not targets and claim.is_resumed:
            raise errors.AnswerGone(
                "the gateway that ran this request is gone, and the model that began the answer may not continue it",
                hint="send the request again without Last-Event-ID",
            )
        return replace(self, targets=targets or self.targets)

    def affordable(self, held: HeldCredits) -> "TargetChoice":
        """Raise NotReachable if all that the credits cover have reached their ceilings."""
        covered = tuple(target for target in self.targets if target.model in held.prices)
        left = tuple(target for target in covered if target.route is None or target.route.target not in held.over_ceiling)
        if not left:
            names = ", ".join(sorted(held.over_ceiling))
            raise errors.NotReachable(
                f"{names} may cost no more today, and no other target is left", hint="retry tomorrow, or ask for a higher daily_ceiling"
            )
        return replace(self, targets=left)

    @property
    def priced_as(self) -> ModelName | None:
        return ModelName(self.route.name) if self.route is not None and self.route.has_own_price else None

    def holds(self, upstream: UpstreamPrices, most: Usage) -> tuple[TargetHold, ...]:
        """Return what the request may cost at targets with a ceiling."""
        return tuple(
            TargetHold(*target.place, target.model, upstream.cost(target.model, most), target.ceiling_micro)
            for target in self.targets
            if target.ceiling_micro is not None
        )

    def requirements(self, common: WorkerRequirements) -> tuple[WorkerRequirements, ...]:
        *others, last = self.models
        spill = None if self.route is None else self.route.spill_after_seconds
        return (
            *(
                replace(common, model=model, has_alternative=True, most_wait_seconds=math.inf if spill is None else spill)
                for model in others
            ),
            replace(common, model=last),
        )

    def calls(self, common: WorkerRequirements, call: Callable[[ServingTarget], Call]) -> tuple[TargetCall[Call], ...]:
        requirements = self.requirements(common)
        return tuple(TargetCall(target, needs, call(target)) for target, needs in zip(self.targets, requirements, strict=True))


@dataclass(frozen=True, slots=True)
class Caller:
    """A request's caller, with the configuration of the request's start."""

    principal: Principal
    policy: Policy
    config: ConfigSnapshot
    names: ModelNames
    #: Whether the request counts against limits.
    is_limited: bool = True


def serving(decision: RouteDecision, caller: Caller, usable: Sequence[DirectoryEntry]) -> TargetChoice:
    """Raise NotAllowed, PolicyForbidden or NotReachable if there is no target."""
    route, principal = decision.route, caller.principal
    if decision.candidates:
        variant = None if decision.drawn is None else decision.drawn.name
        targets = (
            ServingTarget(
                target.model,
                RouteUse(route.name, route.version, variant, target.name, is_compared=decision.is_compared),
                target.ceiling_micro,
                target.format,
                route.cache_seconds,
            )
            for target in decision.candidates
        )
        return TargetChoice(tuple(targets), route)
    reasons = {dropped.target.model: dropped.reason for dropped in decision.dropped}
    if not prompt_admission.is_listed(principal, ModelName(route.name), caller.names):
        raise prompt_admission.not_open(principal, ModelName(route.name))
    if len(decision.dropped) == len(route.targets) and POLICY_REASONS.issuperset(reasons.values()):
        raise forbidden(caller.policy, ModelName(route.name), reasons, usable)
    raise errors.NotReachable(f"no target of {route.name} can take this request: {describe_dropped(decision)}", hint="see `aicli nodes`")


def forbidden(
    policy: Policy, name: ModelName, reasons: Mapping[ModelName, DropReason], usable: Sequence[DirectoryEntry]
) -> errors.PolicyForbidden:
    """``reasons``: by served model."""
    levels = dict.fromkeys(
        level
        for model, reason in reasons.items()
        for level in route_choice.forbidding_levels(policy, reason, model, route_choice.find_providers(usable, model))
    )
    whose = f" (level: {', '.join(levels)})" if levels else ""
    why = ", ".join(dict.fromkeys(reason.value for reason in reasons.values()))
    return errors.PolicyForbidden(
        f"the policy{whose} forbids {name} here: {why}", hint="see `aicli policy explain`, or ask your administrator"
    )


def describe_dropped(decision: RouteDecision) -> str:
    """Return why targets are not used; also those with a share that others have drawn."""
    dropped = {found.target.name: found.reason for found in decision.dropped}
    return ", ".join(f"{target.name} ({target.model}): {dropped.get(target.name, 'not drawn')}" for target in decision.route.targets)
