"""Builds requests about texts, and checks their responses: Ollama's POST /api/embed, OpenAI's POST /embeddings and /moderations, and
POST /rerank.  Pure.

`dimensions` is never passed on: vLLM refuses it for most models, llama.cpp ignores it, and cutting and normalizing the vector
here gives the same result.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import msgspec

from services.inference.backends.remote import token_counts
from services.inference.backends.remote.event_stream import BadStream, convert_or
from services.inference.backends.remote.openai_chat import JsonObject
from services.inference.backends.remote.token_counts import ReportedUsage
from services.inference.engine.embedding_loop import Pooled, probability
from services.inference.engine.gguf_header import PoolingKind
from services.inference.jobs import EmbeddingJob
from shared import errors
from shared.api import embedding
from shared.api.embedding import Embedded, EmbeddingInput
from shared.api.inference import CategoryName, ModerationVerdict, Score

#: The limit of Text Embeddings Inference; parsing a response of this size doesn't block the loop for long.
BATCH_TEXTS = 32
#: A JSON number with its comma: JavaScript's longest has 25 characters.
_NUMBER_BYTES = 32
_FRAME_BYTES = 64 * 1024
RERANK_PATH, MODERATION_PATH = "rerank", "moderations"
#: 32 results with 13 categories and long numbers have 50 KB.
MODERATION_BYTES = 1024 * 1024

Vector = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class EmbeddingReply:
    """A server's response: vectors in the order of the texts."""

    vectors: tuple[Vector, ...]
    prompt_tokens: object


class _OllamaAnswer(msgspec.Struct, frozen=True):
    embeddings: tuple[Vector, ...]
    prompt_eval_count: object = None


class _Datum(msgspec.Struct, frozen=True):
    embedding: Vector
    #: Some servers omit zeros, and so the first index.
    index: int = 0


class _OpenAIAnswer(msgspec.Struct, frozen=True):
    data: tuple[_Datum, ...]
    usage: object = None


class _Ranked(msgspec.Struct, frozen=True):
    index: int
    relevance_score: Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]


class _RankingAnswer(msgspec.Struct, frozen=True):
    results: tuple[_Ranked, ...]
    usage: object = None


class _Result(msgspec.Struct, frozen=True):
    flagged: bool
    #: OpenAI writes null for categories that don't apply to the input.
    categories: dict[CategoryName, bool | None] = {}
    category_scores: dict[CategoryName, Score | None] = {}


class _Moderation(msgspec.Struct, frozen=True):
    results: tuple[_Result, ...]


def ollama_body(model: str, texts: tuple[EmbeddingInput, ...], *, keep: int | str | None) -> bytes:
    """Raises BadRequest for token ids."""
    if not all(isinstance(text, str) for text in texts):
        raise errors.BadRequest("input cannot be passed on: Ollama does not support token ids", hint="send text")
    # By default Ollama silently cuts the end of a text that is too long.
    request: JsonObject = {"model": model, "input": texts, "truncate": False}
    if keep is not None:
        request["keep_alive"] = keep
    return msgspec.json.encode(request)


def openai_body(model: str, texts: tuple[EmbeddingInput, ...]) -> bytes:
    return msgspec.json.encode({"model": model, "input": texts, "encoding_format": "float"})


def most_bytes(texts: int) -> int:
    """Return the largest plausible size of a response."""
    return texts * embedding.MAX_DIMENSIONS * _NUMBER_BYTES + _FRAME_BYTES


def from_ollama(content: bytes) -> EmbeddingReply:
    """Raises one of `event_stream.UNREADABLE`."""
    answer = msgspec.json.decode(content, type=_OllamaAnswer)
    return EmbeddingReply(answer.embeddings, answer.prompt_eval_count)


def from_openai(content: bytes) -> EmbeddingReply:
    """Raises BadStream or one of `event_stream.UNREADABLE`."""
    answer = msgspec.json.decode(content, type=_OpenAIAnswer)
    ordered = sorted(answer.data, key=lambda datum: datum.index)
    if [datum.index for datum in ordered] != list(range(len(ordered))):
        raise BadStream("the vectors are not numbered from 0")
    return EmbeddingReply(tuple(datum.embedding for datum in ordered), convert_or(ReportedUsage(), answer.usage).prompt_tokens)


def rerank_body(model: str, query: str, texts: tuple[EmbeddingInput, ...]) -> bytes:
    return msgspec.json.encode({"model": model, "query": query, "documents": texts})


def most_ranked_bytes(texts: tuple[EmbeddingInput, ...]) -> int:
    """Return the largest plausible size of a response, which may repeat the texts with every character escaped."""
    return 6 * sum(map(embedding.input_bytes, texts)) + 1024 * len(texts) + _FRAME_BYTES


def read_scores(content: bytes, query: str, texts: tuple[EmbeddingInput, ...]) -> tuple[list[float], int]:
    """Return the score of each text, from 0 to 1, and their tokens. Raises BadStream or one of `event_stream.UNREADABLE`."""
    answer = msgspec.json.decode(content, type=_RankingAnswer)
    ranked = sorted(answer.results, key=lambda found: found.index)
    if [found.index for found in ranked] != list(range(len(texts))):
        raise BadStream(f"the results are not one for each of {len(texts)} texts")
    scores = [found.relevance_score for found in ranked]
    # llama.cpp's server sends logits, others send probabilities.
    if not all(0 <= score <= 1 for score in scores):
        scores = [probability(score) for score in scores]
    counted = convert_or(ReportedUsage(), answer.usage).prompt_tokens
    return scores, token_counts.settle_texts(counted, [f"{query} {text}" for text in texts])[0]


def moderation_body(model: str, texts: tuple[str, ...]) -> bytes:
    return msgspec.json.encode({"model": model, "input": texts})


def read_verdicts(content: bytes, count: int) -> tuple[ModerationVerdict, ...]:
    """Return a verdict for each of ``count`` texts. Raises BadStream or one of `event_stream.UNREADABLE`."""
    results = msgspec.json.decode(content, type=_Moderation).results
    if len(results) != count:
        raise BadStream(f"{len(results)} results for {count} texts")
    return tuple(map(_verdict, results))


def _verdict(result: _Result) -> ModerationVerdict:
    flagged = tuple(name for name, is_flagged in result.categories.items() if is_flagged)
    scores = {name: score for name, score in result.category_scores.items() if score is not None}
    # Other servers send flags without scores.
    missing = {name: float(bool(is_flagged)) for name, is_flagged in result.categories.items() if name not in result.category_scores}
    return ModerationVerdict(result.flagged, flagged, scores | missing)


class EmbeddingAssembly:
    """Assembles the vectors of one job from its batches."""

    def __init__(self, job: EmbeddingJob) -> None:
        self._job = job
        self._taken = 0
        #: The length of the model's vectors, known from the first.
        self._full = 0
        self._prompt_tokens = 0
        #: The number of batches whose token count was not plausible.
        self.recounted = 0

    def batches(self) -> Iterator[tuple[EmbeddingInput, ...]]:
        for start in range(0, len(self._job.inputs), BATCH_TEXTS):
            yield self._job.inputs[start : start + BATCH_TEXTS]

    def reader(self, texts: tuple[EmbeddingInput, ...], read: Callable[[bytes], EmbeddingReply]) -> Callable[[bytes], list[bytes]]:
        """Return what reads the response to the next batch, as ``take``."""
        return lambda content: self.take(texts, read(content))

    def take(self, texts: tuple[EmbeddingInput, ...], answered: EmbeddingReply) -> list[bytes]:
        """Return the packed vectors of the next batch. Raises BadStream for impossible ones, BadRequest if the job asks for more
        dimensions than there are, and Unavailable for a vector without a direction."""
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
        """The result, once all batches are taken."""
        return Embedded(self._job.dimensions or self._full, self._prompt_tokens)

    def _packed(self, number: int, vector: Vector) -> bytes:
        self._full = self._full or len(vector)
        if not 0 < len(vector) == self._full <= embedding.MAX_DIMENSIONS:
            raise BadStream(f"a vector of {len(vector)} numbers for input[{number}]")
        if (dimensions := self._job.dimensions or self._full) > self._full:
            raise errors.BadRequest(
                f"dimensions is {dimensions}; this model's vectors have {self._full}", hint="request fewer, or leave it out"
            )
        pooled = Pooled(PoolingKind.MEAN)
        pooled.add(vector, 1)
        if (packed := pooled.packed(dimensions)) is None:
            raise errors.Unavailable(f"the model computed no vector for input[{number}]", hint="use another model")
        return packed
