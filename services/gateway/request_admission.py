"""Lets a request in: checks it, finds its model, makes sure there is room, counts it against the limits, and reserves its credits."""

import asyncio
import contextlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from services.gateway import node_interface
from services.gateway.active_request import ActiveEmbedding, ActivePrompt, ActiveRequest
from services.gateway.admission import prompt_admission
from services.gateway.billing.ledger import CostBounds, HeldCredits, Ledger
from services.gateway.limits import limit_rules
from services.gateway.limits.quotas import LimitReached, Quotas
from services.gateway.scheduling import prefix_affinity, routing
from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.routing import WorkerRequirements
from shared import errors
from shared.api import embedding, inference
from shared.api.auth import Principal
from shared.api.embedding import EmbeddingRequest
from shared.api.gateway import InferenceRequest
from shared.api.generation import ChatMessage, Sampling
from shared.telemetry import Metrics, tracing
from shared.types import ModelName, Role, TenantId

#: For a request that does not say how long its answer may be, if the model has room for it: a whole page, and a bounded price.
DEFAULT_MAX_TOKENS = 4096
#: How often a request that waits for a worker looks again.
_LOOK_SECONDS = 0.1
_SAMPLED = Sampling.__struct_fields__


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestAdmission:
    """One for the gateway. For the first ``patience_seconds`` a model without workers may have some that are not found yet; a request
    waits as long for workers that were there a moment ago."""

    quotas: Quotas
    ledger: Ledger
    dispatch: Dispatch
    directory: node_interface.NodeDirectory
    names: routing.ModelNames
    metrics: Metrics
    prompt_hash_secret: str
    clock: Callable[[], float]
    patience_seconds: float
    knows_all_at: float

    async def admit_prompt(
        self, running: ActivePrompt, principal: Principal, request: InferenceRequest, seconds: float
    ) -> tuple[inference.ProcessPrompt, WorkerRequirements]:
        """Return what a worker is asked, with a seed only if the caller gave one. Raises what ``_admit`` raises, and what
        ``prompt_admission`` raises."""
        admitted = prompt_admission.admit(request)
        answers = request.n or 1
        running.admitted(admitted, answers, fingerprint(admitted.messages, self.prompt_hash_secret))
        model = await self._find_model(running, principal, request.model)
        limits = self.quotas.limits(principal, model)
        default = self._default_max_tokens(limit_rules.most_tokens(limits), model, admitted.likely_prompt_tokens, answers)
        bounds = CostBounds(
            model=model,
            prompt_tokens=admitted.most_prompt_tokens,
            max_tokens=request.max_tokens or default,
            answers=answers,
            seconds=seconds,
        )
        salt = _salt(principal.tenant_id, self.prompt_hash_secret)
        wish = WorkerRequirements(
            model=model,
            tenant=principal.tenant_id,
            limited_as=principal.limited_as,
            prompt_tokens=admitted.likely_prompt_tokens,
            max_tokens=bounds.max_tokens * answers,
            beginnings=prefix_affinity.beginnings(admitted.messages, salt, request.tools),
        )
        held = await self._admit(running, principal, limits, wish, bounds)
        sampling = {field: getattr(request, field) for field in _SAMPLED} | {"max_tokens": held.max_tokens}
        config = inference.ModelConfig(**sampling, model=model)
        return inference.ProcessPrompt(admitted.messages, config, running.request_id, salt), wish

    async def admit_texts(
        self, running: ActiveEmbedding, principal: Principal, request: EmbeddingRequest, seconds: float
    ) -> tuple[embedding.Embed, WorkerRequirements]:
        """As ``admit_prompt``, for texts that become vectors."""
        admitted = prompt_admission.admit_texts(request)
        running.admitted, running.wanted_dimensions = admitted, request.dimensions
        running.prompt_hash = fingerprint(admitted.inputs, self.prompt_hash_secret)
        model = await self._find_model(running, principal, request.model)
        bounds = CostBounds(model=model, prompt_tokens=admitted.most_prompt_tokens, max_tokens=0, answers=1, seconds=seconds)
        wish = WorkerRequirements(model, principal.tenant_id, principal.limited_as, admitted.likely_prompt_tokens, 0)
        await self._admit(running, principal, self.quotas.limits(principal, model), wish, bounds)
        return embedding.Embed(model, admitted.inputs, running.request_id, request.dimensions), wish

    async def _find_model(self, running: ActiveRequest, principal: Principal, wanted: ModelName | None) -> ModelName:
        """Wait for a while if the model's workers may only be away for a moment. Raises UnknownModel, NotReachable or NotAllowed, and
        BadRequest for a prompt to a model that only embeds."""
        gives_up_at = self.clock() + self.patience_seconds
        while True:
            now = self.clock()
            workers = self.directory.entries(Role.WORKER)
            try:
                running.model = routing.resolve(wanted, workers, self.names, just_started=now < self.knows_all_at)
                break
            except errors.NotReachable:
                if now >= gives_up_at or not (now < self.knows_all_at or routing.are_missed(workers, datetime.now(UTC))):
                    raise
            await asyncio.sleep(_LOOK_SECONDS)
        if isinstance(running, ActivePrompt):
            routing.ensure_answers(running.model, self.directory.usable(Role.WORKER))
        prompt_admission.check_open(principal, running.model)
        return running.model

    async def _admit(
        self,
        running: ActiveRequest,
        principal: Principal,
        limits: Sequence[limit_rules.RequestLimit],
        wish: WorkerRequirements,
        bounds: CostBounds,
    ) -> HeldCredits:
        """Find out that there is a place, count the request against the limits of its caller and its model, and reserve what it may
        cost. Raises Overloaded, Limited or TokensTooLarge, BudgetExhausted or LedgerUnavailable: never one for another."""
        # A worker that is away for a moment may be back before it is needed.
        with contextlib.suppress(errors.NotReachable):
            self.dispatch.ensure_place(wish)
        tokens = wish.prompt_tokens + wish.max_tokens
        try:
            with tracing.span("ratelimit.acquire"):
                running.spent = await self.quotas.spend(
                    limits, running.request_id, tier=principal.tier, tokens=tokens, seconds=bounds.seconds
                )
        except LimitReached as error:
            labels = {"scope": error.allowance.scope, "tier": principal.tier, "model": wish.model}
            self.metrics.rate_limit_violations.labels(**labels).inc()
            raise
        try:
            with tracing.span("ledger.reserve"):
                running.held = await self.ledger.reserve(principal, running.request_id, bounds)
        except errors.AimeshError as error:
            limit_rules.tell_with(error, running.allowance)
            raise
        return running.held

    def _default_max_tokens(self, limit: int | None, model: ModelName, prompt_tokens: int, answers: int) -> int:
        """For a request that does not say: what the model has room for, and what the limits can ever let through."""
        # 0 if no worker is there to tell.
        context_tokens = routing.least_context(model, self.directory.usable(Role.WORKER))
        most = min(DEFAULT_MAX_TOKENS, context_tokens or DEFAULT_MAX_TOKENS)
        return most if limit is None else max(1, min(most, (limit - prompt_tokens) // answers))


def fingerprint(content: Sequence[ChatMessage] | Sequence[str], secret: str) -> str:
    """Return what request_logs keep instead of the prompt: 64 hex digits, the same for the same conversation. A bare hash would not do,
    because a short prompt can be guessed."""
    return hmac.digest(secret.encode(), msgspec.msgpack.encode(content), "sha256").hex()


def _salt(tenant: TenantId, secret: str) -> str:
    """Return what tells a worker whose prompts may share computed state; it reveals nothing else about the tenant."""
    return hmac.digest(secret.encode(), b"salt:" + str(tenant).encode(), "sha256").hex()[:32]
