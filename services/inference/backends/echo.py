"""The `echo` backend: repeats the words of the prompt, one per token. For tests and load tests; never the default."""

import asyncio
import hashlib
import re
import struct
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.inference import parking
from services.inference.backend_interface import Backend, Sink, VectorSink, Watcher
from services.inference.chat.stop_sequences import StopSequences
from services.inference.engine import sequence
from services.inference.engine.embedding_loop import Pooled
from services.inference.jobs import GenerationJob
from services.inference.queue_limits import QueueLimits
from shared import errors
from shared.api.embedding import Embed, Embedded, EmbeddingInput, Vectors
from shared.api.generation import MAX_TOKEN_ID, GenerationEnd, Usage
from shared.api.inference import TOKEN_BYTES, Chunk, Conversion, Detokenize, ModelState, ModelStatus, Tokenize
from shared.gguf.gguf_header import PoolingKind
from shared.types import FinishReason, ModelName

MODEL = ModelName("echo")
#: These two are so high that a load test measures the mesh, and that all prompts fit.
SLOTS = 256
CONTEXT_TOKENS = 1_048_576
DIMENSIONS = 16
#: Lets one echo continue the answer of another. Change the number if the same prompt gives other tokens.
DIGEST = hashlib.sha256(b"echo 1").hexdigest()

#: A word with the spaces before it, so that joined tokens give the text again.
_WORDS = re.compile(r"\s*\S+")
_THOUGHT_TAGS = "<think>", "</think>"


class EchoBackend(Backend):
    name = "echo"

    def __init__(self, token_seconds: float, queue: int, watcher: Watcher, slots: int = SLOTS) -> None:
        self._token_seconds = token_seconds
        self._watcher = watcher
        self._slots = slots
        self._limits = QueueLimits(MODEL, slots, queue)
        self._free_slots = asyncio.Semaphore(slots)
        #: Of batches, in order of arrival. The first ones run, as far as live jobs leave slots.
        self._batch: list[GenerationJob] = []
        self._left = asyncio.Event()

    def models(self) -> tuple[ModelStatus, ...]:
        return (
            ModelStatus(
                model_id=MODEL,
                state=ModelState.READY,
                detail="",
                backend=self.name,
                context_tokens=CONTEXT_TOKENS,
                slots=self._slots,
                running=self._limits.running,
                queued=self._limits.queued,
                digest=DIGEST,
                batch_busy=self._limits.batch,
                yields=True,
            ),
        )

    def expected_wait_seconds(self) -> float:
        return self._limits.expected_wait_seconds()

    async def generate(self, job: GenerationJob, sink: Sink) -> GenerationEnd:
        self._limits.enter(is_batch=job.is_batch)
        self._watcher.load_changed()
        started = time.monotonic()
        try:
            if job.is_batch:
                self._batch.append(job)
                return await self._echo(job, sink)
            async with self._free_slots:
                return await self._echo(job, sink)
        finally:
            self._limits.leave(time.monotonic() - started, is_batch=job.is_batch)
            if job.is_batch:
                self._batch = [other for other in self._batch if other is not job]
            self._left.set()
            self._left = asyncio.Event()
            self._watcher.load_changed()

    def _may_run(self, job: GenerationJob) -> bool:
        if self._limits.in_flight + self._limits.batch <= self._slots:
            return True
        place = next(place for place, other in enumerate(self._batch) if other is job)
        return place + self._limits.in_flight < self._slots

    async def _find_turn(self, job: GenerationJob) -> None:
        while not self._may_run(job):
            await self._left.wait()

    async def _echo(self, job: GenerationJob, sink: Sink) -> GenerationEnd:
        """Repeat `<think> … </think>` as thoughts."""
        prompt_tokens = sum(len(_WORDS.findall(message.content)) for message in job.messages)
        words = _WORDS.findall(job.messages[-1].content.strip())
        stops = StopSequences(job.parameters.stop)
        limit = job.parameters.max_tokens or len(words)
        thoughts = _find_thoughts(words[:limit])
        replayed = _replay(job.delivered, words[:limit], thoughts, stops)
        sink.accept(prompt_tokens)
        for count, word in enumerate(words[replayed:limit], replayed + 1):
            # Also yields without a delay, so that a fast reader doesn't block the loop.
            await asyncio.sleep(self._token_seconds)
            if job.is_batch and not self._may_run(job):
                if count > replayed + 1:
                    self._watcher.preempted(MODEL, 1)
                await parking.wait(lambda: self._find_turn(job), lambda notice: sink.send(Chunk("", (), waiting=notice)))
            is_thought = thoughts[count - 1]
            text, reason = stops.push("" if is_thought else word), None
            if stops.found is not None:
                reason = FinishReason.STOP
            elif count == min(limit, len(words)):
                text += stops.finish()
                reason = FinishReason.LENGTH if len(words) > limit else FinishReason.STOP
            reasoning = word if is_thought and word.strip() not in _THOUGHT_TAGS else ""
            await sink.send(Chunk(text, (token_id(word),), finish=reason, reasoning=reasoning))
            if reason is not None:
                usage = Usage(prompt_tokens, count - replayed, reasoning_tokens=sum(thoughts[replayed:count]))
                return GenerationEnd(reason, usage, stop_sequence=stops.found)
        raise AssertionError("the prompt has at least one word, and max_tokens is at least 1")

    async def embed(self, job: Embed, sink: VectorSink) -> Embedded:
        """Texts that share words have similar vectors, and a text is as relevant as the share of the query's words that it has."""
        dimensions = job.dimensions or DIMENSIONS
        if dimensions > DIMENSIONS:
            raise errors.BadRequest(f"dimensions is {dimensions}; this model's vectors have {DIMENSIONS}")
        texts = [_token_ids(given) for given in job.inputs]
        for number, tokens in enumerate(texts):
            if not 0 < len(tokens) <= CONTEXT_TOKENS:
                raise errors.BadRequest(f"input[{number}] has {len(tokens)} tokens; this model allows 1 to {CONTEXT_TOKENS}")
        query = set(_token_ids(job.query or ""))
        prompt_tokens = sum(map(len, texts)) + len(query) * len(texts)
        sink.accept(prompt_tokens)
        await asyncio.sleep(self._token_seconds)
        vectors = [_vector(tokens, dimensions) for tokens in texts]
        if query:
            vectors = [struct.pack("<f", len(query & set(tokens)) / len(query)) for tokens in texts]
        await sink.send(Vectors(tuple(vectors)))
        return Embedded(dimensions, prompt_tokens)

    async def convert(self, request: Conversion) -> bytes:
        """A chat is its texts, line by line."""
        if isinstance(request, Detokenize):
            raise errors.BadRequest("echo's tokens are hashes of words, which give no text back")
        text = "\n".join(message.content for message in request.messages)
        if not isinstance(request, Tokenize):
            return text.encode("utf-8", "replace")
        return b"".join(token_id(word).to_bytes(TOKEN_BYTES, "little") for word in _WORDS.findall(text))


@asynccontextmanager
async def opened(token_ms: float, queue: int, watcher: Watcher, slots: int = SLOTS) -> AsyncIterator[EchoBackend]:
    yield EchoBackend(token_ms / 1000, queue, watcher, slots)


def token_id(word: str) -> int:
    """Return the same number for a word on every worker."""
    return zlib.crc32(word.encode("utf-8", "replace")) & MAX_TOKEN_ID


def _find_thoughts(words: list[str]) -> list[bool]:
    """Return for each word whether it is a part of a thought, tags included."""
    found, is_inside = [], False
    for word in words:
        is_inside = is_inside or word.strip() == _THOUGHT_TAGS[0]
        found.append(is_inside)
        is_inside = is_inside and word.strip() != _THOUGHT_TAGS[1]
    return found


def _replay(delivered: tuple[int, ...], words: list[str], thoughts: list[bool], stops: StopSequences) -> int:
    """Replay what another echo delivered, and return how many words that were. Raises BadRequest if they are wrong or complete."""
    if delivered != tuple(token_id(word) for word in words[: len(delivered)]):
        raise errors.BadRequest("delivered: these tokens are not from this answer")
    for word, is_thought in zip(words[: len(delivered)], thoughts, strict=False):
        stops.push("" if is_thought else word)
    if stops.found is not None or len(delivered) == len(words):
        raise sequence.already_complete()
    return len(delivered)


def _token_ids(given: EmbeddingInput) -> tuple[int, ...]:
    return tuple(token_id(word.strip()) for word in _WORDS.findall(given)) if isinstance(given, str) else given


def _vector(tokens: tuple[int, ...], dimensions: int) -> bytes:
    counts = [1.0] * DIMENSIONS
    for token in tokens:
        counts[token % DIMENSIONS] += 1
    pooled = Pooled(PoolingKind.MEAN)
    pooled.add(counts, len(tokens))
    vector = pooled.packed(dimensions)
    assert vector is not None  # no count is zero
    return vector
