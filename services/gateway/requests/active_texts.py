"""Holds requests that only read texts, for embeddings, ranking, moderation or a conversion of tokens, and reads their answers."""

import math
import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from typing import ClassVar, Generic, Self, TypeVar

import msgspec

from services.gateway.facts.guardrails import GuardScan
from services.gateway.guard import prompt_guard
from services.gateway.guard.guarded_text import GuardMatches
from services.gateway.relay import ConversionItem, Embedding, ModerationItem, TextRequest
from services.gateway.requests import request_validation
from services.gateway.requests.active_request import ActiveAnswer, ActiveRequest, AdmittedRequest, OpenAnswers, RequestLabels
from services.gateway.requests.request_validation import AdmittedTexts, ModerationRequest
from services.gateway.requests.targets import ServingTarget
from shared import errors
from shared.api import embedding, inference
from shared.api.embedding import Embed, Embedded, EmbeddingInput, EmbeddingRequest, EmbeddingResult, RankingRequest, Vectors
from shared.api.generation import Usage
from shared.api.inference import (
    MAX_CONVERTED_BYTES,
    TOKEN_BYTES,
    Conversion,
    Converted,
    ConvertedPart,
    Moderate,
    Moderated,
    ModerationVerdict,
)

#: Bytes of one number in a vector.
NUMBER_BYTES = 4
#: In all vectors of a request, 16 MiB: OpenAI's most inputs for a model with 2,048 dimensions. As JSON it is five times as much.
MAX_NUMBERS = 2048 * 2048

Asked = TypeVar("Asked", bound=EmbeddingRequest | RankingRequest | ModerationRequest | Conversion)
Call = TypeVar("Call", bound=TextRequest)


# --- what is asked --------------------------------------------------------------------------------------------------------


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
    def call(self, target: ServingTarget, request: ActiveRequest) -> Call:
        """Return what to send to the target's workers, after ``guard``."""


class AskedEmbedding(AskedTexts[EmbeddingRequest, Embed]):
    labels = embedding.request_embeddings.name.partition(".")[2], "embeddings"

    def validate(self) -> AdmittedTexts:
        return request_validation.admit_texts(self.request)

    def call(self, target: ServingTarget, request: ActiveRequest) -> Embed:
        return Embed(target.model, self.inputs, request.request_id, self.request.dimensions)


class AskedRanking(AskedTexts[RankingRequest, Embed]):
    """The query is the first input."""

    labels = embedding.request_ranking.name.partition(".")[2], "rerank"

    def validate(self) -> AdmittedTexts:
        return request_validation.admit_ranking(self.request)

    def call(self, target: ServingTarget, request: ActiveRequest) -> Embed:
        query, *documents = self.inputs
        return Embed(target.model, tuple(documents), request.request_id, query=str(query))


class AskedModeration(AskedTexts[ModerationRequest, Moderate]):
    labels = inference.moderate.name.partition(".")[2], "moderation"

    def validate(self) -> AdmittedTexts:
        return request_validation.admit_moderation(self.request)

    def call(self, target: ServingTarget, request: ActiveRequest) -> Moderate:
        return Moderate(target.model, tuple(map(str, self.inputs)), request.request_id, target.format)


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

    def call(self, target: ServingTarget, request: ActiveRequest) -> Conversion:
        return msgspec.structs.replace(self.request, model=target.model)


# --- what is answered -----------------------------------------------------------------------------------------------------


class ActiveTexts(ActiveAnswer):
    _prompt_tokens = 0

    def usage(self) -> Usage:
        return Usage(min(max(self._prompt_tokens, 0), self.admission.most_prompt_tokens), completion_tokens=0)


class ActiveVectors(ActiveTexts):
    """Iterate it for the vectors, of one number if a query ranks the texts; read ``result`` after the block of ``Pipeline.embed`` or
    ``rank``."""

    answers: AsyncGenerator[Embedding]
    _vectors = 0
    #: Every vector must have as many as the first.
    _dimensions = 0

    def __init__(self, request: ActiveRequest, admitted: AdmittedRequest[Embed], open_answers: OpenAnswers) -> None:
        super().__init__(request, admitted, open_answers)
        call = admitted.calls[0].call
        self._texts, self._wanted_dimensions = len(call.inputs), call.dimensions if call.query is None else 1

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, Vectors]:
        """Return the next vectors with their number, as ``ActivePrompt``. Raises ProtocolViolation for an invalid vector."""
        while True:
            answer = await anext(self.answers)
            if isinstance(answer, Vectors):
                for vector in answer.vectors:
                    self._check_vector(vector)
                self._number += not answer.waiting
                return (0 if answer.waiting else self._number), answer
            self._prompt_tokens = answer.prompt_tokens
            if isinstance(answer, Embedded):
                if self._vectors != self._texts:
                    raise _violation(f"{self._vectors} vectors for {self._texts} texts")
                self.delivered.complete = True

    @property
    def result(self) -> EmbeddingResult:
        totals = self.totals
        return EmbeddingResult(self.request_id, self.model, self._dimensions, totals.usage.prompt_tokens, totals.response_time_ms)

    def _check_vector(self, vector: bytes) -> None:
        self._vectors += 1
        numbers, over = divmod(len(vector), NUMBER_BYTES)
        self._dimensions = self._dimensions or numbers
        wanted = self._wanted_dimensions or self._dimensions
        if over or not 0 < numbers == wanted == self._dimensions <= embedding.MAX_DIMENSIONS or self._vectors > self._texts:
            raise _violation(f"vector {self._vectors} with {len(vector)} bytes, which is not a valid length")
        if numbers * self._texts > MAX_NUMBERS:
            most = MAX_NUMBERS // numbers
            raise errors.TooLarge(f"this model has {numbers} dimensions, so a request may have {most} inputs", hint="send several requests")
        if not math.isfinite(math.hypot(*struct.unpack(f"<{numbers}f", vector))):
            raise _violation(f"vector {self._vectors} with non-finite numbers")


class ActiveModeration(ActiveTexts):
    answers: AsyncGenerator[ModerationItem]

    def __init__(self, request: ActiveRequest, admitted: AdmittedRequest[Moderate], open_answers: OpenAnswers) -> None:
        super().__init__(request, admitted, open_answers)
        self._texts = len(admitted.calls[0].call.texts)

    async def read(self) -> tuple[ModerationVerdict, ...]:
        """Return a verdict for each text. Raises ProtocolViolation for another number."""
        verdicts: tuple[ModerationVerdict, ...] = ()
        async for answer in self.answers:
            if isinstance(answer, Moderated):
                self._prompt_tokens, verdicts = answer.prompt_tokens, answer.verdicts
        if len(verdicts) != self._texts:
            raise _violation(f"{len(verdicts)} verdicts for {self._texts} texts")
        self.delivered.complete = True
        return verdicts


class ActiveConversion(ActiveTexts):
    answers: AsyncGenerator[ConversionItem]
    #: The model's context; 0 if unknown.
    context_tokens = 0

    async def count(self) -> int | None:
        """Return the number of tokens; None if the model's server can't tell. Raises as ``read``."""
        try:
            return len(await self.read()) // TOKEN_BYTES
        except errors.UnknownMethod:
            self.delivered.complete = True
            return None

    async def read(self) -> bytes:
        """Return token ids or a text. Raises ProtocolViolation for parts out of order, or too many."""
        content = bytearray()
        async for answer in self.answers:
            if isinstance(answer, Converted):
                self.context_tokens = max(0, answer.context_tokens)
            elif isinstance(answer, ConvertedPart):
                if answer.start == 0:
                    content.clear()
                if answer.start != len(content) or answer.start + len(answer.content) > MAX_CONVERTED_BYTES:
                    raise _violation("parts out of order, or too many")
                content += answer.content
        self.delivered.complete = True
        return bytes(content)


def _violation(what: str) -> errors.ProtocolViolation:
    return errors.ProtocolViolation(f"the worker sent {what}", hint="retry the request")
