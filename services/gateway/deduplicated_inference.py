"""Answers a request for a caller: under an idempotency key once, however often it is asked; without a key as often as it is asked.

    async with requests.run(principal, request, seconds=60, again=RepeatedRequest(key)) as answer:
        async for number, chunk in answer: …
    # its row is written; only now is the caller told how it ended
    answer.result

Without a key, a request ends when its caller leaves. With a key it runs on for half a minute, and a caller who asks again reads the same
answer. Vectors are worth nothing unless they are complete, so a request for embeddings that fails halfway frees its key.
"""

import secrets
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from services.gateway.admission.prompt_admission import BadField
from services.gateway.idempotency import cache_keys
from services.gateway.idempotency.answer_buffer import Piece
from services.gateway.idempotency.answer_reader import RepeatedAnswerFacts
from services.gateway.idempotency.answer_runs import AnswerRun
from services.gateway.idempotency.idempotency_keys import FIELD, End, IdempotentRequest
from services.gateway.idempotency.idempotent_requests import IdempotentRequests
from services.gateway.pipeline import Pipeline
from shared import context, errors
from shared.api.auth import Principal
from shared.api.embedding import EmbeddingRequest, EmbeddingResult, Vectors
from shared.api.gateway import InferenceRequest, InferenceResult, Rest
from shared.api.inference import Chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedRequest:
    """How a request repeats another, or may be repeated."""

    key: str | None = None
    #: What its caller has lost of the answer.
    rest: Rest | None = None
    #: As ``IdempotentRequest.together``.
    together: bytes = b""


#: A request that is sent once.
NEVER = RepeatedRequest()

Piece_co = TypeVar("Piece_co", covariant=True)
End_co = TypeVar("End_co", covariant=True)


class InferenceReply(RepeatedAnswerFacts, Protocol[Piece_co, End_co]):
    """Iterate it for its numbered chunks; a chunk with the number 0 says what the request waits for. Read ``result`` after the block
    of ``run``."""

    @property
    def is_repeat(self) -> bool:
        """Whether it is the answer to another call."""

    @property
    def result(self) -> End_co: ...

    def __aiter__(self) -> AsyncIterator[tuple[int, Piece_co]]: ...


class DeduplicatedInference:
    """One for the gateway."""

    def __init__(self, pipeline: Pipeline, idempotency: IdempotentRequests) -> None:
        self._pipeline = pipeline
        self._idempotency = idempotency

    def run(
        self,
        principal: Principal,
        request: InferenceRequest,
        *,
        seconds: float,
        again: RepeatedRequest = NEVER,
        whole: bool = False,
        cache: cache_keys.CacheRequest = cache_keys.CacheRequest.NOTHING,
        streamed: bool = True,
    ) -> AbstractAsyncContextManager[InferenceReply[Chunk, InferenceResult]]:
        """Answer with what follows ``again.rest``, or the ``whole`` answer; in larger chunks if it is not ``streamed`` and has no key. If
        TooLarge leaves the block of a request that is not ``streamed``, the generation ends; without a key it costs nothing. Raises what
        ``Pipeline.run`` and ``IdempotentRequests.answer`` raise."""
        if again.key is not None:
            return self._run_under_key(principal, request, again, seconds=seconds, whole=whole, cache=cache, streamed=streamed)
        if again.rest is not None:
            raise BadField("Last-Event-ID", f"goes with the {FIELD} that the request had; without one an answer ends with its stream")
        return self._pipeline.run(principal, request, seconds=seconds, cache=cache, streamed=streamed)

    def embed(
        self, principal: Principal, request: EmbeddingRequest, *, seconds: float, key: str | None = None
    ) -> AbstractAsyncContextManager[InferenceReply[Vectors, EmbeddingResult]]:
        """Raises what ``Pipeline.embed`` and ``IdempotentRequests.answer`` raise."""
        if key is None:
            return self._pipeline.embed(principal, request, seconds=seconds)

        async def produce(take: AnswerRun[Any, Vectors, EmbeddingResult], _seed: int) -> EmbeddingResult:
            return await _make(take, self._pipeline.embed(principal, request, seconds=self._idempotency.most_seconds))

        return self._idempotency.answer(_asked_under(key, principal, request), produce, seconds=seconds, whole=True)

    async def withdraw(self, principal: Principal, key: str) -> None:
        """Nobody wants what was asked under this key any more. Does nothing if no gateway makes it. Raises Unavailable."""
        await self._idempotency.cancel(principal.tenant_id, key)

    @asynccontextmanager
    async def _run_under_key(
        self,
        principal: Principal,
        request: InferenceRequest,
        again: RepeatedRequest,
        *,
        seconds: float,
        whole: bool,
        cache: cache_keys.CacheRequest,
        streamed: bool,
    ) -> AsyncIterator[InferenceReply[Chunk, InferenceResult]]:
        assert again.key is not None
        asked = replace(_asked_under(again.key, principal, request, rest=again.rest), together=again.together)

        async def produce(take: AnswerRun[Any, Chunk, InferenceResult], seed: int) -> InferenceResult:
            # As long as there is: every reader has a deadline of its own.
            left = self._idempotency.most_seconds
            running = self._pipeline.run(
                principal, request, seconds=left, drawn_seed=seed, cache=cache, goes_on_elsewhere=lambda: not take.was_stopped
            )
            return await _make(take, running)

        async with self._idempotency.answer(asked, produce, seconds=seconds, whole=whole) as answer:
            try:
                yield answer
            except errors.TooLarge:
                if not streamed and not answer.is_repeat:
                    # It is billed: others may have read it as a stream.
                    with suppress(errors.Unavailable):
                        await self.withdraw(principal, again.key)
                raise


async def _make(take: AnswerRun[Any, Piece, End], running: AbstractAsyncContextManager[InferenceReply[Piece, End]]) -> End:
    """Runs a request to its end for all readers of its answer."""
    async with running as answer:
        take.tell(answer)
        async for _, chunk in answer:
            await take.add(chunk)
    return answer.result


def _asked_under(
    key: str, principal: Principal, request: InferenceRequest | EmbeddingRequest, *, rest: Rest | None = None
) -> IdempotentRequest:
    """This call, as one that may be a repeat."""
    now = context.current.get() or context.start()
    return IdempotentRequest(
        owner=principal.tenant_id,
        key=key,
        request=request,
        request_id=now.request_id,
        seed=secrets.randbits(63),
        after=0 if rest is None else rest.after,
    )
