"""Caches answers in Valkey, and generates identical concurrent ones once.

Tenants never share answers. Without Valkey, requests run uncached.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from services.gateway.facts import tally
from services.gateway.facts.reader import Reader
from services.gateway.facts.tally import Tally
from services.gateway.idempotency import cache_keys
from services.gateway.idempotency.cache_keys import CacheQuestion, CacheUse
from services.gateway.idempotency.recorder import Recorder, Recorders, RecordingId
from services.gateway.idempotency.sealed_values import SealedValues
from shared import errors
from shared.api.generation import GenerationEnd
from shared.api.inference import Chunk, PromptAccepted
from shared.stores.cache import Cache
from shared.telemetry import Metrics
from shared.types import FinishReason

Shared = TypeVar("Shared")
#: Generates an answer for a reader within so many seconds.
Generate = Callable[[Reader[PromptAccepted, Chunk], float], Awaitable[Any]]
_Recorder = Recorder[PromptAccepted, Chunk, GenerationEnd]


class AnswerOrigin(StrEnum):
    """Where an answer comes from."""

    #: Generated for this request.
    MISS = "miss"
    #: Generated for a concurrent identical request.
    JOINED = "joined"
    #: Found in Valkey.
    HIT = "hit"


class _CachedAnswer(msgspec.Struct, frozen=True, array_like=True):
    chunks: tuple[Chunk, ...]
    generation: GenerationEnd


_decoder = msgspec.msgpack.Decoder(_CachedAnswer)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheBounds:
    #: Lifetime of an answer.
    keep_seconds: float
    #: Over all answers in Valkey.
    most_bytes: int
    #: Time limit for a shared answer; each reader has its own deadline.
    most_seconds: float
    #: Added to it for the start of a worker.
    start_seconds: float = 0.0


class ResponseCache:
    def __init__(
        self,
        values: Cache,
        recorders: Recorders,
        metrics: Metrics,
        bounds: CacheBounds,
        *,
        secret: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._values = SealedValues(
            values, cache_keys.PREFIX, secret=secret, most_bytes=bounds.most_bytes, what="response cache", clock=clock
        )
        self._recorders = recorders
        self._counted = metrics.response_cache
        self._bounds = bounds
        self._secret = secret
        self._clock = clock

    async def answer(
        self,
        question: CacheQuestion,
        generate: Generate,
        reader: Reader[PromptAccepted, Chunk],
        *,
        use: CacheUse,
        seconds: float,
        shared: Shared,
        set_origin: Callable[[AnswerOrigin, Shared], None],
    ) -> GenerationEnd | None:
        """Give the answer to the reader, and return its end; None if the reader wants no more. Call ``set_origin`` before the first piece,
        with ``shared`` of the request for which the answer is generated. ``use`` must not be empty. Raises what ``generate`` raises. An
        answer without readers ends."""
        name = cache_keys.name(question, self._secret)
        recording_id = RecordingId(question.tenant, name.encode())
        joined = self._join(recording_id, seconds) if use.read else None
        if joined is None and use.read:
            if (found := await self._find(question, name)) is not None:
                self._count(AnswerOrigin.HIT)
                set_origin(AnswerOrigin.HIT, shared)
                return await _replay(found, reader)
            # Another request may have started meanwhile. Without an await until the first reader, only one starts.
            joined = self._join(recording_id, seconds)
        origin = AnswerOrigin.JOINED
        if joined is None:
            origin, recorder = AnswerOrigin.MISS, self._start(question, name, recording_id, generate)
            joined, recorder.shared = (recorder, recorder.join()), shared
        self._count(origin)
        set_origin(origin, joined[0].shared)
        return await joined[0].play(reader, joined[1])

    def _count(self, origin: AnswerOrigin) -> None:
        self._counted.labels(result=origin.value).inc()

    def _join(self, recording_id: RecordingId, seconds: float) -> "tuple[_Recorder, Any] | None":
        """Return a running answer, and a place in it."""
        found: _Recorder | None = self._recorders.find(recording_id)
        # An answer that is near its deadline could fail with an error that isn't this request's.
        if found is None or found.ends_at - self._bounds.start_seconds - self._clock() < seconds / 2:
            return None
        try:
            return found, found.join()
        except errors.AnswerGone:
            return None

    def _start(self, question: CacheQuestion, name: str, recording_id: RecordingId, generate: Generate) -> _Recorder:
        async def produce(recorder: _Recorder) -> GenerationEnd:
            end: GenerationEnd = await generate(recorder, self._bounds.most_seconds)
            # Store it before its readers see the end, because then the recording is no longer found.
            await self._keep(question, name, recorder.recording.whole, end)
            return end

        return self._recorders.start(recording_id, produce, seconds=self._bounds.most_seconds + self._bounds.start_seconds)

    # --- Valkey -----------------------------------------------------------------------------------------------------

    async def _find(self, question: CacheQuestion, name: str) -> _CachedAnswer | None:
        plain = next(await self._values.find(question.tenant, (name,)) or iter(()), None)
        try:
            return None if plain is None else _decoder.decode(plain)
        except msgspec.MsgspecError:  # of another version
            return None

    async def _keep(self, question: CacheQuestion, name: str, chunks: tuple[Chunk, ...] | None, generation: GenerationEnd) -> None:
        if chunks is None or FinishReason.CANCELLED in {generation.finish_reason, *generation.finish_reasons}:
            return
        values = {name: msgspec.msgpack.encode(_CachedAnswer(chunks, generation))}
        seconds = self._bounds.keep_seconds if question.keep_seconds is None else question.keep_seconds
        await self._values.keep(question.tenant, values, seconds=seconds)


async def _replay(found: _CachedAnswer, reader: Reader[PromptAccepted, Chunk]) -> GenerationEnd | None:
    prompt_tokens = found.generation.usage.prompt_tokens
    reader.begin(PromptAccepted(prompt_tokens))
    at = Tally(prompt_tokens)
    for number, chunk in enumerate(found.chunks, 1):
        at = tally.count(at, chunk)
        if not await reader.take(number, chunk, at):
            return None
    return found.generation
