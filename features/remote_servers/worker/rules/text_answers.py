"""Builds requests about texts, and checks their responses: Ollama's POST /api/embed, OpenAI's POST /embeddings and /moderations, and
POST /rerank.  Pure.

`dimensions` is never passed on: vLLM refuses it for most models, llama.cpp ignores it, and cutting and normalizing the vector
here gives the same result.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

import msgspec

from features.remote_servers.worker.rules import token_counts
from features.remote_servers.worker.rules.event_stream import BadStream, convert_or
from features.remote_servers.worker.rules.openai_chat import JsonObject
from features.remote_servers.worker.rules.token_counts import ReportedUsage
from services.inference.engine.embedding_loop import Pooled, probability
from shared import errors
from shared.api import embedding
from shared.api.embedding import Embed, Embedded, EmbeddingInput
from shared.api.inference import CategoryName, ModerationVerdict, Score
from shared.gguf.gguf_header import PoolingKind

#: The limit of Text Embeddings Inference; parsing a response of this size doesn't block the loop for long.
BATCH_TEXTS = 32
#: A JSON number with its comma: JavaScript's longest has 25 characters.
_NUMBER_BYTES = 32
_FRAME_BYTES = 64 * 1024
#: 32 results with 13 categories and long numbers have 50 KB.
_MODERATION_BYTES = 1024 * 1024

Vector = tuple[float, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JsonRequest(Generic[T]):
    """A request, and how its whole response is read."""

    #: See `Server.ask_once`.
    path: str
    body: bytes
    #: Raises BadStream or one of `event_stream.UNREADABLE`.
    read: Callable[[bytes], T]
    #: The most bytes of a plausible response.
    most: int


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


def ollama_embedding(model: str, texts: tuple[EmbeddingInput, ...], *, keep: int | str | None) -> JsonRequest[EmbeddingReply]:
    """Raises BadRequest for token ids."""
    if not all(isinstance(text, str) for text in texts):
        raise errors.BadRequest("input cannot be passed on: Ollama does not support token ids", hint="send text")
    # By default Ollama silently cuts the end of a text that is too long.
    request: JsonObject = {"model": model, "input": texts, "truncate": False}
    if keep is not None:
        request["keep_alive"] = keep
    return JsonRequest("api/embed", msgspec.json.encode(request), _read_ollama, _most_bytes(len(texts)))


def _read_ollama(content: bytes) -> EmbeddingReply:
    answer = msgspec.json.decode(content, type=_OllamaAnswer)
    return EmbeddingReply(answer.embeddings, answer.prompt_eval_count)


def openai_embedding(model: str, texts: tuple[EmbeddingInput, ...]) -> JsonRequest[EmbeddingReply]:
    body = msgspec.json.encode({"model": model, "input": texts, "encoding_format": "float"})
    return JsonRequest("embeddings", body, _read_openai, _most_bytes(len(texts)))


def _read_openai(content: bytes) -> EmbeddingReply:
    answer = msgspec.json.decode(content, type=_OpenAIAnswer)
    ordered = sorted(answer.data, key=lambda datum: datum.index)
    if [datum.index for datum in ordered] != list(range(len(ordered))):
        raise BadStream("the vectors are not numbered from 0")
    return EmbeddingReply(tuple(datum.embedding for datum in ordered), convert_or(ReportedUsage(), answer.usage).prompt_tokens)


def _most_bytes(texts: int) -> int:
    return texts * embedding.MAX_DIMENSIONS * _NUMBER_BYTES + _FRAME_BYTES


def ranking(model: str, query: str, texts: tuple[EmbeddingInput, ...]) -> JsonRequest[tuple[list[float], int]]:
    """Ask for the score of each text, from 0 to 1, and their tokens."""

    def read(content: bytes) -> tuple[list[float], int]:
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

    # It may repeat the texts with every character escaped.
    most = 6 * sum(map(embedding.input_bytes, texts)) + 1024 * len(texts) + _FRAME_BYTES
    return JsonRequest("rerank", msgspec.json.encode({"model": model, "query": query, "documents": texts}), read, most)


def moderation(model: str, texts: tuple[str, ...]) -> JsonRequest[tuple[ModerationVerdict, ...]]:
    """Ask for a verdict for each text."""

    def read(content: bytes) -> tuple[ModerationVerdict, ...]:
        results = msgspec.json.decode(content, type=_Moderation).results
        if len(results) != len(texts):
            raise BadStream(f"{len(results)} results for {len(texts)} texts")
        return tuple(map(_verdict, results))

    return JsonRequest("moderations", msgspec.json.encode({"model": model, "input": texts}), read, _MODERATION_BYTES)


def _verdict(result: _Result) -> ModerationVerdict:
    flagged = tuple(name for name, is_flagged in result.categories.items() if is_flagged)
    scores = {name: score for name, score in result.category_scores.items() if score is not None}
    # Other servers send flags without scores.
    missing = {name: float(bool(is_flagged)) for name, is_flagged in result.categories.items() if name not in result.category_scores}
    return ModerationVerdict(result.flagged, flagged, scores | missing)


class EmbeddingAssembly:
    """Assembles the vectors of one job from its batches."""

    def __init__(self, job: Embed) -> None:
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

    def packing(self, texts: tuple[EmbeddingInput, ...], request: JsonRequest[EmbeddingReply]) -> JsonRequest[list[bytes]]:
        """Return the request for the next batch, read as by ``take``."""
        return JsonRequest(request.path, request.body, lambda content: self.take(texts, request.read(content)), request.most)

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
