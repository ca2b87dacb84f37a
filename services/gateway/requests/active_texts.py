"""Holds the state of one running request that only reads texts: for embeddings, ranking, moderation or a conversion of tokens."""

import math
import struct
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable
from typing import Generic, TypeVar

import msgspec

from services.gateway import request_validation
from services.gateway.guard import prompt_guard
from services.gateway.guard.guard_rules import GuardScan
from services.gateway.guard.guarded_text import GuardMatches
from services.gateway.relay import ConversionItem, Embedding, ModerationItem, TextRequest
from services.gateway.request_validation import AdmittedTexts, ModerationRequest
from services.gateway.requests.active_request import ActiveRequest, ServingTarget
from shared import errors
from shared.api import embedding, inference
from shared.api.embedding import Embed, Embedded, EmbeddingInput, EmbeddingRequest, EmbeddingResult, RankingRequest, Vectors
from shared.api.generation import Usage
from shared.api.inference import MAX_CONVERTED_BYTES, Conversion, Converted, ConvertedPart, Moderate, Moderated, ModerationVerdict
from shared.types import RequestStatus

#: Bytes of one number in a vector.
NUMBER_BYTES = 4
#: In all vectors of a request, 16 MiB: OpenAI's most inputs for a model with 2,048 dimensions. As JSON it is five times as much.
MAX_NUMBERS = 2048 * 2048

Asked = TypeVar("Asked", bound=EmbeddingRequest | RankingRequest | ModerationRequest | Conversion)
Call = TypeVar("Call", bound=TextRequest)


class ActiveTexts(ActiveRequest, Generic[Asked, Call]):
    #: As workers may see them; empty before the admission, and for a conversion.
    inputs: tuple[EmbeddingInput, ...] = ()
    _prompt_tokens = 0

    def __init__(self, clock: Callable[[], float], request: Asked, *, forbids_external: bool) -> None:
        """``forbids_external``: keep the texts from providers, even if policies allow them."""
        super().__init__(clock)
        self.request = request
        self.forbids_external = forbids_external

    @abstractmethod
    def validate(self) -> AdmittedTexts:
        """Raises BadRequest that names the field, or TooLarge."""

    async def guard(self, scan: GuardScan, matches: GuardMatches) -> None:
        """Change the texts to what workers may see. Raises ContentFiltered."""
        self.inputs = await prompt_guard.guard_inputs(self.inputs, scan, matches)

    @abstractmethod
    def call(self, target: ServingTarget) -> Call:
        """Return what to send to the target's workers, after ``guard``."""

    def _usage(self) -> Usage:
        return Usage(min(max(self._prompt_tokens, 0), self.most_prompt_tokens), completion_tokens=0)


class _ActiveVectors(ActiveTexts[Asked, Embed]):
    """Iterate it for the vectors; read ``result`` after the block of ``Pipeline.embed`` or ``rank``."""

    answers: AsyncGenerator[Embedding] | None
    wanted_dimensions: int | None = None
    #: Inputs without a vector.
    _queries = 0
    _vectors = 0
    #: Every vector must have as many as the first.
    _dimensions = 0

    def __aiter__(self) -> "_ActiveVectors[Asked]":
        return self

    async def __anext__(self) -> tuple[int, Vectors]:
        """Return the next vectors with their number, as ``ActivePrompt``. Raises ProtocolViolation for an invalid vector."""
        assert self.answers is not None  # `run` sets it before the reader gets this object
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
                self.complete = True

    @property
    def result(self) -> EmbeddingResult:
        assert self.model is not None
        return EmbeddingResult(self.request_id, self.model, self._dimensions, self.usage.prompt_tokens, self.response_time_ms)

    @property
    def _texts(self) -> int:
        return len(self.inputs) - self._queries

    def _check_vector(self, vector: bytes) -> None:
        self._vectors += 1
        numbers, over = divmod(len(vector), NUMBER_BYTES)
        self._dimensions = self._dimensions or numbers
        wanted = self.wanted_dimensions or self._dimensions
        if over or not 0 < numbers == wanted == self._dimensions <= embedding.MAX_DIMENSIONS or self._vectors > self._texts:
            raise _violation(f"vector {self._vectors} with {len(vector)} bytes, which is not a valid length")
        if numbers * self._texts > MAX_NUMBERS:
            most = MAX_NUMBERS // numbers
            raise errors.TooLarge(f"this model has {numbers} dimensions, so a request may have {most} inputs", hint="send several requests")
        if not math.isfinite(math.hypot(*struct.unpack(f"<{numbers}f", vector))):
            raise _violation(f"vector {self._vectors} with non-finite numbers")


class ActiveEmbedding(_ActiveVectors[EmbeddingRequest]):
    method, operation = embedding.request_embeddings.name.partition(".")[2], "embeddings"

    def validate(self) -> AdmittedTexts:
        self.wanted_dimensions = self.request.dimensions
        return request_validation.admit_texts(self.request)

    def call(self, target: ServingTarget) -> Embed:
        return Embed(target.model, self.inputs, self.request_id, self.request.dimensions)


class ActiveRanking(_ActiveVectors[RankingRequest]):
    """Tracks one request that ranks texts: a vector of one number for each. The query is the first input."""

    method, operation = embedding.request_ranking.name.partition(".")[2], "rerank"
    wanted_dimensions = 1
    _queries = 1

    def validate(self) -> AdmittedTexts:
        return request_validation.admit_ranking(self.request)

    def call(self, target: ServingTarget) -> Embed:
        query, *documents = self.inputs
        return Embed(target.model, tuple(documents), self.request_id, query=str(query))


class ActiveModeration(ActiveTexts[ModerationRequest, Moderate]):
    method, operation = inference.moderate.name.partition(".")[2], "moderation"
    answers: AsyncGenerator[ModerationItem] | None

    def validate(self) -> AdmittedTexts:
        return request_validation.admit_moderation(self.request)

    def call(self, target: ServingTarget) -> Moderate:
        return Moderate(target.model, tuple(map(str, self.inputs)), self.request_id, target.format)

    async def read(self) -> tuple[ModerationVerdict, ...]:
        """Return a verdict for each text. Raises ProtocolViolation for another number."""
        assert self.answers is not None  # `moderate` sets it before the reader gets this object
        verdicts: tuple[ModerationVerdict, ...] = ()
        async for answer in self.answers:
            if isinstance(answer, Moderated):
                self._prompt_tokens, verdicts = answer.prompt_tokens, answer.verdicts
        if len(verdicts) != len(self.inputs):
            raise _violation(f"{len(verdicts)} verdicts for {len(self.inputs)} texts")
        self.complete = True
        return verdicts


class ActiveConversion(ActiveTexts[Conversion, Conversion]):
    """Tracks one conversion of tokens. It counts as a request, but costs neither credits nor tokens, and needs no capacity."""

    method, operation = inference.tokenize.name.partition(".")[2], "tokenize"
    answers: AsyncGenerator[ConversionItem] | None
    #: The model's context; 0 if unknown.
    context_tokens = 0

    def validate(self) -> AdmittedTexts:
        request_validation.check_conversion(self.request)
        return AdmittedTexts((), 0, 0)

    async def guard(self, scan: GuardScan, matches: GuardMatches) -> None:
        if not isinstance(self.request, inference.Detokenize):
            messages = await prompt_guard.guard_messages(self.request.messages, scan, matches)
            self.request = msgspec.structs.replace(self.request, messages=messages)

    def call(self, target: ServingTarget) -> Conversion:
        return msgspec.structs.replace(self.request, model=target.model)

    def variant_failed(self, status: RequestStatus, failure: errors.AimeshError | None) -> bool | None:
        return None  # it says nothing about the answers of a target

    async def read(self) -> bytes:
        """Return token ids or a text. Raises ProtocolViolation for parts out of order, or too many."""
        assert self.answers is not None  # `convert` sets it before the reader gets this object
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
        self.complete = True
        return bytes(content)


def _violation(what: str) -> errors.ProtocolViolation:
    return errors.ProtocolViolation(f"the worker sent {what}", hint="retry the request")
