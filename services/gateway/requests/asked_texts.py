"""Texts that a request asks a model to read, for embeddings, ranking, moderation or a conversion of tokens."""

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

import msgspec

from services.gateway.facts.guardrails import GuardScan
from services.gateway.guard import prompt_guard
from services.gateway.guard.guarded_text import GuardMatches
from services.gateway.requests import request_validation
from services.gateway.requests.request_validation import AdmittedTexts, ModerationRequest
from services.gateway.requests.run import RequestLabels
from services.gateway.requests.targets import ServingTarget
from shared.api import embedding, inference
from shared.api.embedding import Embed, EmbeddingInput, EmbeddingRequest, RankingRequest
from shared.api.inference import Conversion, Moderate
from shared.types import RequestId

Asked = TypeVar("Asked", bound=EmbeddingRequest | RankingRequest | ModerationRequest | Conversion)
Call = TypeVar("Call", bound=Embed | Moderate | Conversion)


class AskedTexts(ABC, Generic[Asked, Call]):
    """The texts of one request. The admission validates and guards them."""

    labels: ClassVar[RequestLabels]
    #: As workers may see them; empty before the admission, and for a conversion.
    inputs: tuple[EmbeddingInput, ...] = ()

    def __init__(self, request: Asked, *, forbids_external: bool) -> None:
        """``forbids_external``: keep the texts from providers, even if policies allow them."""
        self.request = request
        self.forbids_external = forbids_external

    @abstractmethod
    def validate(self) -> AdmittedTexts:
        """Raises BadRequest that names the field, or TooLarge."""

    async def guard(self, scan: GuardScan, matches: GuardMatches) -> None:
        """Change the texts to what workers may see. Raises ContentFiltered."""
        self.inputs = await prompt_guard.guard_inputs(self.inputs, scan, matches)

    @abstractmethod
    def call(self, target: ServingTarget, request_id: RequestId) -> Call:
        """Return what to send to the target's workers, after ``guard``."""


class AskedEmbedding(AskedTexts[EmbeddingRequest, Embed]):
    labels = embedding.request_embeddings.name.partition(".")[2], "embeddings"

    def validate(self) -> AdmittedTexts:
        return request_validation.admit_texts(self.request)

    def call(self, target: ServingTarget, request_id: RequestId) -> Embed:
        return Embed(target.model, self.inputs, request_id, self.request.dimensions)


class AskedRanking(AskedTexts[RankingRequest, Embed]):
    """The query is the first input."""

    labels = embedding.request_ranking.name.partition(".")[2], "rerank"

    def validate(self) -> AdmittedTexts:
        return request_validation.admit_ranking(self.request)

    def call(self, target: ServingTarget, request_id: RequestId) -> Embed:
        query, *documents = self.inputs
        return Embed(target.model, tuple(documents), request_id, query=str(query))


class AskedModeration(AskedTexts[ModerationRequest, Moderate]):
    labels = inference.moderate.name.partition(".")[2], "moderation"

    def validate(self) -> AdmittedTexts:
        return request_validation.admit_moderation(self.request)

    def call(self, target: ServingTarget, request_id: RequestId) -> Moderate:
        return Moderate(target.model, tuple(map(str, self.inputs)), request_id, target.format)


class AskedConversion(AskedTexts[Conversion, Conversion]):
    """It counts as a request, but costs neither credits nor tokens, needs no capacity, and says nothing about the answers of a target."""

    labels = inference.tokenize.name.partition(".")[2], "tokenize"

    def validate(self) -> AdmittedTexts:
        request_validation.check_conversion(self.request)
        return AdmittedTexts((), 0, 0)

    async def guard(self, scan: GuardScan, matches: GuardMatches) -> None:
        if not isinstance(self.request, inference.Detokenize):
            messages = await prompt_guard.guard_messages(self.request.messages, scan, matches)
            self.request = msgspec.structs.replace(self.request, messages=messages)

    def call(self, target: ServingTarget, request_id: RequestId) -> Conversion:
        return msgspec.structs.replace(self.request, model=target.model)
