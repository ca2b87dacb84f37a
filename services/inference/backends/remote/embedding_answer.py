"""Texts as the bodies of Ollama's POST /api/embed and OpenAI's POST /embeddings, and what comes back, checked.  Pure.

`dimensions` is never passed on. Some servers refuse it for most of their models (vLLM), others pass over it (llama.cpp), and all of
them would do what is done here: keep the first numbers and make the vector one long again.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from services.inference.backends.remote import token_counts
from services.inference.backends.remote.event_stream import BadStream
from services.inference.backends.remote.openai_chat import JsonObject
from services.inference.engine.embeddings.pooling import Pooled, Pooling
from services.inference.jobs.embedding_job import EmbeddingJob
from shared import errors
from shared.api import embedding
from shared.api.embedding import Embedded

#: Text Embeddings Inference takes no more in one request; and an answer of them is read without holding up anybody else.
BATCH_TEXTS = 32
#: As JSON writes it, with its comma: JavaScript's longest has 25 characters.
_NUMBER_BYTES = 32
#: What stands around the vectors.
_FRAME_BYTES = 64 * 1024

Vector = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """What a server gave for some texts, in their order."""

    vectors: tuple[Vector, ...]
    #: The server's own count, which may be anything.
    prompt_tokens: object


class _OllamaAnswer(msgspec.Struct, frozen=True):
    embeddings: tuple[Vector, ...]
    prompt_eval_count: object = None


class _Datum(msgspec.Struct, frozen=True):
    embedding: Vector
    #: Servers that leave out zeros leave out the first one's.
    index: int = 0


class _OpenAIAnswer(msgspec.Struct, frozen=True):
    data: tuple[_Datum, ...]
    usage: object = None


class _EmbeddingUsage(msgspec.Struct, frozen=True):
    prompt_tokens: object = None


_ollama = msgspec.json.Decoder(_OllamaAnswer)
_openai = msgspec.json.Decoder(_OpenAIAnswer)


def ollama_body(model: str, texts: tuple[str, ...], *, keep: int | str | None) -> bytes:
    # Else it cuts a text that is too long at its end, and tells nobody.
    request: JsonObject = {"model": model, "input": texts, "truncate": False}
    if keep is not None:
        request["keep_alive"] = keep
    return msgspec.json.encode(request)


def openai_body(model: str, texts: tuple[str, ...]) -> bytes:
    return msgspec.json.encode({"model": model, "input": texts, "encoding_format": "float"})


def most_bytes(texts: int) -> int:
    """An answer that is longer is none."""
    return texts * embedding.MAX_DIMENSIONS * _NUMBER_BYTES + _FRAME_BYTES


def from_ollama(content: bytes) -> Answered:
    """Raises one of `event_stream.UNREADABLE` for what is not of the protocol."""
    answer = _ollama.decode(content)
    return Answered(answer.embeddings, answer.prompt_eval_count)


def from_openai(content: bytes) -> Answered:
    """Raises BadStream, or one of `event_stream.UNREADABLE`, for what is not of the protocol."""
    answer = _openai.decode(content)
    ordered = sorted(answer.data, key=lambda datum: datum.index)
    if [datum.index for datum in ordered] != list(range(len(ordered))):
        raise BadStream("the vectors are not numbered from 0")
    return Answered(tuple(datum.embedding for datum in ordered), _said_tokens(answer.usage))


class EmbeddingAssembly:
    """The vectors of one job, batch after batch."""

    def __init__(self, job: EmbeddingJob) -> None:
        self._job = job
        self._taken = 0
        #: How many numbers the model gives, as its first vector has them.
        self._full = 0
        self._prompt_tokens = 0
        #: Of how many batches the server's count was not believed.
        self.recounted = 0

    def batches(self) -> Iterator[tuple[str, ...]]:
        for start in range(0, len(self._job.inputs), BATCH_TEXTS):
            yield self._job.inputs[start : start + BATCH_TEXTS]

    def take(self, texts: tuple[str, ...], answered: Answered) -> list[bytes]:
        """The vectors of the next batch, as they are sent on. Raises BadStream for what cannot be theirs, BadRequest where more
        dimensions are asked for than there are, and Unavailable for a vector without a direction."""
        if len(answered.vectors) != len(texts):
            raise BadStream(f"{len(answered.vectors)} vectors for {len(texts)} texts")
        packed = [self._packed(self._taken + number, vector) for number, vector in enumerate(answered.vectors)]
        tokens, is_recounted = token_counts.settle_texts(answered.prompt_tokens, texts)
        self._taken += len(texts)
        self._prompt_tokens += tokens
        self.recounted += is_recounted
        return packed

    @property
    def embedded(self) -> Embedded:
        """When all batches are taken."""
        return Embedded(self._job.dimensions or self._full, self._prompt_tokens)

    def _packed(self, number: int, vector: Vector) -> bytes:
        self._full = self._full or len(vector)
        if not 0 < len(vector) == self._full <= embedding.MAX_DIMENSIONS:
            raise BadStream(f"a vector of {len(vector)} numbers for input[{number}]")
        if (dimensions := self._job.dimensions or self._full) > self._full:
            raise errors.BadRequest(
                f"dimensions is {dimensions}; this model's vectors have {self._full}", hint="ask for fewer, or leave it out"
            )
        pooled = Pooled(Pooling.MEAN)
        pooled.add(vector, 1)
        if (packed := pooled.packed(dimensions)) is None:
            raise errors.Unavailable(f"the model computed no vector for input[{number}]", hint="ask another model")
        return packed


def _said_tokens(usage: object) -> object:
    try:
        return msgspec.convert(usage, _EmbeddingUsage).prompt_tokens
    except msgspec.ValidationError:
        return None
