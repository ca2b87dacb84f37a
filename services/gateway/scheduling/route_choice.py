"""Chooses the targets of a route for a request, in the order in which they are tried: the drawn one, then others by their order. Pure."""

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from services.gateway.facts import placements
from services.gateway.facts.model_routes import Route, RouteTarget
from services.gateway.facts.placements import Placement
from services.gateway.facts.policies import Policy
from shared import plan_names
from shared.api.ledger import ModelPrice
from shared.config_documents import ANY_PROVIDER, TargetConditions
from shared.protocol.directory import DirectoryEntry
from shared.types import ModelName, Moment, PlanName, TenantId

#: Targets that one request tries.
MAX_TARGETS = 3
#: A prompt has at least this share of its estimated tokens, except for unusual texts.
_MIN_OF_ESTIMATE = 0.5


class DropReason(StrEnum):
    """Why a target is not used for a request."""

    #: The policy or the key does not allow its model.
    POLICY_MODEL = "policy_model"
    #: Only workers of forbidden providers serve it.
    POLICY_EXTERNAL = "policy_external"
    #: Only machines that the policy does not allow serve it.
    POLICY_MACHINES = "policy_machines"
    #: It costs callers more than the policy allows.
    PRICE_CEILING = "price_ceiling"
    CONDITION = "condition"
    NOT_SERVED = "not_served"
    #: It only embeds or moderates, or doesn't moderate.
    LACKS_CAPABILITY = "lacks_capability"
    CONTEXT_TOO_SMALL = "context_too_small"
    #: It has cost what it may cost on this day.
    DAILY_CEILING = "daily_ceiling"
    #: The server of its model has asked for a pause, and there is another target.
    RESTS = "rests"


#: No other target would do either.
POLICY_REASONS = frozenset({DropReason.POLICY_MODEL, DropReason.POLICY_EXTERNAL, DropReason.POLICY_MACHINES, DropReason.PRICE_CEILING})


class RequestFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the choice depends on."""

    #: What sticks to a target; empty until the route is known.
    unit: bytes = b""
    #: Estimated.
    prompt_tokens: int = 0
    #: A prompt, rather than texts for embeddings.
    wants_answer: bool = False
    has_tools: bool = False
    has_format: bool = False
    has_images: bool = False
    tier: PlanName
    key_name: str | None
    organization: TenantId
    now: Moment


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the workers offer of one model."""

    #: The largest; 0 if unknown.
    context_tokens: int = 0
    only_embeds: bool = False
    only_moderates: bool = False
    #: Why the policy allows no worker that has it; None if it allows one.
    forbidden: DropReason | None = None
    #: The servers of all of them have asked for a pause.
    rests: bool = False
    #: One of them does. A worker that has not started may.
    sees_images: bool = True


@dataclass(frozen=True, slots=True)
class DroppedTarget:
    target: RouteTarget
    reason: DropReason


@dataclass(frozen=True, slots=True)
class RouteDecision:
    """The targets in the order in which they are tried, and why the others aren't."""

    route: Route
    #: None if no target has a share.
    drawn: RouteTarget | None
    candidates: tuple[RouteTarget, ...]
    dropped: tuple[DroppedTarget, ...]
    #: Whether the rollout could have drawn either of its targets.
    is_compared: bool = False


_FORBIDDEN = {
    placements.Barrier.PROVIDER: ModelFacts(forbidden=DropReason.POLICY_EXTERNAL),
    placements.Barrier.MACHINES: ModelFacts(forbidden=DropReason.POLICY_MACHINES),
}


def served_models(usable: Iterable[DirectoryEntry], tenant: TenantId, placement: Placement) -> dict[ModelName, ModelFacts]:
    """Return what these workers offer to the tenant now, and what they offer but the policy forbids."""
    found: dict[ModelName, ModelFacts] = {}
    for worker in usable:
        for offer in worker.announcement.models:
            if not offer.ready:
                continue
            known = found.get(offer.name)
            barrier = placements.barrier(tenant, placement, worker.announcement, offer)
            if barrier is not None:
                # Workers that serve only their owner don't count.
                if known is None and barrier in _FORBIDDEN:
                    found[offer.name] = _FORBIDDEN[barrier]
            elif known is None or known.forbidden is not None:
                found[offer.name] = ModelFacts(
                    offer.context_tokens, offer.only_embeds, offer.only_moderates, rests=offer.rests, sees_images=offer.sees_images
                )
            else:
                # An unknown context may be the largest.
                context = max(known.context_tokens, offer.context_tokens) if known.context_tokens and offer.context_tokens else 0
                only_embeds, only_moderates = known.only_embeds and offer.only_embeds, known.only_moderates and offer.only_moderates
                found[offer.name] = ModelFacts(
                    context,
                    only_embeds,
                    only_moderates,
                    rests=known.rests and offer.rests,
                    sees_images=known.sees_images or offer.sees_images,
                )
    return found


def find_forbidden(usable: Iterable[DirectoryEntry], model: ModelName, tenant: TenantId, placement: Placement) -> DropReason | None:
    """Return why the policy allows none of the workers that have the model; None if it allows one, or if there is none."""
    found: DropReason | None = None
    for worker in usable:
        for offer in worker.announcement.models:
            if offer.name == model and offer.ready:
                barrier = placements.barrier(tenant, placement, worker.announcement, offer)
                if barrier is None:
                    return None
                if found is None and barrier in _FORBIDDEN:
                    found = _FORBIDDEN[barrier].forbidden
    return found


def find_refusal(policy: Policy, model: ModelName, price: ModelPrice) -> DropReason | None:
    """Return why the policy forbids the model whatever its workers are."""
    if not policy.allows_target(model):
        return DropReason.POLICY_MODEL
    return None if policy.allows_price(price) else DropReason.PRICE_CEILING


def find_providers(usable: Iterable[DirectoryEntry], model: ModelName) -> frozenset[str]:
    offers = (offer for worker in usable for offer in worker.announcement.models if offer.name == model and offer.ready)
    return frozenset(offer.provider for offer in offers if offer.provider)


def forbidding_levels(policy: Policy, reason: DropReason, model: ModelName, providers: Set[str]) -> tuple[str, ...]:
    """Return the levels of the policy that the reason comes from; empty if it is another reason. ``providers``: those of the model."""
    match reason:
        case DropReason.POLICY_MODEL:
            return tuple(allowed.level for allowed in policy.targets if not allowed.has(model))
        case DropReason.POLICY_EXTERNAL:
            wanted = {*providers, ANY_PROVIDER}
            return tuple(allowed.level for allowed in policy.external if not wanted.intersection(allowed.names))
        case DropReason.POLICY_MACHINES:
            return (policy.machines.level,)
        case DropReason.PRICE_CEILING:
            return tuple(dict.fromkeys(most.level for most in (policy.max_input, policy.max_output) if most.value is not None))
        case _:
            return ()


def choose(
    route: Route,
    facts: RequestFacts,
    find_model: Callable[[ModelName], ModelFacts | None],
    find_refusal: Callable[[ModelName], DropReason | None],
) -> RouteDecision:
    """Choose the targets of a request. ``find_model`` returns None for a model that no worker serves; ``find_refusal``: why the caller may
    not use the model."""
    dropped: list[DroppedTarget] = []
    usable: list[RouteTarget] = []
    for target in route.targets:
        reason = find_refusal(target.model) or _why_not(route, target, facts, find_model(target.model))
        if reason is None:
            usable.append(target)
        else:
            dropped.append(DroppedTarget(target, reason))
    # The draw ignores what is dropped, so that other units keep their targets.
    draw = route.draw(facts.unit)
    drawn = None if draw is None else draw.target
    moved_from = None if draw is None else draw.moved_from
    is_compared = False
    if route.rollout is not None and drawn is not None:
        plan, names = route.rollout.plan, {target.name for target in usable}
        is_compared = drawn.name in {plan.candidate, plan.baseline} and names.issuperset({plan.candidate, plan.baseline})
        if moved_from is not None and drawn.name not in names:
            # A rollout never removes a caller's only target.
            drawn, moved_from = moved_from, None
    # The target that the rollout has replaced is the first fallback.
    first = [target for target in (drawn, moved_from) if target is not None and target in usable]
    others = sorted((target for target in usable if target not in first and target.order is not None), key=_order)
    candidates = [*first, *others]
    resting = [target for target in candidates if (facts_of := find_model(target.model)) is not None and facts_of.rests]
    if len(resting) < len(candidates):
        # If all of them rest, the first one's refusal says for how long.
        candidates = [target for target in candidates if target not in resting]
        dropped += (DroppedTarget(target, DropReason.RESTS) for target in resting)
    return RouteDecision(route, drawn, tuple(candidates[:MAX_TARGETS]), tuple(dropped), is_compared)


def _order(target: RouteTarget) -> int:
    return target.order or 0


def _why_not(route: Route, target: RouteTarget, facts: RequestFacts, offered: ModelFacts | None) -> DropReason | None:
    if (target.when is not None and not _holds(target.when, facts)) or (target.hours is not None and not target.hours.include(facts.now)):
        return DropReason.CONDITION
    if offered is None:
        return DropReason.NOT_SERVED
    if offered.forbidden is not None:
        return offered.forbidden
    has_own_api = route.moderates and target.format is None
    answers_nothing = offered.only_embeds and (facts.wants_answer or route.moderates)
    if offered.only_moderates != has_own_api or answers_nothing or (facts.has_images and not offered.sees_images):
        return DropReason.LACKS_CAPABILITY
    if 0 < offered.context_tokens < facts.prompt_tokens * _MIN_OF_ESTIMATE:
        return DropReason.CONTEXT_TOO_SMALL
    return None


def _holds(when: TargetConditions, facts: RequestFacts) -> bool:
    return (
        (when.min_prompt_tokens is None or facts.prompt_tokens >= when.min_prompt_tokens)
        and (when.max_prompt_tokens is None or facts.prompt_tokens <= when.max_prompt_tokens)
        and when.tools in {None, facts.has_tools}
        and when.response_format in {None, facts.has_format}
        and (not when.tiers or plan_names.name_of(facts.tier) in when.tiers)
        and (not when.keys_named or facts.key_name in when.keys_named)
        and (not when.organizations or str(facts.organization) in when.organizations)
    )
