"""Admits a request: validates it, finds its targets, ensures capacity, counts it against the limits, and reserves its credits."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any

import msgspec

from services.gateway.billing.reservations import CostBounds, HeldCredits
from services.gateway.facts.bad_field import BadField
from services.gateway.facts.guardrails import NO_GUARD, Guardrails
from services.gateway.facts.worker_requirements import WorkerRequirements
from services.gateway.guard import prompt_guard
from services.gateway.guard.answer_guard import AnswerGuard
from services.gateway.guard.guarded_text import GuardMatches
from services.gateway.guard.moderation import Moderation
from services.gateway.idempotency.idempotency_keys import KeyUse, OrphanedKeyUse
from services.gateway.limits import limit_rules
from services.gateway.limits.limit_rules import LimitReached, RequestLimit
from services.gateway.limits.quotas import Quotas
from services.gateway.requests import request_validation
from services.gateway.requests.asked_texts import AskedConversion, AskedModeration, AskedTexts, Call
from services.gateway.requests.hold import STEP_TOKENS
from services.gateway.requests.plan import AdmissionRecord, Plan
from services.gateway.requests.request_validation import MAX_ANSWER_TOKENS, AdmittedPrompt
from services.gateway.requests.run import Run
from services.gateway.requests.target_choice import TargetSearch
from services.gateway.requests.targets import ServingTarget, TargetChoice
from services.gateway.scheduling import routing
from services.gateway.scheduling.route_choice import RequestFacts
from shared import errors
from shared.api import generation, inference
from shared.api.auth import Principal
from shared.api.gateway import InferenceRequest
from shared.api.generation import Sampling
from shared.api.inference import ModerationVerdict
from shared.telemetry import Metrics, logs, tracing
from shared.types import ModelName, Role

_SAMPLED = Sampling.__struct_fields__
_sampling_of = attrgetter(*_SAMPLED)
_role_of = attrgetter("role")

_MANY_MESSAGES = 1000

_log = logs.get(part="admission")

#: Moderates texts of a request as its policy wants it.
ModerateFor = Callable[[Principal, InferenceRequest, ModelName, Sequence[str]], Awaitable[Sequence[ModerationVerdict]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestAdmission:
    search: TargetSearch
    quotas: Quotas
    #: Runs work beside answers.
    tasks: asyncio.TaskGroup
    #: See ``LiveConfiguration.guardrails_at``.
    read_guardrails: Callable[[int, Principal], Awaitable[Guardrails]]
    metrics: Metrics

    async def admit_prompt(
        self,
        run: Run,
        request: InferenceRequest,
        seconds: float,
        *,
        key_use: KeyUse | None,
        moderate: ModerateFor,
    ) -> Plan[inference.ProcessPrompt]:
        """Return a call for each target; for a request that another gateway began, only for the model that began it, if it is one of them.
        A call has a seed only if the caller set one. Raises what ``_reserve``, ``TargetSearch``, ``request_validation`` and ``continuing``
        raise."""
        search, secret, record, principal = self.search, self.search.prompt_hash_secret, run.admission, run.principal
        await _let_others_run(request.messages)
        caller = search.read_context(principal, forbids_external=request.forbid_external)
        guard = caller.policy.guard
        if key_use is not None and key_use.config_revision not in {None, caller.config.revision}:
            # A request keeps its guardrails at every gateway: others would move what the caller has already read.
            guard = await self.read_guardrails(key_use.config_revision, principal)
        admitted = request_validation.admit(request)
        await _let_others_run(request.messages)
        answer_guard = moderation = None
        if guard is not NO_GUARD:
            record.is_guarded = True
            answer_guard = _answer_guard(guard, request.top_logprobs)
            if guard.moderation:
                moderation = Moderation(guard.moderation, partial(moderate, principal, request))
            if guard.prompt or moderation is not None:
                admitted = await _guard_prompt(record, admitted, guard, moderation)
        answers = request.n or 1
        record.most_prompt_tokens, record.likely_prompt_tokens = admitted.most_prompt_tokens, admitted.likely_prompt_tokens
        record.images = sum(len(message.images) for message in admitted.messages)
        record.prompt_hash = request_validation.fingerprint(admitted.messages, secret)
        record.begins_conversation = "assistant" not in map(_role_of, admitted.messages)
        facts = _prompt_facts(run, principal, request, admitted)
        conversation = request.conversation_id or admitted.messages
        choice = await search.find(run.attempts, caller, request.model, facts, conversation, request_id=run.request_id)
        if isinstance(key_use, OrphanedKeyUse):
            choice = choice.continuing(key_use)
        models = choice.models
        limits, workers = self._limits(principal, choice), search.directory.usable(Role.WORKER)
        record.contexts = {model: routing.max_context(model, workers) for model in models}
        request_validation.ensure_fits(admitted, record.contexts.values())
        most = _most_max_tokens(record.contexts.values())
        if request.max_tokens is None:
            contexts = routing.contexts(models[0], workers)
            max_tokens = _first_step(limit_rules.most_tokens(limits), contexts, record.likely_prompt_tokens, answers)
        else:
            max_tokens = min(request.max_tokens, most)
        salt = request_validation.prompt_salt(principal.tenant_id, secret)
        await _let_others_run(request.messages)
        requirements = WorkerRequirements(
            model=models[0],
            tenant=principal.tenant_id,
            limited_as=principal.limited_as,
            prompt_tokens=admitted.likely_prompt_tokens,
            max_tokens=max_tokens * answers,
            prefix_hashes=generation.hash_prefixes(admitted.messages, salt, request.tools),
            placement=caller.policy.placement,
            has_images=facts.has_images,
        )
        bounds = _bounds(record, choice, seconds, max_tokens, answers)
        held = await self._reserve(run, principal, limits, choice.requirements(requirements), bounds)
        choice = choice.affordable(held)
        is_open_ended = request.max_tokens is None and not held.clamped
        # See ``bounded_answers`` for more than is held.
        limit = most if is_open_ended else held.max_tokens
        sampling = dict(zip(_SAMPLED, _sampling_of(request), strict=True)) | {"max_tokens": limit}

        def call(target: ServingTarget) -> inference.ProcessPrompt:
            config = inference.ModelConfig(**sampling, model=target.model)
            return inference.ProcessPrompt(admitted.messages, config, run.request_id, salt, call_parts=True, open_ended=is_open_ended)

        return Plan(choice, choice.calls(requirements, call), answers, answer_guard, moderation)

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

    async def admit_texts(self, run: Run, asked: AskedTexts[Any, Call], seconds: float) -> Plan[Call]:
        """Admit texts; otherwise like ``admit_prompt``."""
        search, record, principal, wanted = self.search, run.admission, run.principal, asked.request.model or None
        caller = search.read_context(principal, forbids_external=asked.forbids_external)
        admitted = asked.validate()
        asked.inputs = admitted.inputs
        record.most_prompt_tokens, record.likely_prompt_tokens = admitted.most_prompt_tokens, admitted.likely_prompt_tokens
        moderates = isinstance(asked, AskedModeration)
        is_check = isinstance(asked, AskedModeration) and asked.request.by_policy
        if is_check:
            # What the caller may name doesn't matter. Who may see the text does.
            policy = replace(caller.policy, guard=NO_GUARD, models=())
            caller = msgspec.structs.replace(caller, principal=msgspec.structs.replace(principal, models=()), policy=policy)
        if scan := caller.policy.guard.prompt:
            record.is_guarded = True
            matches = record.prompt_matches = GuardMatches()
            await asked.guard(scan, matches)
        if asked.inputs:
            record.prompt_hash = request_validation.fingerprint(asked.inputs, search.prompt_hash_secret)
        if wanted is None and moderates:
            wanted = routing.find_moderation(caller.names, caller.policy.allows_name)
        principal = caller.principal
        facts = RequestFacts(tier=principal.tier, key_name=principal.key_name, organization=principal.tenant_id, now=run.began_at)
        request_id = run.request_id
        choice = await search.find(run.attempts, caller, wanted, facts, str(request_id), request_id=request_id, moderates=moderates)
        requirements = WorkerRequirements(
            model=choice.models[0],
            tenant=principal.tenant_id,
            limited_as=principal.limited_as,
            prompt_tokens=record.likely_prompt_tokens,
            max_tokens=0,
            placement=caller.policy.placement,
            takes_slot=not isinstance(asked, AskedConversion),
        )
        limits, bounds = () if is_check else self._limits(principal, choice), _bounds(record, choice, seconds)
        if not requirements.takes_slot:
            await self._count(run, principal, limits, requirements, bounds)
        else:
            choice = choice.affordable(await self._reserve(run, principal, limits, choice.requirements(requirements), bounds))
        return Plan(choice, choice.calls(requirements, partial(asked.call, request_id=run.request_id)))

    def _limits(self, principal: Principal, choice: TargetChoice) -> Sequence[RequestLimit]:
        """Return the limits of the caller, of the model or route that it named, and of the model that is tried first."""
        named = choice.model if choice.route is None else ModelName(choice.route.name)
        return self.quotas.limits(principal, *dict.fromkeys((choice.targets[0].model, named)))

    async def _reserve(
        self,
        run: Run,
        principal: Principal,
        limits: Sequence[RequestLimit],
        requirements: Sequence[WorkerRequirements],
        bounds: CostBounds,
    ) -> HeldCredits:
        """Check for capacity at one target, count the request against the limits, and reserve its maximum cost. Raises Overloaded, Limited
        or TokensTooLarge, BudgetExhausted or LedgerUnavailable, in this order."""
        self._ensure_capacity(requirements)
        await self._count(run, principal, limits, requirements[0], bounds)
        with tracing.span("ledger.reserve"):
            held = run.admission.held = await self.search.ledger.reserve(principal, run.request_id, bounds)
        return held

    async def _count(
        self, run: Run, principal: Principal, limits: Sequence[RequestLimit], first: WorkerRequirements, bounds: CostBounds
    ) -> None:
        """Count the request against the limits. Raises Limited or TokensTooLarge."""
        seconds = bounds.seconds + self.search.dispatch.longest_start_seconds(tuple(bounds.prompt_tokens))
        tokens = first.prompt_tokens + first.max_tokens
        try:
            with tracing.span("ratelimit.acquire"):
                run.admission.limit_usage = await self.quotas.spend(
                    limits, run.request_id, tier=principal.tier, tokens=tokens, images=run.admission.images, seconds=seconds
                )
        except LimitReached as error:
            labels = {"scope": error.scope, "tier": principal.tier, "model": first.model}
            self.metrics.rate_limit_violations.labels(**labels).inc()
            raise

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


async def _let_others_run(messages: Sequence[object]) -> None:
    """Call it between the steps of a prompt. With 40,000 messages, each of them takes up to 40 ms."""
    if len(messages) > _MANY_MESSAGES:
        await asyncio.sleep(0)


def _prompt_facts(run: Run, principal: Principal, request: InferenceRequest, admitted: AdmittedPrompt) -> RequestFacts:
    return RequestFacts(
        prompt_tokens=admitted.likely_prompt_tokens,
        wants_answer=True,
        has_tools=bool(request.tools),
        has_format=request.format is not None,
        has_images=run.admission.images > 0,
        tier=principal.tier,
        key_name=principal.key_name,
        organization=principal.tenant_id,
        now=run.began_at,
    )


def _answer_guard(guard: Guardrails, top_logprobs: int | None) -> AnswerGuard | None:
    """Raises BadField for log probabilities of masked answers."""
    if not guard.answer:
        return None
    if guard.answer.changes_text and top_logprobs is not None:
        raise BadField("logprobs", "can't be returned: your policy masks or refuses parts of answers")
    return AnswerGuard(guard.answer)


async def _guard_prompt(
    record: AdmissionRecord, admitted: AdmittedPrompt, guard: Guardrails, moderation: Moderation | None
) -> AdmittedPrompt:
    """Return the prompt as workers may see it. Raises ContentFiltered, and what ``Moderation.check_prompt`` raises."""
    matches = record.prompt_matches = GuardMatches()
    if guard.prompt:
        began = time.perf_counter()
        messages = await prompt_guard.guard_messages(admitted.messages, guard.prompt, matches)
        record.guard_seconds = time.perf_counter() - began
        admitted = msgspec.structs.replace(admitted, messages=messages)
    if moderation is not None:
        await moderation.check_prompt(admitted.messages, matches)
    return admitted


def _bounds(record: AdmissionRecord, choice: TargetChoice, seconds: float, max_tokens: int = 0, answers: int = 1) -> CostBounds:
    usages = {model: record.most_usage(model, max_tokens * answers) for model in choice.models}
    return CostBounds(
        prompt_tokens={model: most.prompt_tokens for model, most in usages.items()},
        max_tokens=max_tokens,
        answers=answers,
        seconds=seconds,
        priced_as=choice.priced_as,
        holds=tuple(hold for target in choice.targets if (hold := choice.find_hold(target, usages[target.model])) is not None),
    )


def _most_max_tokens(contexts: Collection[int]) -> int:
    """Return the longest answer that any worker could give; the worker lowers it to what its context leaves."""
    # 0 is a context of unknown size.
    return min(MAX_ANSWER_TOKENS, max((tokens or MAX_ANSWER_TOKENS for tokens in contexts), default=MAX_ANSWER_TOKENS))


def _first_step(limit: int | None, contexts: Sequence[int], likely_prompt_tokens: int, answers: int) -> int:
    """Return what is reserved for each answer at first if the caller names no number. ``limit``: of the prompt and all answers."""
    most = min(STEP_TOKENS, min(contexts, default=0) or STEP_TOKENS)
    return most if limit is None else max(1, min(most, (limit - likely_prompt_tokens) // answers))
