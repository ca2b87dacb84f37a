"""Holds the state of one running request for embeddings, moderation or a conversion of tokens."""

import math
import struct
from collections.abc import AsyncGenerator

from services.gateway.prompt_admission import AdmittedTexts
from services.gateway.relay import ConversionItem, Embedding, ModerationItem
from services.gateway.requests.active_request import ActiveRequest
from shared import errors
from shared.api import embedding, inference
from shared.api.embedding import Embedded, EmbeddingResult, Vectors
from shared.api.generation import Usage
from shared.api.inference import MAX_CONVERTED_BYTES, Converted, ConvertedPart, Moderated, ModerationVerdict
from shared.types import RequestStatus

#: Bytes of one number in a vector.
NUMBER_BYTES = 4
#: In all vectors of a request, 16 MiB: OpenAI's most inputs for a model with 2,048 dimensions. As JSON it is five times as much.
MAX_NUMBERS = 2048 * 2048


class ActiveTexts(ActiveRequest):
    """Tracks a request that only reads texts."""

    admitted: AdmittedTexts | None = None
    _prompt_tokens = 0
    _complete = False

    @property
    def likely_prompt_tokens(self) -> int:
        return 0 if self.admitted is None else self.admitted.likely_prompt_tokens

    def _usage(self) -> Usage:
        most = self.admitted.most_prompt_tokens if self.admitted is not None else 0
        return Usage(min(max(self._prompt_tokens, 0), most), completion_tokens=0)

    @property
    def complete(self) -> bool:
        return self._complete


class ActiveEmbedding(ActiveTexts):
    """Tracks one embedding request. Iterate it for the vectors; read ``result`` after the block of ``Pipeline.embed``."""

    method = embedding.request_embeddings.name.partition(".")[2]
    answers: AsyncGenerator[Embedding] | None

    wanted_dimensions: int | None = None
    _vectors = 0
    #: Every vector must have as many as the first.
    _dimensions = 0

    def __aiter__(self) -> "ActiveEmbedding":
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
                self._ensure_all_vectors()

    @property
    def result(self) -> EmbeddingResult:
        assert self.model is not None
        return EmbeddingResult(self.request_id, self.model, self._dimensions, self.usage.prompt_tokens, self.response_time_ms)

    def _check_vector(self, vector: bytes) -> None:
        assert self.admitted is not None
        self._vectors += 1
        numbers, over = divmod(len(vector), NUMBER_BYTES)
        self._dimensions = self._dimensions or numbers
        wanted = self.wanted_dimensions or self._dimensions
        if over or not 0 < numbers == wanted == self._dimensions <= embedding.MAX_DIMENSIONS or self._vectors > len(self.admitted.inputs):
            raise errors.ProtocolViolation(
                f"the worker sent vector {self._vectors} with {len(vector)} bytes, which is not a valid length", hint="retry the request"
            )
        if numbers * len(self.admitted.inputs) > MAX_NUMBERS:
            most = MAX_NUMBERS // numbers
            raise errors.TooLarge(f"this model has {numbers} dimensions, so a request may have {most} inputs", hint="send several requests")
        if not math.isfinite(math.hypot(*struct.unpack(f"<{numbers}f", vector))):
            raise errors.ProtocolViolation(f"the worker sent vector {self._vectors} with non-finite numbers", hint="retry the request")

    def _ensure_all_vectors(self) -> None:
        assert self.admitted is not None
        if self._vectors != len(self.admitted.inputs):
            raise errors.ProtocolViolation(
                f"the worker sent {self._vectors} vectors for {len(self.admitted.inputs)} texts", hint="retry the request"
            )
        self._complete = True


class ActiveRanking(ActiveEmbedding):
    """Tracks one request that ranks texts: a vector of one number for each."""

    method = embedding.request_ranking.name.partition(".")[2]
    wanted_dimensions = 1


class ActiveModeration(ActiveTexts):
    """Tracks one moderation request."""

    method = inference.moderate.name.partition(".")[2]
    answers: AsyncGenerator[ModerationItem] | None

    async def read(self) -> tuple[ModerationVerdict, ...]:
        """Return a verdict for each text. Raises ProtocolViolation for another number."""
        assert self.answers is not None  # `moderate` sets it before the reader gets this object
        assert self.admitted is not None
        verdicts: tuple[ModerationVerdict, ...] = ()
        async for answer in self.answers:
            if isinstance(answer, Moderated):
                self._prompt_tokens, verdicts = answer.prompt_tokens, answer.verdicts
        if len(verdicts) != len(self.admitted.inputs):
            raise errors.ProtocolViolation(
                f"the worker sent {len(verdicts)} verdicts for {len(self.admitted.inputs)} texts", hint="retry the request"
            )
        self._complete = True
        return verdicts


class ActiveConversion(ActiveTexts):
    """Tracks one conversion of tokens, which has no usage."""

    method = inference.tokenize.name.partition(".")[2]
    answers: AsyncGenerator[ConversionItem] | None
    #: Of the model; 0 if unknown.
    context_tokens = 0

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
                    raise errors.ProtocolViolation("the worker sent parts out of order, or too many", hint="retry the request")
                content += answer.content
        self._complete = True
        return bytes(content)
