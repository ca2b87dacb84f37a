"""Admits a request: validates it, finds its model, ensures capacity, counts it against the limits, and reserves its credits."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from services.gateway import node_interface, prompt_admission
from services.gateway.billing.ledger import CostBounds, HeldCredits, Ledger
from services.gateway.config_snapshot import ReadConfig
from services.gateway.guard import prompt_guard
from services.gateway.guard.answer_guard import AnswerGuard
from services.gateway.guard.guard_rules import NO_GUARD, Guardrails
from services.gateway.guard.guarded_text import GuardMatches
from services.gateway.guard.moderation import Moderation
from services.gateway.idempotency.idempotency_keys import NewKeyUse, Orphaned
from services.gateway.limits import limit_rules
from services.gateway.limits.limit_rules import RequestLimit
from services.gateway.limits.quotas import LimitReached, Quotas
from services.gateway.limits.upstream_prices import TargetHold, UpstreamPrices
from services.gateway.prompt_admission import MAX_ANSWER_TOKENS, AdmittedPrompt, AdmittedTexts, BadField, ModerationRequest
from services.gateway.requests import target_choice
from services.gateway.requests.active_prompt import ActivePrompt
from services.gateway.requests.active_request import ActiveRequest, ServingTarget
from services.gateway.requests.active_texts import ActiveConversion, ActiveEmbedding, ActiveModeration, ActiveRanking, ActiveTexts
from services.gateway.requests.bounded_answers import STEP_TOKENS
from services.gateway.requests.target_choice import Caller, TargetCall, TargetChoice
from services.gateway.scheduling import route_choice, routing
from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.route_choice import DropReason, ModelFacts, RequestFacts, Route, RouteDecision
from services.gateway.scheduling.routing import WorkerRequirements
from shared import errors
from shared.api import embedding, generation, inference
from shared.api.auth import Principal
from shared.api.embedding import EmbeddingRequest, RankingRequest
from shared.api.gateway import InferenceRequest
from shared.api.generation import ChatMessage, Sampling, Usage
from shared.config_documents import Sticky
from shared.telemetry import Metrics, logs, tracing
from shared.types import ModelName, Role

#: How often a waiting request checks the directory for workers.
_LOOK_SECONDS = 0.1
_SAMPLED = Sampling.__struct_fields__

_log = logs.get(part="admission")

Call = TypeVar("Call")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestAdmission:
    """Admits requests. For the first ``worker_wait_seconds`` after start, a model may have workers that aren't discovered yet; a request
    waits equally long for workers that left a moment ago."""

    quotas: Quotas
    ledger: Ledger
    dispatch: Dispatch
    #: Runs work beside answers.
    tasks: asyncio.TaskGroup
    directory: node_interface.NodeDirectory
    read_config: ReadConfig
    #: See ``LiveConfiguration.guardrails_at``.
    read_guardrails: Callable[[int, Principal], Awaitable[Guardrails]]
    metrics: Metrics
    prompt_hash_secret: str
    clock: Callable[[], float] = time.monotonic
    worker_wait_seconds: float = 0.0
    discovery_ends_at: float = -math.inf
    #: See ``SiteGate.while_open``.
    while_open: Callable[[], AbstractAsyncContextManager[object]] = nullcontext

    async def admit_prompt(
        self,
        running: ActivePrompt,
        principal: Principal,
        request: InferenceRequest,
        seconds: float,
        claim: NewKeyUse | Orphaned | None = None,
    ) -> tuple[TargetCall[inference.ProcessPrompt], ...]:
        """Return a call for each target; only for the model that has begun the claimed request if it is one of them. A call has a seed only
        if the caller set one. Raises what ``_admit``, ``prompt_admission`` and ``continuing`` raise."""
        caller = self._caller(running, principal, forbids_external=request.forbid_external)
        guard = caller.policy.guard
        if claim is not None and claim.config_revision not in {None, caller.config.revision}:
            # A request keeps its guardrails at every gateway: others would move what the caller has already read.
            guard = await self.read_guardrails(claim.config_revision, principal)
        admitted = await self._guard_prompt(running, prompt_admission.admit(request), guard, request.top_logprobs)
        answers = request.n or 1
        has_images = any(message.images for message in admitted.messages)
        running.record_admission(admitted, answers, prompt_admission.fingerprint(admitted.messages, self.prompt_hash_secret))

        def describe(route: Route) -> RequestFacts:
            return RequestFacts(
                unit=self._unit(route.sticky, running, principal, request.conversation_id or admitted.messages),
                prompt_tokens=admitted.likely_prompt_tokens,
                wants_answer=True,
                has_tools=bool(request.tools),
                has_format=request.format is not None,
                has_images=has_images,
                tier=principal.tier,
                key_name=principal.key_name,
                organization=principal.tenant_id,
                now=datetime.now(UTC),
            )

        choice = (await self._find_targets(running, caller, request.model, describe, has_images=has_images)).continuing(claim)
        models = choice.models
        limits = self._limits(running, principal, models[0])
        most = self._most_max_tokens(models)
        if request.max_tokens is None:
            max_tokens = self._first_step(limit_rules.most_tokens(limits), models[0], admitted.likely_prompt_tokens, answers)
            most = most if self._knows_open_ends(models) else max_tokens
        else:
            most = max_tokens = min(request.max_tokens, most)
        bounds = CostBounds(
            models=models,
            prompt_tokens=admitted.most_prompt_tokens,
            max_tokens=max_tokens,
            answers=answers,
            seconds=seconds,
            priced_as=choice.priced_as,
            holds=choice.holds(running.upstream, Usage(admitted.most_prompt_tokens, max_tokens * answers)),
        )
        salt = prompt_admission.prompt_salt(principal.tenant_id, self.prompt_hash_secret)
        requirements = WorkerRequirements(
            model=models[0],
            tenant=principal.tenant_id,
            limited_as=principal.limited_as,
            prompt_tokens=admitted.likely_prompt_tokens,
            max_tokens=max_tokens * answers,
            prefix_hashes=generation.hash_prefixes(admitted.messages, salt, request.tools),
            placement=caller.policy.placement,
            has_images=has_images,
        )
        held = await self._admit(running, principal, limits, choice.requirements(requirements), bounds)
        is_open_ended = request.max_tokens is None and not held.clamped and self._knows_open_ends(models)
        # See ``bounded_answers`` for more than is held.
        limit = most if is_open_ended else held.max_tokens
        sampling = {field: getattr(request, field) for field in _SAMPLED} | {"max_tokens": limit}

        def call(target: ServingTarget) -> inference.ProcessPrompt:
            config = inference.ModelConfig(**sampling, model=target.model)
            return inference.ProcessPrompt(admitted.messages, config, running.request_id, salt, call_parts=True, open_ended=is_open_ended)

        return choice.affordable(held).calls(requirements, call)

    def extend_hold(self, running: ActivePrompt, principal: Principal, target: ServingTarget, max_tokens: int) -> asyncio.Task[int]:
        """Count and reserve so many tokens for each answer, or as many as the credits cover. The task returns how many are reserved, and
        never raises."""

        async def extended() -> int:
            # Raised in this group, a failure would end the gateway.
            (failure,) = await asyncio.gather(self._extend_hold(running, principal, target, max_tokens), return_exceptions=True)
            if failure is not None and not isinstance(failure, errors.Unavailable):
                _log.error("a reservation could not be extended", exc_info=failure)
            assert running.held is not None  # admitted before
            return running.held.max_tokens

        return self.tasks.create_task(extended())

    async def _extend_hold(self, running: ActivePrompt, principal: Principal, target: ServingTarget, max_tokens: int) -> None:
        answers, usage = running.wanted_answers, Usage(running.most_prompt_tokens, max_tokens * running.wanted_answers)
        ceiling, hold = target.ceiling_micro, None
        if ceiling is not None:
            hold = TargetHold(*target.place, target.model, running.upstream.cost(target.model, usage), ceiling)
        assert running.held is not None  # admitted before
        assert running.limit_usage is not None
        with tracing.span("ledger.extend"):
            if await self.quotas.extend(running.limit_usage, tokens=running.likely_prompt_tokens + usage.completion_tokens):
                running.held = await self.ledger.extend(
                    principal, running.held, target.model, max_tokens=max_tokens, answers=answers, target=hold
                )

    async def admit_texts(
        self, running: ActiveEmbedding, principal: Principal, request: EmbeddingRequest, seconds: float
    ) -> tuple[TargetCall[embedding.Embed], ...]:
        """Admit an embedding request; otherwise like ``admit_prompt``."""
        caller = self._caller(running, principal, forbids_external=request.forbid_external)
        admitted = await self._guard_texts(running, prompt_admission.admit_texts(request), caller.policy.guard)
        running.wanted_dimensions = request.dimensions

        def call(target: ServingTarget) -> embedding.Embed:
            return embedding.Embed(target.model, admitted.inputs, running.request_id, request.dimensions)

        return await self._admit_texts(running, caller, request.model, seconds, call)

    async def admit_ranking(
        self, running: ActiveRanking, principal: Principal, request: RankingRequest, seconds: float
    ) -> tuple[TargetCall[embedding.Embed], ...]:
        """Admit texts to rank; otherwise like ``admit_prompt``."""
        caller = self._caller(running, principal, forbids_external=request.forbid_external)
        admitted = await self._guard_texts(running, prompt_admission.admit_ranking(request), caller.policy.guard)
        query, *documents = admitted.inputs
        running.admitted = replace(admitted, inputs=tuple(documents))

        def call(target: ServingTarget) -> embedding.Embed:
            return embedding.Embed(target.model, tuple(documents), running.request_id, query=str(query))

        return await self._admit_texts(running, caller, request.model, seconds, call)

    async def admit_moderation(
        self, running: ActiveModeration, principal: Principal, request: ModerationRequest, seconds: float
    ) -> tuple[TargetCall[inference.Moderate], ...]:
        """Admit a moderation request; otherwise like ``admit_prompt``."""
        caller = self._caller(running, principal, forbids_external=request.forbid_external)
        admitted = prompt_admission.admit_moderation(request)
        if request.by_policy:
            # What the caller may name doesn't matter. Who may see the text does.
            policy = replace(caller.policy, guard=NO_GUARD, models=())
            caller = replace(caller, principal=msgspec.structs.replace(principal, models=()), policy=policy, is_limited=False)
        admitted = await self._guard_texts(running, admitted, caller.policy.guard)
        texts = tuple(text for text in admitted.inputs if isinstance(text, str))

        def call(target: ServingTarget) -> inference.Moderate:
            return inference.Moderate(target.model, texts, running.request_id, target.format)

        wanted = request.model or routing.find_moderation(caller.names, caller.policy.allows_name)
        return await self._admit_texts(running, caller, wanted, seconds, call)

    async def admit_conversion(
        self, running: ActiveConversion, principal: Principal, request: inference.Conversion, seconds: float, *, forbids_external: bool
    ) -> tuple[TargetCall[inference.Conversion], ...]:
        """Admit a conversion for the model that it names, if any. It counts as a request, but costs neither credits nor tokens, and needs
        no capacity; otherwise like ``admit_prompt``."""
        caller = self._caller(running, principal, forbids_external=forbids_external)
        prompt_admission.check_conversion(request)
        scan = caller.policy.guard.prompt
        if scan and not isinstance(request, inference.Detokenize):
            running.prompt_matches = GuardMatches()
            messages = await prompt_guard.guard_messages(request.messages, scan, running.prompt_matches)
            request = msgspec.structs.replace(request, messages=messages)
        running.admitted = AdmittedTexts((), 0, 0)
        named = request
        return await self._admit_texts(
            running, caller, named.model or None, seconds, lambda target: msgspec.structs.replace(named, model=target.model)
        )

    async def _guard_texts(self, running: ActiveTexts, admitted: AdmittedTexts, guard: Guardrails) -> AdmittedTexts:
        """Return the texts as workers may see them. Raises ContentFiltered."""
        if guard.prompt:
            running.prompt_matches = GuardMatches()
            admitted = replace(admitted, inputs=await prompt_guard.guard_inputs(admitted.inputs, guard.prompt, running.prompt_matches))
        running.admitted, running.prompt_hash = admitted, prompt_admission.fingerprint(admitted.inputs, self.prompt_hash_secret)
        return admitted

    async def _admit_texts(
        self,
        running: ActiveTexts,
        caller: Caller,
        wanted: ModelName | None,
        seconds: float,
        call: Callable[[ServingTarget], Call],
    ) -> tuple[TargetCall[Call], ...]:
        principal, admitted = caller.principal, running.admitted
        assert admitted is not None  # set before

        def describe(route: Route) -> RequestFacts:
            return RequestFacts(
                unit=self._unit(route.sticky, running, principal, str(running.request_id)),
                prompt_tokens=0,
                wants_answer=False,
                tier=principal.tier,
                key_name=principal.key_name,
                organization=principal.tenant_id,
                now=datetime.now(UTC),
            )

        choice = await self._find_targets(running, caller, wanted, describe)
        bounds = CostBounds(
            models=choice.models,
            prompt_tokens=admitted.most_prompt_tokens,
            max_tokens=0,
            answers=1,
            seconds=seconds,
            priced_as=choice.priced_as,
            holds=choice.holds(running.upstream, Usage(admitted.most_prompt_tokens, 0)),
        )
        requirements = WorkerRequirements(
            model=choice.models[0],
            tenant=principal.tenant_id,
            limited_as=principal.limited_as,
            prompt_tokens=admitted.likely_prompt_tokens,
            max_tokens=0,
            placement=caller.policy.placement,
            takes_slot=not isinstance(running, ActiveConversion),
        )
        limits = self._limits(running, principal, choice.models[0]) if caller.is_limited else ()
        if not requirements.takes_slot:
            await self._count(running, principal, limits, requirements, bounds)
            return choice.calls(requirements, call)
        held = await self._admit(running, principal, limits, choice.requirements(requirements), bounds)
        return choice.affordable(held).calls(requirements, call)

    async def _guard_prompt(
        self, running: ActivePrompt, admitted: AdmittedPrompt, guard: Guardrails, top_logprobs: int | None
    ) -> AdmittedPrompt:
        """Return the prompt as workers may see it. Raises ContentFiltered, BadRequest for log probabilities of masked answers,
        and what ``Moderation.check_prompt`` raises."""
        if guard.answer:
            if guard.answer.changes_text and top_logprobs is not None:
                raise BadField("logprobs", "can't be returned: your policy masks or refuses parts of answers")
            running.guard = AnswerGuard(guard.answer)
        if not (guard.prompt or guard.moderation):
            return admitted
        matches = running.prompt_matches = GuardMatches()
        if guard.prompt:
            began = time.perf_counter()
            messages = await prompt_guard.guard_messages(admitted.messages, guard.prompt, matches)
            running.guard_seconds = time.perf_counter() - began
            admitted = replace(admitted, messages=messages)
        if guard.moderation and running.moderate is not None:
            running.moderation = Moderation(guard.moderation, running.moderate)
            # The caller gets nothing before the end, and doesn't pay for an answer that can't be checked.
            running.is_unstreamed = running.is_unstreamed or running.moderation.holds
            await running.moderation.check_prompt(admitted.messages, matches)
        return admitted

    def _caller(self, running: ActiveRequest, principal: Principal, *, forbids_external: bool) -> Caller:
        config = self.read_config()
        policy = config.policies.of(principal, forbids_external=forbids_external)
        running.shows_target = policy.show_targets.value
        return Caller(principal, policy, config, config.names_for(policy))

    async def _find_targets(
        self,
        running: ActiveRequest,
        caller: Caller,
        wanted: ModelName | None,
        describe: Callable[[Route], RequestFacts],
        *,
        has_images: bool = False,
    ) -> TargetChoice:
        """Wait briefly if the model's workers may return soon. Raises UnknownModel, NotReachable, NotAllowed or PolicyForbidden, and
        BadRequest for another task than that of the model or route."""
        gives_up_at = self.clock() + self.worker_wait_seconds
        config = caller.config
        route, moderates = caller.names.find_route(wanted), isinstance(running, ActiveModeration)
        if route is not None and not caller.policy.allows_name(route.name):
            route = None
        if route is not None:
            routing.ensure_task(route, moderates=moderates)
        elif moderates:
            raise routing.no_moderation(wanted)
        compared = None if route is None or route.compared_with is None else config.upstream_prices.get(route.compared_with)
        running.upstream = UpstreamPrices(config.upstream_prices, compared)
        facts = None if route is None else describe(route)
        while True:
            try:
                if route is None or facts is None:
                    return self._find_served(running, caller, wanted, has_images=has_images)
                running.model, running.unit = ModelName(route.name), facts.unit
                decision = self._choose(route, facts, caller)
                if not decision.candidates:
                    # Wait for a start, of the first one only.
                    decision = self._choose(route, facts, caller, self.dispatch.worker_stats.starts.pools)
                    decision = replace(decision, candidates=decision.candidates[:1])
                lacks = {dropped.reason for dropped in decision.dropped} == {DropReason.LACKS_CAPABILITY}
                if has_images and lacks and not decision.candidates:
                    raise errors.BadRequest(
                        f"{route.name} has no target that can see images", hint="leave them out, or choose another model"
                    )
                return target_choice.serving(decision, caller, self.directory.usable(Role.WORKER))
            except errors.NotReachable:
                now, workers = self.clock(), self.directory.entries(Role.WORKER)
                if now >= gives_up_at or not (now < self.discovery_ends_at or routing.any_recently_lost(workers, datetime.now(UTC))):
                    raise
            await asyncio.sleep(_LOOK_SECONDS)

    def _find_served(self, running: ActiveRequest, caller: Caller, wanted: ModelName | None, *, has_images: bool) -> TargetChoice:
        just_started = self.clock() < self.discovery_ends_at
        entries, usable = self.directory.entries(Role.WORKER), self.directory.usable(Role.WORKER)
        startable = self.dispatch.worker_stats.starts.pools
        model = routing.resolve(
            wanted, entries, caller.names, just_started=just_started, allows=caller.policy.allows_name, startable=startable
        )
        running.model, running.served_model = caller.names.public_name(wanted, model), model
        routing.ensure_capable(model, usable, wants_answer=isinstance(running, ActivePrompt), has_images=has_images)
        prompt_admission.check_open(caller.principal, model, caller.names)
        reason = self._policy_refusal(caller, model, model) or route_choice.find_forbidden(
            usable, model, caller.principal.tenant_id, caller.policy.placement
        )
        if reason is not None:
            raise target_choice.forbidden(caller.policy, running.model, {model: reason}, usable)
        return TargetChoice((ServingTarget(model),))

    def _choose(self, route: Route, facts: RequestFacts, caller: Caller, startable: Iterable[ModelName] = ()) -> RouteDecision:
        principal = caller.principal
        served = route_choice.served_models(self.directory.usable(Role.WORKER), principal.tenant_id, caller.policy.placement)
        offered = {model: ModelFacts() for model in startable} | served
        is_listed = route.name in principal.models

        def find_refusal(model: ModelName) -> DropReason | None:
            if not is_listed and not prompt_admission.is_open(principal, model, caller.names):
                return DropReason.POLICY_MODEL
            return self._policy_refusal(caller, model, ModelName(route.name) if route.has_own_price else model)

        return route_choice.choose(route, facts, offered.get, find_refusal)

    def _policy_refusal(self, caller: Caller, model: ModelName, priced_as: ModelName) -> DropReason | None:
        return route_choice.find_refusal(caller.policy, model, self.ledger.price_of(priced_as))

    def _unit(self, sticky: Sticky, running: ActiveRequest, principal: Principal, conversation: str | Sequence[ChatMessage]) -> bytes:
        """Return what sticks to one target."""
        match sticky:
            case Sticky.USER:
                return principal.user_id.bytes
            case Sticky.ORGANIZATION:
                return principal.tenant_id.bytes
            case Sticky.REQUEST:
                return running.request_id.bytes
        if not isinstance(conversation, str):
            # The system message and the first question stay the same during a conversation.
            system = [message for message in conversation[:1] if message.role == "system"]
            question = next((message for message in conversation if message.role == "user"), None)
            conversation = prompt_admission.fingerprint([*system, *([] if question is None else [question])], self.prompt_hash_secret)
        return principal.tenant_id.bytes + conversation.encode()

    def _limits(self, running: ActiveRequest, principal: Principal, first: ModelName) -> Sequence[RequestLimit]:
        """Return the limits of the caller, of the model that it named, and of the model that is tried first."""
        assert running.model is not None  # found before
        limits = self.quotas.limits(principal, first)
        return limits if running.model == first else (*limits, *self.quotas.limits_of_model(running.model))

    async def _admit(
        self,
        running: ActiveRequest,
        principal: Principal,
        limits: Sequence[RequestLimit],
        requirements: Sequence[WorkerRequirements],
        bounds: CostBounds,
    ) -> HeldCredits:
        """Check for capacity at one target, count the request against the limits, and reserve its maximum cost. Raises Overloaded, Limited
        or TokensTooLarge, BudgetExhausted or LedgerUnavailable, in this order."""
        self._ensure_capacity(requirements)
        await self._count(running, principal, limits, requirements[0], bounds)
        try:
            with tracing.span("ledger.reserve"):
                running.held = await self.ledger.reserve(principal, running.request_id, bounds)
        except errors.AimeshError as error:
            limit_rules.attach_limits(error, running.allowance)
            raise
        return running.held

    async def _count(
        self, running: ActiveRequest, principal: Principal, limits: Sequence[RequestLimit], first: WorkerRequirements, bounds: CostBounds
    ) -> None:
        """Count the request against the limits. Raises Limited or TokensTooLarge."""
        seconds = bounds.seconds + self.dispatch.longest_start_seconds(bounds.models)
        tokens = first.prompt_tokens + first.max_tokens
        try:
            with tracing.span("ratelimit.acquire"):
                running.limit_usage = await self.quotas.spend(
                    limits, running.request_id, tier=principal.tier, tokens=tokens, seconds=seconds
                )
        except LimitReached as error:
            labels = {"scope": error.allowance.scope, "tier": principal.tier, "model": first.model}
            self.metrics.rate_limit_violations.labels(**labels).inc()
            raise

    def _ensure_capacity(self, requirements: Sequence[WorkerRequirements]) -> None:
        """Raise Overloaded if the queues of all targets are too long."""
        for needs in requirements:
            try:
                self.dispatch.ensure_capacity(needs)
            except errors.Overloaded:
                if not needs.has_alternative:
                    raise
            except errors.NotReachable:
                # Workers that are away may return before the request needs one.
                continue
            else:
                return

    def _most_max_tokens(self, models: Iterable[ModelName]) -> int:
        """Return the longest answer that any worker could give; the worker lowers it to what its context leaves."""
        usable = self.directory.usable(Role.WORKER)
        # 0 is a context of unknown size.
        contexts = [tokens or MAX_ANSWER_TOKENS for model in models for tokens in routing.contexts(model, usable)]
        return min(MAX_ANSWER_TOKENS, max(contexts, default=MAX_ANSWER_TOKENS))

    def _knows_open_ends(self, models: Sequence[ModelName]) -> bool:
        """Return whether all workers know ``ProcessPrompt.open_ended``. Older ones pass a max_tokens on that servers may refuse."""
        workers = self.directory.usable(Role.WORKER)
        return all(offer.open_ended for worker in workers for offer in worker.announcement.models if offer.ready and offer.name in models)

    def _first_step(self, limit: int | None, model: ModelName, prompt_tokens: int, answers: int) -> int:
        """Return what is reserved for each answer at first if the caller names no number."""
        context_tokens = min(routing.contexts(model, self.directory.usable(Role.WORKER)), default=0)
        most = min(STEP_TOKENS, context_tokens or STEP_TOKENS)
        return most if limit is None else max(1, min(most, (limit - prompt_tokens) // answers))
