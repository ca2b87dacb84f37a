"""Finds the targets that may serve a request, in the order in which they are tried."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from services.gateway.billing.ledger import Ledger
from services.gateway.facts.config_snapshot import ConfigSource, Terms
from services.gateway.facts.model_names import ModelNames
from services.gateway.facts.model_routes import Route
from services.gateway.facts.policies import Policy
from services.gateway.facts.request_record import RouteUse
from services.gateway.facts.upstream_prices import UpstreamPrices
from services.gateway.requests import request_validation
from services.gateway.requests.asked import Asked, AskedPrompt
from services.gateway.requests.run import Run
from services.gateway.requests.targets import ServingTarget, TargetAttempts, TargetChoice
from services.gateway.scheduling import route_choice, routing
from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.route_choice import POLICY_REASONS, DropReason, ModelFacts, RequestFacts, RouteDecision
from shared import errors
from shared.config_documents import Sticky, is_pattern
from shared.protocol.directory import Directory, DirectoryEntry, say_reasons
from shared.types import ModelName, Role

#: How often a waiting request checks the directory for workers.
_LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSearch:
    """Finds targets by the current configuration and workers. For the first ``worker_wait_seconds`` after start, a model may have workers
    that aren't discovered yet; a request waits equally long for workers that left a moment ago."""

    ledger: Ledger
    dispatch: Dispatch
    directory: Directory
    source: ConfigSource
    prompt_hash_secret: str
    clock: Callable[[], float] = time.monotonic
    worker_wait_seconds: float = 0.0
    discovery_ends_at: float = -math.inf

    async def find(self, run: Run, asked: Asked[Any, Any], terms: Terms) -> TargetChoice:
        """Return the targets; without a route, the run's attempts name the model also if the caller may not use it. Wait briefly if the
        model's workers may return soon. Raises UnknownModel, NotReachable, NotAllowed, PolicyForbidden, ContextExceeded or
        ConfigUnreadable, and BadRequest for another task than that of the model or route, or for several that could moderate."""
        default = routing.find_moderation(terms.names, terms.policy.allows_name) if asked.moderates and not asked.request.model else None
        wanted: ModelName | None = asked.request.model or default
        facts = _facts(run, asked)
        gives_up_at = self.clock() + self.worker_wait_seconds
        requested = ModelName(wanted or terms.names.default or "")
        route = terms.names.find_route(wanted)
        if route is not None and not terms.policy.allows_name(route.name):
            route = None
        while True:
            try:
                if route is None and asked.moderates:
                    raise routing.no_moderation(wanted)
                if route is None:
                    return self._readable(self._find_served(run.attempts, terms, wanted, facts), terms)
                routing.ensure_task(route, moderates=asked.moderates)
                unit = facts.unit or self._unit(route.sticky, run, asked)
                facts = msgspec.structs.replace(facts, unit=unit)
                choice = self._readable(self._find_targets(route, facts, terms), terms)
                return msgspec.structs.replace(choice, model=requested) if is_pattern(route.name) else choice
            except errors.UnknownModel:
                if route is not None or not terms.policy.allows_name(requested):
                    raise
                route = terms.names.find_pattern(requested)
                if route is None:
                    raise
                continue
            except errors.NotReachable:
                now, workers = self.clock(), self.directory.entries(Role.WORKER)
                may_return = routing.any_starting(workers) or routing.any_recently_lost(workers, datetime.now(UTC))
                if now >= gives_up_at or not (now < self.discovery_ends_at or may_return):
                    raise
            await asyncio.sleep(_LOOK_SECONDS)

    def _readable(self, choice: TargetChoice, terms: Terms) -> TargetChoice:
        """Raises ConfigUnreadable."""
        terms.config.check_models(choice.models, self.directory.usable(Role.WORKER))
        return choice

    def resolve(self, wanted: ModelName | None, names: ModelNames, policy: Policy) -> ModelName:
        """Return the served model that a request names, as ``routing.resolve`` does."""
        just_started = self.clock() < self.discovery_ends_at
        starts = self.dispatch.worker_stats.starts
        startable = starts.pools if starts.source.pools else {}
        workers = self.directory.entries(Role.WORKER)
        return routing.resolve(wanted, workers, names, just_started=just_started, allows=policy.allows_name, startable=startable)

    def _find_served(self, attempts: TargetAttempts, terms: Terms, wanted: ModelName | None, facts: RequestFacts) -> TargetChoice:
        usable = self.directory.usable(Role.WORKER)
        model = self.resolve(wanted, terms.names, terms.policy)
        target = ServingTarget(model)
        attempts.try_target(target)
        name = terms.names.public_name(wanted, model)
        routing.ensure_capable(model, usable, wants_answer=facts.wants_answer, has_images=facts.has_images)
        if terms.principal.models and not routing.may_use(terms.principal, model, terms.names):
            raise routing.not_allowed(terms.principal, model)
        tenant, policy = terms.principal.tenant_id, terms.policy
        reason = self._policy_refusal(terms, model, model) if policy.limits_targets else None
        reason = reason or route_choice.find_forbidden(usable, model, tenant, policy.placement)
        if reason is not None:
            raise _forbidden(policy, name, {model: reason}, usable)
        upstream = UpstreamPrices(terms.config.upstream_prices)
        return TargetChoice((target,), name, upstream, shows_target=policy.show_targets.value)

    def _find_targets(self, route: Route, facts: RequestFacts, terms: Terms) -> TargetChoice:
        decision = self._choose(route, facts, terms)
        if not decision.candidates:
            # Wait for a start, of the first one only.
            decision = self._choose(route, facts, terms, self.dispatch.worker_stats.starts.pools)
            decision = replace(decision, candidates=decision.candidates[:1])
        usable, reasons = self.directory.usable(Role.WORKER), {dropped.reason for dropped in decision.dropped}
        if facts.has_images and reasons == {DropReason.LACKS_CAPABILITY} and not decision.candidates:
            raise errors.BadRequest(f"no target of {route.name} supports images", hint="leave them out, or choose another model")
        # A target that is not served now may have a longer context.
        if DropReason.CONTEXT_TOO_SMALL in reasons and DropReason.NOT_SERVED not in reasons and not decision.candidates:
            served = route_choice.served_models(usable, terms.principal.tenant_id, terms.policy.placement)
            small = [served[dropped.target.model] for dropped in decision.dropped if dropped.reason is DropReason.CONTEXT_TOO_SMALL]
            raise request_validation.too_long(facts.prompt_tokens, max(model.context_tokens for model in small))
        return _choice_of(decision, terms, usable, facts.unit)

    def _choose(self, route: Route, facts: RequestFacts, terms: Terms, startable: Iterable[ModelName] = ()) -> RouteDecision:
        principal = terms.principal
        served = route_choice.served_models(self.directory.usable(Role.WORKER), principal.tenant_id, terms.policy.placement)
        offered = {model: ModelFacts() for model in startable} | served
        is_listed = route.name in principal.models

        def find_refusal(model: ModelName) -> DropReason | None:
            if not is_listed and not routing.may_use(principal, model, terms.names):
                return DropReason.POLICY_MODEL
            return self._policy_refusal(terms, model, ModelName(route.name) if route.has_own_price else model)

        return route_choice.choose(route, facts, offered.get, find_refusal)

    def _policy_refusal(self, terms: Terms, model: ModelName, priced_as: ModelName) -> DropReason | None:
        return route_choice.find_refusal(terms.policy, model, self.ledger.price_of(priced_as))

    def _unit(self, sticky: Sticky, run: Run, asked: Asked[Any, Any]) -> bytes:
        """Return what sticks to one target."""
        match sticky:
            case Sticky.USER:
                return run.principal.user_id.bytes
            case Sticky.ORGANIZATION:
                return run.principal.tenant_id.bytes
            case Sticky.REQUEST:
                return run.request_id.bytes
        if not isinstance(asked, AskedPrompt):
            conversation = str(run.request_id)
        elif asked.request.conversation_id:
            conversation = asked.request.conversation_id
        else:
            # The system message and the first question stay the same during a conversation.
            system = [message for message in asked.content[:1] if message.role == "system"]
            question = next((message for message in asked.content if message.role == "user"), None)
            conversation = request_validation.fingerprint([*system, *([] if question is None else [question])], self.prompt_hash_secret)
        return run.principal.tenant_id.bytes + conversation.encode()


def _facts(run: Run, asked: Asked[Any, Any]) -> RequestFacts:
    principal, record = run.principal, run.admission
    return RequestFacts(
        prompt_tokens=record.likely_prompt_tokens if asked.wants_answer else 0,
        wants_answer=asked.wants_answer,
        has_tools=asked.has_tools,
        has_format=asked.has_format,
        has_images=record.images > 0,
        tier=principal.tier,
        key_name=principal.key_name,
        organization=principal.tenant_id,
        now=run.began_at,
    )


def _choice_of(decision: RouteDecision, terms: Terms, usable: Sequence[DirectoryEntry], unit: bytes) -> TargetChoice:
    """Return the decision's targets. Raises NotAllowed, PolicyForbidden or NotReachable if there is none."""
    route, principal = decision.route, terms.principal
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
        prices = terms.config.upstream_prices
        upstream = UpstreamPrices(prices, None if route.compared_with is None else prices.get(route.compared_with))
        return TargetChoice(tuple(targets), ModelName(route.name), upstream, route, unit, terms.policy.show_targets.value)
    reasons = {dropped.target.model: dropped.reason for dropped in decision.dropped}
    if not routing.may_name(principal, ModelName(route.name), terms.names):
        raise routing.not_allowed(principal, ModelName(route.name))
    if len(decision.dropped) == len(route.targets) and POLICY_REASONS.issuperset(reasons.values()):
        raise _forbidden(terms.policy, ModelName(route.name), reasons, usable)
    raise errors.NotReachable(f"no target of {route.name} can take this request: {_describe_dropped(decision)}", hint="see `aicli nodes`")


def _forbidden(
    policy: Policy, name: ModelName, reasons: Mapping[ModelName, DropReason], usable: Sequence[DirectoryEntry]
) -> errors.PolicyForbidden:
    """Return the error for models that the policy forbids. ``reasons``: by served model."""
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


def _describe_dropped(decision: RouteDecision) -> str:
    """Return why targets are not used; also those with a share that others have drawn."""
    dropped = {found.target.name: found.reason for found in decision.dropped}
    return say_reasons(
        ((f"{target.name} ({target.model})", dropped.get(target.name, "not drawn")) for target in decision.route.targets), ": "
    )
