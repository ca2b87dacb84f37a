"""Admits a request: validates it, finds its model, ensures capacity, counts it against the limits, and reserves its credits."""

import asyncio
import contextlib
import hmac
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from services.gateway import node_interface, prompt_admission
from services.gateway.active_request import ActiveEmbedding, ActivePrompt, ActiveRequest
from services.gateway.billing.ledger import CostBounds, HeldCredits, Ledger
from services.gateway.config_snapshot import ReadConfig
from services.gateway.limits import limit_rules
from services.gateway.limits.quotas import LimitReached, Quotas
from services.gateway.prompt_admission import MAX_ANSWER_TOKENS
from services.gateway.scheduling import prefix_affinity, routing
from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.routing import WorkerRequirements
from shared import errors
from shared.api import embedding, inference
from shared.api.auth import Principal
from shared.api.embedding import EmbeddingInput, EmbeddingRequest
from shared.api.gateway import InferenceRequest
from shared.api.generation import ChatMessage, Sampling
from shared.telemetry import Metrics, tracing
from shared.types import ModelName, Role, TenantId

#: Default for max_tokens if the context allows it: about a page of text, at a bounded price.
DEFAULT_MAX_TOKENS = 4096
#: How often a waiting request checks the directory for workers.
_LOOK_SECONDS = 0.1
_SAMPLED = Sampling.__struct_fields__


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestAdmission:
    """Admits requests. For the first ``worker_wait_seconds`` after start, a model may have workers that aren't discovered yet; a request
    waits equally long for workers that left a moment ago."""

    quotas: Quotas
    ledger: Ledger
    dispatch: Dispatch
    directory: node_interface.NodeDirectory
    read_config: ReadConfig
    metrics: Metrics
    prompt_hash_secret: str
    clock: Callable[[], float] = time.monotonic
    worker_wait_seconds: float = 0.0
    discovery_ends_at: float = -math.inf

    async def admit_prompt(
        self, running: ActivePrompt, principal: Principal, request: InferenceRequest, seconds: float
    ) -> tuple[inference.ProcessPrompt, WorkerRequirements]:
        """Return the call for a worker, with a seed only if the caller set one. Raises what ``_admit`` and ``prompt_admission`` raise."""
        admitted = prompt_admission.admit(request)
        answers = request.n or 1
        running.record_admission(admitted, answers, fingerprint(admitted.messages, self.prompt_hash_secret))
        model = await self._find_model(running, principal, request.model)
        limits = self.quotas.limits(principal, model)
        default = self._default_max_tokens(limit_rules.most_tokens(limits), model, admitted.likely_prompt_tokens, answers)
        bounds = CostBounds(
            model=model,
            prompt_tokens=admitted.most_prompt_tokens,
            max_tokens=default if request.max_tokens is None else min(request.max_tokens, self._most_max_tokens(model)),
            answers=answers,
            seconds=seconds,
        )
        salt = prompt_salt(principal.tenant_id, self.prompt_hash_secret)
        requirements = WorkerRequirements(
            model=model,
            tenant=principal.tenant_id,
            limited_as=principal.limited_as,
            prompt_tokens=admitted.likely_prompt_tokens,
            max_tokens=bounds.max_tokens * answers,
            prefix_hashes=prefix_affinity.hash_prefixes(admitted.messages, salt, request.tools),
        )
        held = await self._admit(running, principal, limits, requirements, bounds)
        sampling = {field: getattr(request, field) for field in _SAMPLED} | {"max_tokens": held.max_tokens}
        config = inference.ModelConfig(**sampling, model=model)
        return inference.ProcessPrompt(admitted.messages, config, running.request_id, salt), requirements

    async def admit_texts(
        self, running: ActiveEmbedding, principal: Principal, request: EmbeddingRequest, seconds: float
    ) -> tuple[embedding.Embed, WorkerRequirements]:
        """Admit an embedding request; otherwise like ``admit_prompt``."""
        admitted = prompt_admission.admit_texts(request)
        running.admitted, running.wanted_dimensions = admitted, request.dimensions
        running.prompt_hash = fingerprint(admitted.inputs, self.prompt_hash_secret)
        model = await self._find_model(running, principal, request.model)
        bounds = CostBounds(model=model, prompt_tokens=admitted.most_prompt_tokens, max_tokens=0, answers=1, seconds=seconds)
        requirements = WorkerRequirements(model, principal.tenant_id, principal.limited_as, admitted.likely_prompt_tokens, 0)
        await self._admit(running, principal, self.quotas.limits(principal, model), requirements, bounds)
        return embedding.Embed(model, admitted.inputs, running.request_id, request.dimensions), requirements

    async def _find_model(self, running: ActiveRequest, principal: Principal, wanted: ModelName | None) -> ModelName:
        """Wait briefly if the model's workers may return soon. Raises UnknownModel, NotReachable or NotAllowed, and BadRequest for a
        prompt to an embedding model."""
        gives_up_at = self.clock() + self.worker_wait_seconds
        names = self.read_config().names
        while True:
            now = self.clock()
            workers = self.directory.entries(Role.WORKER)
            try:
                running.model = routing.resolve(wanted, workers, names, just_started=now < self.discovery_ends_at)
                break
            except errors.NotReachable:
                if now >= gives_up_at or not (now < self.discovery_ends_at or routing.any_recently_lost(workers, datetime.now(UTC))):
                    raise
            await asyncio.sleep(_LOOK_SECONDS)
        if isinstance(running, ActivePrompt):
            routing.ensure_answers(running.model, self.directory.usable(Role.WORKER))
        prompt_admission.check_open(principal, running.model, names)
        return running.model

    async def _admit(
        self,
        running: ActiveRequest,
        principal: Principal,
        limits: Sequence[limit_rules.RequestLimit],
        requirements: WorkerRequirements,
        bounds: CostBounds,
    ) -> HeldCredits:
        """Check for capacity, count the request against the limits, and reserve its maximum cost. Raises Overloaded, Limited or
        TokensTooLarge, BudgetExhausted or LedgerUnavailable, in this order."""
        # Workers that are away may return before the request needs one.
        with contextlib.suppress(errors.NotReachable):
            self.dispatch.ensure_capacity(requirements)
        tokens = requirements.prompt_tokens + requirements.max_tokens
        try:
            with tracing.span("ratelimit.acquire"):
                running.limit_usage = await self.quotas.spend(
                    limits, running.request_id, tier=principal.tier, tokens=tokens, seconds=bounds.seconds
                )
        except LimitReached as error:
            labels = {"scope": error.allowance.scope, "tier": principal.tier, "model": requirements.model}
            self.metrics.rate_limit_violations.labels(**labels).inc()
            raise
        try:
            with tracing.span("ledger.reserve"):
                running.held = await self.ledger.reserve(principal, running.request_id, bounds)
        except errors.AimeshError as error:
            limit_rules.attach_limits(error, running.allowance)
            raise
        return running.held

    def _most_max_tokens(self, model: ModelName) -> int:
        """Return the longest answer that any worker could give; the worker lowers it to what its context leaves."""
        # 0 is a context of unknown size.
        contexts = [tokens or MAX_ANSWER_TOKENS for tokens in routing.contexts(model, self.directory.usable(Role.WORKER))]
        return min(MAX_ANSWER_TOKENS, max(contexts, default=MAX_ANSWER_TOKENS))

    def _default_max_tokens(self, limit: int | None, model: ModelName, prompt_tokens: int, answers: int) -> int:
        context_tokens = min(routing.contexts(model, self.directory.usable(Role.WORKER)), default=0)
        most = min(DEFAULT_MAX_TOKENS, context_tokens or DEFAULT_MAX_TOKENS)
        return most if limit is None else max(1, min(most, (limit - prompt_tokens) // answers))


def fingerprint(content: Sequence[ChatMessage] | Sequence[EmbeddingInput], secret: str) -> str:
    """Return the keyed hash of a prompt for request_logs: 64 hex digits, equal for equal conversations. A plain hash would not do,
    because a short prompt can be guessed."""
    return hmac.digest(secret.encode(), msgspec.msgpack.encode(content), "sha256").hex()


def prompt_salt(tenant: TenantId, secret: str) -> str:
    """Return the token that tells a worker which prompts may share computed state, without naming the tenant."""
    return hmac.digest(secret.encode(), b"salt:" + str(tenant).encode(), "sha256").hex()[:32]
