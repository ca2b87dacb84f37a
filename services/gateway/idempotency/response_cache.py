"""Caches answers in Valkey, and runs identical concurrent requests once.

    answers = cache.answer(question, generate, use=use, seconds=60, shared=…, set_origin=…)

Tenants never share answers. Without Valkey, requests run uncached.
"""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import msgspec

from services.gateway.idempotency import cache_keys
from services.gateway.idempotency.answer_runs import AnswerRun, AnswerRunId, AnswerRunReader, AnswerRuns
from services.gateway.idempotency.cache_keys import CacheQuestion, CacheUse
from services.gateway.idempotency.sealed_values import SealedValues
from services.gateway.relay import AnswerItem
from shared import errors
from shared.api.generation import GenerationEnd
from shared.api.inference import Chunk, PromptAccepted
from shared.stores.cache import Cache
from shared.telemetry import Metrics
from shared.types import FinishReason

Shared = TypeVar("Shared")
#: Generates an answer within so many seconds.
Generate = Callable[[float], AsyncGenerator[AnswerItem]]


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
        runs: AnswerRuns,
        metrics: Metrics,
        bounds: CacheBounds,
        *,
        secret: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._values = SealedValues(
            values, cache_keys.PREFIX, secret=secret, most_bytes=bounds.most_bytes, what="response cache", clock=clock
        )
        self._runs = runs
        self._counted = metrics.response_cache
        self._bounds = bounds
        self._secret = secret
        self._clock = clock

    async def answer(
        self,
        question: CacheQuestion,
        generate: Generate,
        *,
        use: CacheUse,
        seconds: float,
        shared: Shared,
        set_origin: Callable[[AnswerOrigin, Shared], None],
    ) -> AsyncGenerator[AnswerItem]:
        """Yield PromptAccepted, chunks, and finally the end. Call ``set_origin`` before the first item, with ``shared`` of the request for
        which the answer is generated. ``use`` must not be empty.

        Raises what ``generate`` raises. Close it with ``aclose``: an answer without other readers then ends.
        """
        name = cache_keys.name(question, self._secret)
        run_id = AnswerRunId(question.tenant, name.encode())
        reader = self._join(run_id, seconds) if use.read else None
        origin = AnswerOrigin.JOINED
        if reader is None and use.read:
            if (found := await self._find(question, name)) is not None:
                self._counted.labels(result=AnswerOrigin.HIT.value).inc()
                set_origin(AnswerOrigin.HIT, shared)
                yield PromptAccepted(found.generation.usage.prompt_tokens)
                for chunk in found.chunks:
                    yield chunk
                yield found.generation
                return
            # Another request may have started meanwhile. Without an await until the first reader, only one starts.
            reader = self._join(run_id, seconds)
        if reader is None:
            origin = AnswerOrigin.MISS
            reader = self._start(question, name, run_id, generate).reader()
            reader.run.shared = shared
        self._counted.labels(result=origin.value).inc()
        set_origin(origin, reader.run.shared)
        async with aclosing(_follow(reader)) as answers:
            async for item in answers:
                yield item

    def _join(self, run_id: AnswerRunId, seconds: float) -> "AnswerRunReader[PromptAccepted, Chunk, GenerationEnd] | None":
        run: AnswerRun[PromptAccepted, Chunk, GenerationEnd] | None = self._runs.find(run_id)
        # A run that is near its deadline could fail with an error that isn't this request's.
        if run is None or run.ends_at - self._bounds.start_seconds - self._clock() < seconds / 2:
            return None
        try:
            return run.reader()
        except errors.AnswerGone:
            return None

    def _start(
        self, question: CacheQuestion, name: str, run_id: AnswerRunId, generate: Generate
    ) -> "AnswerRun[PromptAccepted, Chunk, GenerationEnd]":
        async def produce(run: "AnswerRun[PromptAccepted, Chunk, GenerationEnd]") -> GenerationEnd:
            generation: GenerationEnd | None = None
            async with aclosing(generate(self._bounds.most_seconds)) as answers:
                async for item in answers:
                    match item:
                        case PromptAccepted():
                            run.set_head(item)
                        case Chunk():
                            await run.add(item)
                        case GenerationEnd():
                            generation = item
            if generation is None:
                raise errors.LinkLost("the answer ended without its end marker", hint="retry the request")
            # Store it before its readers see the end, because then the run is no longer found.
            await self._keep(question, name, run.buffer.whole, generation)
            return generation

        return self._runs.start(run_id, produce, seconds=self._bounds.most_seconds + self._bounds.start_seconds)

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


async def _follow(reader: "AnswerRunReader[PromptAccepted, Chunk, GenerationEnd]") -> AsyncGenerator[AnswerItem]:
    with reader:
        accepted: PromptAccepted | None = None
        async for number, chunk in reader:
            if number and accepted is None and (accepted := reader.run.head) is not None:
                yield accepted
            yield chunk
        if accepted is None and reader.run.head is not None:
            yield reader.run.head
        yield reader.result
