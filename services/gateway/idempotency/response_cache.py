"""Answers requests from what was answered before, and identical requests that run at once by one answer.

    answers = cache.answer(question, generate, use=use, seconds=60, came=…)

Each tenant sees only its own. Without Valkey nothing is found and nothing kept; no request fails by it.
"""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import msgspec

from services.gateway.failover.relay import Said
from services.gateway.idempotency import answer_encryption, cache_keys
from services.gateway.idempotency.answer_runs import AnswerRun, AnswerRunId, AnswerRunReader, AnswerRuns
from services.gateway.idempotency.cache_keys import CacheQuestion, CacheUse
from services.gateway.limits.circuit_breaker import Breaker
from shared import errors
from shared.api.generation import Generation
from shared.api.inference import Chunk, PromptAccepted
from shared.stores.cache import CacheRefuses
from shared.telemetry import Metrics, logs
from shared.types import FinishReason

#: Of one answer: some 5,000 tokens. Longer ones are rare, and reading one would hold Valkey up for everybody else's limits.
MOST_BYTES = 256 * 1024
#: An answer in Valkey is there within a millisecond; without it the request goes its way.
VALKEY_SECONDS = 0.02
#: How often Valkey is tried while it is away.
_PROBE_SECONDS = 1.0

_GET, _PUT = "find_answer", "keep_answer"
_ORDER, _SIZES, _SUM = (cache_keys.PREFIX + word for word in ("order", "sizes", "bytes"))

_log = logs.get(part="response cache")

#: Makes an answer within so many seconds.
Generate = Callable[[float], AsyncGenerator[Said]]


class AnswerOrigin(StrEnum):
    """Where an answer comes from."""

    #: Made for this request.
    MISS = "miss"
    #: Made for another request at the same time.
    JOINED = "joined"
    #: Given before.
    HIT = "hit"


class CacheValues(Protocol):
    """The part of shared.stores.cache that is used here."""

    def script(self, name: str, lua: str) -> None: ...

    async def run(
        self, script: str, keys: Sequence[str], args: Sequence[str | int | float | bytes], *, seconds: float | None = None
    ) -> Any: ...


class _CachedAnswer(msgspec.Struct, frozen=True, array_like=True):
    chunks: tuple[Chunk, ...]
    generation: Generation


_decoder = msgspec.msgpack.Decoder(_CachedAnswer)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheBounds:
    #: How long an answer is good.
    keep_seconds: float
    #: Of all answers in Valkey.
    most_bytes: int
    #: What the making of an answer with several readers may take; each of them has a deadline of its own.
    most_seconds: float


class ResponseCache:
    """One for the gateway."""

    def __init__(
        self,
        values: CacheValues,
        takes: AnswerRuns,
        metrics: Metrics,
        bounds: CacheBounds,
        *,
        secret: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._values = values
        self._takes = takes
        self._counted = metrics.response_cache
        self._bounds = bounds
        self._secret = secret
        self._clock = clock
        self._breaker = Breaker()
        self._probe_at = 0.0
        #: The call that Valkey refuses or leaves without an answer; None while all is well.
        self._failing: str | None = None
        values.script(_GET, "return redis.call('GET', KEYS[1])")
        values.script(_PUT, Path(__file__).with_name("response_cache.lua").read_text(encoding="utf-8"))

    async def answer(
        self, question: CacheQuestion, generate: Generate, *, use: CacheUse, seconds: float, came: Callable[[AnswerOrigin], None]
    ) -> AsyncGenerator[Said]:
        """What a worker would say, chunks, and last the Generation. ``came`` is told where it comes from before its first part.
        ``use`` lets the request have the cache for something; one that has no use for it goes straight to its worker.

        Raises what ``generate`` raises. Close it with ``aclose``: an answer that has no other reader ends then.
        """
        name = cache_keys.name(question, self._secret)
        at = AnswerRunId(question.tenant, name.encode())
        reader = self._join(at, seconds) if use.read else None
        origin = AnswerOrigin.JOINED
        if reader is None and use.read:
            if (found := await self._find(question, name)) is not None:
                self._came(AnswerOrigin.HIT, came)
                yield PromptAccepted(found.generation.usage.prompt_tokens)
                for chunk in found.chunks:
                    yield chunk
                yield found.generation
                return
            # Somebody may have begun meanwhile. From here to the first reader nothing is awaited, so only one does.
            reader = self._join(at, seconds)
        if reader is None:
            origin = AnswerOrigin.MISS
            reader = self._start(question, name, at, generate).reader()
        self._came(origin, came)
        async with aclosing(_follow(reader)) as answers:
            async for said in answers:
                yield said

    def _came(self, origin: AnswerOrigin, came: Callable[[AnswerOrigin], None]) -> None:
        self._counted.labels(result=origin.value).inc()
        came(origin)

    def _join(self, at: AnswerRunId, seconds: float) -> "AnswerRunReader[PromptAccepted, Chunk, Generation] | None":
        take: AnswerRun[PromptAccepted, Chunk, Generation] | None = self._takes.find(at)
        # One whose time is nearly over would end with an error that is not this request's.
        if take is None or take.ends_at - self._clock() < seconds / 2:
            return None
        try:
            return take.reader()
        except errors.AnswerGone:
            return None

    def _start(
        self, question: CacheQuestion, name: str, at: AnswerRunId, generate: Generate
    ) -> "AnswerRun[PromptAccepted, Chunk, Generation]":
        async def produce(take: "AnswerRun[PromptAccepted, Chunk, Generation]") -> Generation:
            generation: Generation | None = None
            async with aclosing(generate(self._bounds.most_seconds)) as answers:
                async for said in answers:
                    match said:
                        case PromptAccepted():
                            take.tell(said)
                        case Chunk():
                            await take.add(said)
                        case Generation():
                            generation = said
            if generation is None:
                raise errors.LinkLost("the answer broke off without its end", hint="try again")
            # Before its readers learn of the end: from then on the take is not found any more.
            await self._keep(question, name, take.chunks, generation)
            return generation

        return self._takes.start(at, produce, seconds=self._bounds.most_seconds)

    # --- Valkey -----------------------------------------------------------------------------------------------------

    async def _find(self, question: CacheQuestion, name: str) -> _CachedAnswer | None:
        value = await self._ask(_GET, (name,), ())
        if not isinstance(value, bytes):
            return None
        plain = answer_encryption.unseal(value, question.tenant, name, self._secret)
        try:
            return None if plain is None else _decoder.decode(plain)
        except msgspec.MsgspecError:  # of another version
            return None

    async def _keep(self, question: CacheQuestion, name: str, chunks: tuple[Chunk, ...] | None, generation: Generation) -> None:
        if chunks is None or FinishReason.CANCELLED in {generation.finish_reason, *generation.finish_reasons}:
            return
        value = answer_encryption.seal(msgspec.msgpack.encode(_CachedAnswer(chunks, generation)), question.tenant, name, self._secret)
        if len(value) <= MOST_BYTES:
            await self._ask(_PUT, (name, _ORDER, _SIZES, _SUM), (value, round(1000 * self._bounds.keep_seconds), self._bounds.most_bytes))

    async def _ask(self, script: str, keys: Sequence[str], args: Sequence[str | int | bytes]) -> object:
        """None where Valkey is away."""
        now = self._clock()
        if self._breaker.is_open and now < self._probe_at:
            return None
        self._probe_at = now + _PROBE_SECONDS
        try:
            answer: object = await self._values.run(script, keys, args, seconds=VALKEY_SECONDS)
        except errors.Unavailable as error:
            # One that refuses to write answers all other calls, which would close the breaker again and again.
            if self._breaker.failed(self._clock()) or isinstance(error, CacheRefuses):
                self._tell(script, error)
            return None
        self._breaker.succeeded()
        if self._failing == script:
            self._failing = None
            _log.info("the response cache is used again")
        return answer

    def _tell(self, script: str, error: errors.Unavailable) -> None:
        if self._failing is None:
            self._failing = script
            _log.error("the response cache is not used", call=script, reason=f"{error.message}: {error.__cause__!r}")


async def _follow(reader: "AnswerRunReader[PromptAccepted, Chunk, Generation]") -> AsyncGenerator[Said]:
    with reader:
        accepted: PromptAccepted | None = None
        async for number, chunk in reader:
            if number and accepted is None and (accepted := reader.take.head) is not None:
                yield accepted
            yield chunk
        if accepted is None and reader.take.head is not None:
            yield reader.take.head
        yield reader.end
