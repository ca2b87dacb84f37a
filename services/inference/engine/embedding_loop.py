"""Computes embeddings and ranks texts: one batch of texts between two steps of the answers.

Texts are computed in order of arrival, those of batches only while no live text waits and no live answer runs. A causal model can compute
a long text in pieces, so that running answers aren't slowed; a bidirectional model needs a whole text at once.
"""

import math
import struct
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.inference.engine.engine_messages import (
    ComputedVectors,
    EmbeddingTurn,
    EmbedTexts,
    GenerationAccepted,
    GenerationRefused,
    StepReport,
)
from services.inference.engine.scheduler import BATCH_STEP_SECONDS, PrefillBudget
from shared import errors
from shared.api import embedding
from shared.gguf.gguf_header import PoolingKind


def probability(logit: float) -> float:
    """Return a score from 0 to 1."""
    return (1 + math.tanh(logit / 2)) / 2


class Pooled:
    """The vector of one text, assembled from pooled pieces."""

    def __init__(self, pooling: PoolingKind) -> None:
        self._pooling = pooling
        self._vector: list[float] = []
        self._tokens = 0

    def add(self, vector: Sequence[float], tokens: int) -> None:
        """Add the vector of the text's next piece, which has ``tokens`` tokens."""
        if not self._tokens or self._pooling in (PoolingKind.LAST, PoolingKind.RANK):
            self._vector = list(vector)
        elif self._pooling is PoolingKind.MEAN:
            old, new = self._tokens / (self._tokens + tokens), tokens / (self._tokens + tokens)
            self._vector = [one * old + other * new for one, other in zip(self._vector, vector, strict=True)]
        self._tokens += tokens

    def packed(self, dimensions: int) -> bytes | None:
        """Return the first ``dimensions`` numbers, normalized; None if the vector has no direction. A score stays as it is."""
        if self._pooling is PoolingKind.RANK:
            return struct.pack("<f", self._vector[0]) if math.isfinite(self._vector[0]) else None
        kept = self._vector[:dimensions]
        length = math.hypot(*kept)
        if length == 0 or not math.isfinite(length):
            return None
        return struct.pack(f"<{len(kept)}f", *(value / length for value in kept))


@dataclass(frozen=True, slots=True)
class EmbeddingText:
    """One text of a request."""

    request: int
    number: int
    tokens: Sequence[int]
    dimensions: int
    is_batch: bool = False


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Tokens of one text in a batch."""

    slot: int
    text: EmbeddingText
    start: int
    tokens: Sequence[int]

    @property
    def ends(self) -> bool:
        """Whether it is the text's last piece."""
        return self.start + len(self.tokens) == len(self.text.tokens)


class EmbeddingQueue:
    """At most one text is unfinished, so the model's memory must fit only that text and one batch. It is finished first, also before live
    ones."""

    def __init__(self, slots: int, *, whole: bool = False) -> None:
        self._slots = slots
        #: Compute texts at once, regardless of the budget.
        self.whole = whole
        self._live: deque[EmbeddingText] = deque()
        self._batch: deque[EmbeddingText] = deque()
        #: The slot of the next text, the number of its computed tokens, and whether it is of a batch if there are any.
        self._slot = 0
        self._begun = 0
        self._has_begun_batch = False

    @property
    def idle(self) -> bool:
        return not (self._live or self._batch)

    @property
    def is_live(self) -> bool:
        return bool(self._live)

    @property
    def _waiting(self) -> deque[EmbeddingText]:
        return self._batch if self._has_begun_batch or not self._live else self._live

    def submit(self, texts: Sequence[EmbeddingText]) -> None:
        """Each has at least one token."""
        for text in texts:
            (self._batch if text.is_batch else self._live).append(text)

    def take(self, budget: int) -> list[TextPiece]:
        """Return the next batch of about ``budget`` tokens, and at least one; empty if nothing waits."""
        pieces: list[TextPiece] = []
        while self._waiting and len(pieces) < self._slots and (budget > 0 or not pieces):
            text = self._waiting[0]
            if pieces and text.is_batch != pieces[0].text.is_batch:
                break
            left = len(text.tokens) - self._begun
            if self.whole and pieces and left > budget:
                break
            count = left if self.whole else min(left, max(1, budget))
            piece = TextPiece(self._slot, text, self._begun, text.tokens[self._begun : self._begun + count])
            pieces.append(piece)
            budget -= count
            self._begun += count
            self._has_begun_batch = text.is_batch
            if piece.ends:
                self._next()
        return pieces

    def cancel(self, request: int) -> int | None:
        """Forget a request's texts; return the slot to clear, if any. Unknown requests have already ended."""
        begun = self._slot if self._begun and self._waiting[0].request == request else None
        if begun is not None:
            self._next()
        self._live = deque(text for text in self._live if text.request != request)
        self._batch = deque(text for text in self._batch if text.request != request)
        return begun

    def _next(self) -> None:
        self._waiting.popleft()
        self._slot, self._begun, self._has_begun_batch = (self._slot + 1) % self._slots, 0, False


#: Even a busy engine computes this many per turn; smaller pieces change the last digits of a vector.
MIN_TOKENS = 4


class EmbedderInterface(Protocol):
    """The part of a model that the loop uses, implemented by `EmbeddingContext`. All methods block."""

    context_tokens: int
    #: The most tokens in one batch of several texts.
    step_tokens: int
    dimensions: int
    slots: int
    vocabulary_size: int
    #: The model is bidirectional, so it can't compute a text in pieces.
    whole: bool
    pooling: PoolingKind

    def prepare(self) -> None:
        """Set ``dimensions``, ``whole`` and ``pooling``. Safe to call twice. Raises BadRequest if the model has no embeddings, and
        Unavailable without memory."""

    def tokens_of(self, text: str) -> list[int]:
        """Raises BadRequest. May run in another thread than the rest, one call at a time."""

    def tokens_of_pair(self, query: str, text: str) -> list[int]:
        """Return the tokens of a query and a text to rank, as ``tokens_of``."""

    def run(self, pieces: Sequence[TextPiece]) -> list[Sequence[float]]:
        """Compute one batch and return the pooled vector of each piece. Clears the slots of texts that end. Raises ModelCrashed."""

    def clear(self, slot: int) -> None:
        """Forget an unfinished text."""


class EmbeddingLoop:
    """Not thread-safe: one thread alternates the steps of the answers and ``turn``. Only ``tokenize`` may run in another one."""

    def __init__(self, embedder: EmbedderInterface, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._embedder = embedder
        self._clock = clock
        self._queue = EmbeddingQueue(embedder.slots)
        self._pace = PrefillBudget(embedder.step_tokens)
        #: The vector of an unfinished text.
        self._pooled: Pooled | None = None

    @property
    def idle(self) -> bool:
        return self._queue.idle

    def measure(self, command: EmbedTexts) -> int:
        """Return the size of a command's texts. Raises BadRequest if the model has no such vectors, and Unavailable."""
        self._embedder.prepare()
        self._queue.whole = self._embedder.whole
        ranks = self._embedder.pooling is PoolingKind.RANK
        if ranks and command.query is None:
            raise errors.BadRequest("this model ranks texts and has no embeddings", hint="use a model for embeddings")
        if command.query is not None and not ranks:
            raise errors.BadRequest("this model cannot rank texts", hint="use a reranking model, such as bge-reranker-v2-m3")
        if command.dimensions is not None and command.dimensions > self._embedder.dimensions:
            raise errors.BadRequest(
                f"dimensions is {command.dimensions}; this model's vectors have {self._embedder.dimensions}",
                hint="request fewer, or leave it out",
            )
        repeated = len(command.inputs) * embedding.input_bytes(command.query or "")
        return repeated + sum(map(embedding.input_bytes, command.inputs))

    def tokenize(self, command: EmbedTexts) -> list[EmbeddingText]:
        """Raises BadRequest for a text that has no tokens or is too long."""
        return [self._tokenize_one(command, number) for number in range(len(command.inputs))]

    def begin(self, command: EmbedTexts, texts: list[EmbeddingText]) -> GenerationAccepted:
        self._queue.submit(texts)
        return GenerationAccepted(command.id, sum(len(text.tokens) for text in texts))

    def cancel(self, request: int) -> None:
        """Forget a request; unknown ones have already ended."""
        if (slot := self._queue.cancel(request)) is not None:
            self._embedder.clear(slot)
            self._pooled = None

    def turn(self, step: StepReport | None, *, is_usual: bool = True) -> list[GenerationRefused | EmbeddingTurn]:
        """Compute a batch that doesn't slow the answers too much. ``step`` is their last step; None if there are none. For ``is_usual``,
        which is about both, see ``PrefillBudget``."""
        if step is not None and step.read == step.drafted == 0:
            self._pace.record_step(step.seconds, answering=step.answering, read=0, is_usual=is_usual)
        is_live = step is not None and not step.is_batch
        return [] if self.idle or (is_live and not self._queue.is_live) else self._compute(step if is_live else None, is_usual=is_usual)

    def _tokenize_one(self, command: EmbedTexts, number: int) -> EmbeddingText:
        # A list would take nine times the memory of an array.
        given = command.inputs[number]
        if not isinstance(given, str):
            self._check_ids(number, given)
            tokens = array("i", given)
        elif command.query is None:
            tokens = array("i", self._embedder.tokens_of(given))
        else:
            tokens = array("i", self._embedder.tokens_of_pair(command.query, given))
        if not tokens:
            raise errors.BadRequest(f"input[{number}] has no tokens", hint="leave empty texts out")
        if len(tokens) > self._embedder.context_tokens:
            raise errors.BadRequest(
                f"input[{number}] has {len(tokens)} tokens; this model allows {self._embedder.context_tokens}",
                hint="split it into several texts",
            )
        return EmbeddingText(command.id, number, tokens, command.dimensions or self._embedder.dimensions, command.is_batch)

    def _check_ids(self, number: int, ids: Sequence[int]) -> None:
        # llama.cpp aborts on an unknown id.
        unknown = next((token for token in ids if not 0 <= token < self._embedder.vocabulary_size), None)
        if unknown is not None:
            raise errors.BadRequest(
                f"input[{number}] has the token id {unknown}; this model has {self._embedder.vocabulary_size} tokens",
                hint="send text: ids of another tokenizer (tiktoken) mean something else here; LangChain: check_embedding_ctx_length=False",
            )

    def _compute(self, step: StepReport | None, *, is_usual: bool) -> list[GenerationRefused | EmbeddingTurn]:
        pieces = self._queue.take(self._budget(step))
        began = self._clock()
        rows = self._embedder.run(pieces)
        seconds, tokens = self._clock() - began, sum(len(piece.tokens) for piece in pieces)
        self._pace.record_step(seconds, answering=0, read=tokens, is_usual=is_usual)
        computed: dict[int, list[bytes]] = {}
        failed: dict[int, GenerationRefused] = {}
        for piece, row in zip(pieces, rows, strict=True):
            self._pool(piece, row, computed, failed)
        for request in failed:
            self.cancel(request)
            computed.pop(request, None)
        finished = tuple(ComputedVectors(request, tuple(vectors)) for request, vectors in computed.items())
        return [*failed.values(), EmbeddingTurn(finished, seconds)]

    def _budget(self, step: StepReport | None) -> int:
        """Return the tokens of the next batch. Prompts that are being read count too, so that both together don't slow the answers."""
        if not self._queue.is_live:
            return self._pace.tokens_within(BATCH_STEP_SECONDS)
        if step is None or step.answering == 0:
            return self._embedder.step_tokens
        return max(MIN_TOKENS, self._pace.budget(step.answering) - step.read)

    def _pool(self, piece: TextPiece, row: Sequence[float], computed: dict[int, list[bytes]], failed: dict[int, GenerationRefused]) -> None:
        if self._pooled is None:
            self._pooled = Pooled(self._embedder.pooling)
        self._pooled.add(row, len(piece.tokens))
        if not piece.ends:
            return
        text, vector = piece.text, self._pooled.packed(piece.text.dimensions)
        self._pooled = None
        if vector is None:
            problem = errors.Unavailable(f"the model computed no vector for input[{text.number}]", hint="use another model")
            failed[text.request] = GenerationRefused(text.request, problem.to_problem())
        else:
            computed.setdefault(text.request, []).append(vector)
