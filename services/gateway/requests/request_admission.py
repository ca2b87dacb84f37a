"""Admits a request: validates and guards it, finds its targets, counts it against the limits, and reserves its credits.

Each step is a function. What the steps find is in the ``AdmissionRecord`` of the run, also if a later step refuses the request.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec

from services.gateway.billing.reservations import CostBounds
from services.gateway.facts import tiers
from services.gateway.facts.config_snapshot import Terms
from services.gateway.facts.guardrails import NO_GUARD, Guardrails
from services.gateway.facts.worker_requirements import WorkerRequirements
from services.gateway.idempotency.idempotency_keys import OrphanedKeyUse
from services.gateway.limits import limit_rules
from services.gateway.limits.limit_rules import LimitReached, RequestLimit
from services.gateway.limits.quotas import Quotas
from services.gateway.requests import request_validation
from services.gateway.requests.asked import Asked, AskedPrompt, Call
from services.gateway.requests.hold import STEP_TOKENS
from services.gateway.requests.plan import AdmissionRecord, Plan
from services.gateway.requests.request_validation import Admitted
from services.gateway.requests.run import Run
from services.gateway.requests.target_choice import TargetSearch
from services.gateway.requests.targets import ServingTarget, TargetChoice
from services.gateway.scheduling import routing
from shared import errors
from shared.api.auth import Principal
from shared.telemetry import Metrics, logs, tracing
from shared.types import ModelName, Role

#: Between the end of a wait and the caller's deadline.
_ANSWER_SECONDS = 1.0

_log = logs.get(part="admission")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestAdmission:
    search: TargetSearch
    quotas: Quotas
    #: Runs work beside answers.
    tasks: asyncio.TaskGroup
    #: See ``LiveConfiguration.guardrails_at``.
    read_guardrails: Callable[[int, Principal], Awaitable[Guardrails]]
    metrics: Metrics

    def read_terms(self, run: Run, asked: Asked[Any, Any]) -> Terms:
        """Return the caller's terms; decide whether the request runs behind live ones. Raises ConfigUnreadable or PolicyForbidden."""
        terms = self.search.source.config.terms_of(run.principal, forbids_external=asked.forbids_external)
        if run.line is not None:
            asked.is_batch = run.admission.is_batch = not run.line.is_live
        elif asked.may_be_batch:
            asked.is_batch = run.admission.is_batch = terms.runs_as_batch(asked.wants_flex)
        return terms

    async def admit(self, run: Run, asked: Asked[Any, Call], terms: Terms, seconds: float, *, most_held: float) -> Plan[Call]:
        """Return a call for each target; for a request that another gateway began, only for the model that began it, if it is one of them.
        ``most_held``: the longest time of compute to hold credits for. Raises what the steps raise, in their order."""
        record, search = run.admission, self.search
        terms = await self._adapt(terms, asked)
        admitted = await asked.validate()
        asked.content = admitted.content
        record.most_prompt_tokens, record.likely_prompt_tokens = admitted.most_prompt_tokens, admitted.likely_prompt_tokens
        record.images = admitted.images
        if terms.policy.guard is not NO_GUARD:
            await asked.guard(terms.policy.guard, record)
        record.begins_conversation = admitted.begins_conversation
        if asked.content:
            record.prompt_hash = request_validation.fingerprint(asked.content, search.prompt_hash_secret)
        choice = await search.find(run, asked, terms)
        if isinstance(asked.key_use, OrphanedKeyUse):
            choice = choice.continuing(asked.key_use)
        # A check belongs to a request that the limits have counted, and nobody counts what runs in idle time.
        is_uncounted = asked.by_policy or (run.line is not None and not run.line.is_live)
        limits = () if is_uncounted else self._limits(run.principal, choice)
        max_tokens, prefix_hashes = 0, tuple[bytes, ...]()
        if isinstance(asked, AskedPrompt):
            max_tokens = self._size_answer(record, asked, admitted, choice, limits)
            prefix_hashes = await asked.hash_prefixes(run.principal.tenant_id, search.prompt_hash_secret)
        needs = WorkerRequirements(
            model=choice.models[0],
            tenant=run.principal.tenant_id,
            limited_as=run.principal.limited_as,
            prompt_tokens=record.likely_prompt_tokens,
            max_tokens=max_tokens * asked.answers,
            prefix_hashes=prefix_hashes,
            placement=terms.policy.placement,
            has_images=record.images > 0,
            takes_slot=asked.takes_slot,
            batch=asked.is_batch,
            # It is told before its caller gives up.
            most_wait_seconds=max(0.0, seconds - _ANSWER_SECONDS) if asked.is_batch else math.inf,
        )
        bounds = _bounds(run, choice, min(seconds, most_held), max_tokens, asked.answers)
        if needs.takes_slot:
            self._ensure_capacity(choice.requirements(needs))
        await self._count(run, needs, limits, seconds + self.search.dispatch.longest_start_seconds(tuple(bounds.prompt_tokens)))
        if needs.takes_slot:
            choice = await self._reserve(run, choice, bounds)
        calls = choice.calls(needs, partial(asked.call, request_id=run.request_id, record=record))
        return Plan(choice, calls, asked.answers, asked.answer_guard, asked.moderation)

    async def _adapt(self, terms: Terms, asked: Asked[Any, Any]) -> Terms:
        """Return the terms of what the caller asks for."""
        principal, policy, key_use = terms.principal, terms.policy, asked.key_use
        if asked.by_policy:
            # What the caller may name doesn't matter. Who may see the text does.
            policy, principal = replace(policy, guard=NO_GUARD, models=()), msgspec.structs.replace(principal, models=())
        elif key_use is not None and key_use.config_revision not in {None, terms.config.revision}:
            # A request keeps its guardrails at every gateway: others would move what the caller has already read.
            policy = replace(policy, guard=await self.read_guardrails(key_use.config_revision, principal))
        else:
            return terms
        return msgspec.structs.replace(terms, principal=principal, policy=policy)

    def _limits(self, principal: Principal, choice: TargetChoice) -> Sequence[RequestLimit]:
        """Return the limits of the caller, of the model or route that it named, and of the model that is tried first."""
        named = choice.model if choice.route is None else ModelName(choice.route.name)
        return self.quotas.limits(principal, *dict.fromkeys((choice.targets[0].model, named)))

    def _size_answer(
        self, record: AdmissionRecord, asked: AskedPrompt, admitted: Admitted, choice: TargetChoice, limits: Sequence[RequestLimit]
    ) -> int:
        """Return how many tokens are reserved for each answer at first. Raises ContextExceeded."""
        workers = self.search.directory.usable(Role.WORKER)
        record.contexts = {model: routing.max_context(model, workers) for model in choice.models}
        request_validation.ensure_fits(admitted, record.contexts.values())
        if asked.request.max_tokens is not None:
            return min(asked.request.max_tokens, record.most_answer_tokens)
        most = min(STEP_TOKENS, min(routing.contexts(choice.models[0], workers), default=0) or STEP_TOKENS)
        if (limit := limit_rules.most_tokens(limits)) is None:
            return most
        return max(1, min(most, (limit - record.likely_prompt_tokens) // asked.answers))

    async def _reserve(self, run: Run, choice: TargetChoice, bounds: CostBounds) -> TargetChoice:
        """Reserve the maximum cost. Return the targets that the credits cover. Raises BudgetExhausted or LedgerUnavailable, or
        NotReachable."""
        with tracing.span("ledger.reserve"):
            run.admission.held = await self.search.ledger.reserve(run.principal, run.request_id, bounds)
        return choice.affordable(run.admission.held)

    def _ensure_capacity(self, requirements: Sequence[WorkerRequirements]) -> None:
        """Raise Overloaded if the queues of all targets are too long."""
        for needs in requirements:
            try:
                self.search.dispatch.ensure_capacity(needs)
            except errors.Overloaded:
                if not needs.has_alternative:
                    raise
            except errors.NotReachable:
                # Disconnected workers may return before the request needs one.
                continue
            else:
                return

    async def _count(self, run: Run, needs: WorkerRequirements, limits: Sequence[RequestLimit], seconds: float) -> None:
        """Count the request, which ends after so many seconds, against the limits. Raises Limited or TokensTooLarge."""
        tier, tokens = run.principal.tier, needs.prompt_tokens + needs.max_tokens
        try:
            with tracing.span("ratelimit.acquire"):
                run.admission.limit_usage = await self.quotas.spend(
                    limits, run.request_id, tier=tier, tokens=tokens, images=run.admission.images, seconds=seconds
                )
        except LimitReached as error:
            self.metrics.rate_limit_violations.labels(scope=error.scope, tier=tiers.label_of(tier), model=needs.model).inc()
            raise

    def extend_hold(
        self, record: AdmissionRecord, principal: Principal, admitted: Plan[Any], target: ServingTarget, max_tokens: int
    ) -> asyncio.Task[int]:
        """Count and reserve so many tokens for each answer, or as many as the credits cover. The task returns how many are reserved, and
        never raises."""

        async def extended() -> int:
            # Raised in this group, a failure would end the gateway.
            extending = self._extend_hold(record, principal, admitted, target, max_tokens)
            (failure,) = await asyncio.gather(extending, return_exceptions=True)
            if failure is not None and not isinstance(failure, errors.Unavailable):
                _log.error("a reservation could not be extended", exc_info=failure)
            return record.held.max_tokens

        return self.tasks.create_task(extended())

    async def _extend_hold(
        self, record: AdmissionRecord, principal: Principal, admitted: Plan[Any], target: ServingTarget, max_tokens: int
    ) -> None:
        answers, usage = admitted.answers, record.most_usage(target.model, max_tokens * admitted.answers)
        hold = admitted.choice.find_hold(target, usage)
        with tracing.span("ledger.extend"):
            if await self.quotas.extend(record.limit_usage, tokens=record.likely_prompt_tokens + usage.completion_tokens):
                record.held = await self.search.ledger.extend(
                    principal, record.held, target.model, max_tokens=max_tokens, answers=answers, target=hold
                )


def _bounds(run: Run, choice: TargetChoice, seconds: float, max_tokens: int, answers: int) -> CostBounds:
    record, line = run.admission, run.line
    usages = {model: record.most_usage(model, max_tokens * answers) for model in choice.models}
    return CostBounds(
        prompt_tokens={model: most.prompt_tokens for model, most in usages.items()},
        max_tokens=max_tokens,
        answers=answers,
        seconds=seconds,
        priced_as=ModelName(choice.route.name) if choice.route is not None and choice.route.has_own_price else None,
        holds=tuple(hold for target in choice.targets if (hold := choice.find_hold(target, usages[target.model])) is not None),
        is_batch=record.is_batch,
        job=None if line is None else line.job_id,
        kept_price=None if line is None else line.price_id,
    )
