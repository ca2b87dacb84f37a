"""What a request asks of a model: an answer to a prompt, embeddings, a ranking, moderation or a conversion of tokens.

The admission takes each kind through the same steps. The kinds differ in what their methods and attributes say here.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from services.gateway.facts.bad_field import BadField
from services.gateway.facts.guardrails import Guardrails, GuardScan
from services.gateway.facts.request_record import RequestLabels
from services.gateway.guard import prompt_guard
from services.gateway.guard.answer_guard import AnswerGuard
from services.gateway.guard.guarded_text import GuardMatches
from services.gateway.guard.moderation import Moderate, Moderation
from services.gateway.idempotency.idempotency_keys import KeyUse
from services.gateway.requests import request_validation
from services.gateway.requests.plan import AdmissionRecord
from services.gateway.requests.request_validation import Admitted, ModerationRequest
from services.gateway.requests.targets import ServingTarget
from shared.api import embedding, gateway, generation, inference
from shared.api.embedding import Embed, EmbeddingRequest, RankingRequest
from shared.api.gateway import InferenceRequest
from shared.api.generation import Sampling
from shared.api.inference import Conversion, ProcessPrompt
from shared.types import RequestId, TenantId

_SAMPLED = Sampling.__struct_fields__
_sampling_of = attrgetter(*_SAMPLED)

_MANY_MESSAGES = 1000

Request = TypeVar("Request", bound=InferenceRequest | EmbeddingRequest | RankingRequest | ModerationRequest | Conversion)
Call = TypeVar("Call", bound=ProcessPrompt | Embed | inference.Moderate | Conversion)


class Asked(ABC, Generic[Request, Call]):
    """What one request asks for. The methods are in the order of the admission's steps."""

    labels: ClassVar[RequestLabels]
    #: It generates text.
    wants_answer: ClassVar[bool] = False
    moderates: ClassVar[bool] = False
    #: See ``WorkerRequirements``. What takes none costs nothing, either.
    takes_slot: ClassVar[bool] = True
    #: See ``ModerationRequest``.
    by_policy = False
    has_tools = has_format = False
    #: How many answers it asks for.
    answers = 1
    #: None without a key.
    key_use: KeyUse | None = None
    #: As workers may see it; empty before ``validate``, and for a conversion.
    content: Sequence[Any] = ()
    #: Whether it may run behind live requests, and as the caller wants it (``InferenceRequest.flex``).
    may_be_batch: ClassVar[bool] = False
    wants_flex: bool | None = None
    #: See ``WorkerRequirements``. The admission decides it first.
    is_batch = False
    #: These two: see ``Plan``.
    answer_guard: AnswerGuard | None = None
    moderation: Moderation | None = None

    def __init__(self, request: Request, *, forbids_external: bool) -> None:
        """``forbids_external``: keep it from providers, even if policies allow them."""
        self.request = request
        self.forbids_external = forbids_external

    @abstractmethod
    async def validate(self) -> Admitted:
        """Raises BadRequest that names the field, ContextExceeded or TooLarge."""

    @abstractmethod
    async def guard(self, guard: Guardrails, record: AdmissionRecord) -> None:
        """Change it to what workers may see. Raises ContentFiltered."""

    @abstractmethod
    def call(self, target: ServingTarget, request_id: RequestId, record: AdmissionRecord) -> Call:
        """Return what to send to the target's workers, once its credits are held."""


class AskedPrompt(Asked[InferenceRequest, ProcessPrompt]):
    labels = gateway.process_inference_request.name.partition(".")[2], "chat"
    wants_answer = may_be_batch = True

    def __init__(self, request: InferenceRequest, key_use: KeyUse | None, moderate: Moderate) -> None:
        """``key_use``: its seed, model and guardrails make the answer reproducible. ``moderate``: as a policy wants it."""
        super().__init__(request, forbids_external=request.forbid_external)
        self.has_tools, self.has_format = bool(request.tools), request.format is not None
        self.answers = request.n or 1
        self.key_use = key_use
        self.wants_flex = request.flex
        self._moderate = moderate
        self._salt = ""

    async def validate(self) -> Admitted:
        await self._let_others_run()
        admitted = request_validation.admit(self.request)
        await self._let_others_run()
        return admitted

    async def _let_others_run(self) -> None:
        """Call it between the steps of a prompt. With 40,000 messages, each of them takes up to 40 ms."""
        if len(self.request.messages) > _MANY_MESSAGES:
            await asyncio.sleep(0)

    async def guard(self, guard: Guardrails, record: AdmissionRecord) -> None:
        """Raises also BadField for log probabilities of masked answers, and what ``Moderation.check_prompt`` raises."""
        record.is_guarded = True
        if guard.answer:
            if guard.answer.changes_text and self.request.top_logprobs is not None:
                raise BadField("logprobs", "can't be returned: your policy masks or refuses parts of answers")
            self.answer_guard = AnswerGuard(guard.answer)
        if guard.moderation:
            self.moderation = Moderation(guard.moderation, self._moderate)
        elif not guard.prompt:
            return
        matches = record.prompt_matches = GuardMatches()
        if guard.prompt:
            began = time.perf_counter()
            self.content = await prompt_guard.guard_messages(self.content, guard.prompt, matches)
            record.guard_seconds = time.perf_counter() - began
        if self.moderation is not None:
            await self.moderation.check_prompt(self.content, matches)

    async def hash_prefixes(self, tenant: TenantId, secret: str) -> tuple[bytes, ...]:
        """Return hashes of the prompt's prefixes, by which workers that have read them are found."""
        self._salt = request_validation.prompt_salt(tenant, secret)
        await self._let_others_run()
        return generation.hash_prefixes(self.content, self._salt, self.request.tools)

    def call(self, target: ServingTarget, request_id: RequestId, record: AdmissionRecord) -> ProcessPrompt:
        """It has a seed only if the caller set one."""
        is_open_ended = self.request.max_tokens is None and not record.held.clamped
        # See ``Hold`` for more than is held.
        limit = record.most_answer_tokens if is_open_ended else record.held.max_tokens
        sampling = dict(zip(_SAMPLED, _sampling_of(self.request), strict=True)) | {"max_tokens": limit}
        config = inference.ModelConfig(**sampling, model=target.model)
        return ProcessPrompt(tuple(self.content), config, request_id, self._salt, open_ended=is_open_ended, batch=self.is_batch)


class AskedTexts(Asked[Request, Call]):
    async def guard(self, guard: Guardrails, record: AdmissionRecord) -> None:
        if guard.prompt:
            record.is_guarded, record.prompt_matches = True, GuardMatches()
            await self._scan(guard.prompt, record.prompt_matches)

    async def _scan(self, scan: GuardScan, matches: GuardMatches) -> None:
        self.content = await prompt_guard.guard_inputs(self.content, scan, matches)


class AskedEmbedding(AskedTexts[EmbeddingRequest, Embed]):
    labels = embedding.request_embeddings.name.partition(".")[2], "embeddings"
    may_be_batch = True

    def __init__(self, request: EmbeddingRequest, *, forbids_external: bool) -> None:
        super().__init__(request, forbids_external=forbids_external)
        self.wants_flex = request.flex

    async def validate(self) -> Admitted:
        return request_validation.admit_texts(self.request)

    def call(self, target: ServingTarget, request_id: RequestId, record: AdmissionRecord) -> Embed:
        return Embed(target.model, tuple(self.content), request_id, self.request.dimensions, batch=self.is_batch)


class AskedRanking(AskedTexts[RankingRequest, Embed]):
    """The query comes before the documents."""

    labels = embedding.request_ranking.name.partition(".")[2], "rerank"

    async def validate(self) -> Admitted:
        return request_validation.admit_ranking(self.request)

    def call(self, target: ServingTarget, request_id: RequestId, record: AdmissionRecord) -> Embed:
        query, *documents = self.content
        return Embed(target.model, tuple(documents), request_id, query=str(query), batch=self.is_batch)


class AskedModeration(AskedTexts[ModerationRequest, inference.Moderate]):
    labels = inference.moderate.name.partition(".")[2], "moderation"
    moderates = True

    def __init__(self, request: ModerationRequest) -> None:
        super().__init__(request, forbids_external=request.forbid_external)
        self.by_policy = request.by_policy

    async def validate(self) -> Admitted:
        return request_validation.admit_moderation(self.request)

    def call(self, target: ServingTarget, request_id: RequestId, record: AdmissionRecord) -> inference.Moderate:
        return inference.Moderate(target.model, tuple(map(str, self.content)), request_id, target.format)


class AskedConversion(AskedTexts[Conversion, Conversion]):
    """It counts as a request, but costs neither credits nor tokens, needs no capacity, and says nothing about the answers of a target."""

    labels = inference.tokenize.name.partition(".")[2], "tokenize"
    takes_slot = False

    async def validate(self) -> Admitted:
        request_validation.check_conversion(self.request)
        return Admitted((), 0, 0)

    async def _scan(self, scan: GuardScan, matches: GuardMatches) -> None:
        if not isinstance(self.request, inference.Detokenize):
            messages = await prompt_guard.guard_messages(self.request.messages, scan, matches)
            self.request = msgspec.structs.replace(self.request, messages=messages)

    def call(self, target: ServingTarget, request_id: RequestId, record: AdmissionRecord) -> Conversion:
        return msgspec.structs.replace(self.request, model=target.model)
