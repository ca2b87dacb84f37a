"""What a door asks: an answer, under an idempotency key or without one.

    async with once.run(principal, request, seconds=60, key=key) as answer:
        async for number, chunk in answer: …
    # its row is written; only now is the caller told how it ended
    answer.result

Without a key a request runs as long as its caller stays. With one it runs on for half a minute, and whoever asks again
reads the same answer.
"""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Generic

from services.gateway.active_request import ActivePrompt
from services.gateway.admission.prompt_admission import BadField
from services.gateway.idempotency import cache_keys
from services.gateway.idempotency.answer_buffer import Piece
from services.gateway.idempotency.answer_reader import RepeatedAnswerFacts
from services.gateway.idempotency.answer_runs import AnswerRun
from services.gateway.idempotency.idempotency_keys import FIELD, End, IdempotentRequest
from services.gateway.idempotency.idempotent_requests import IdempotentRequests
from services.gateway.limits.limit_rules import TightestLimit
from services.gateway.pipeline import Pipeline
from shared import context, errors
from shared.api.auth import Principal
from shared.api.embedding import EmbeddingRequest
from shared.api.gateway import InferenceRequest, InferenceResult, Rest
from shared.api.inference import Chunk
from shared.types import ModelName, RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedRequest:
    """How a request is a repeat, or may be repeated."""

    key: str | None = None
    #: What its caller has lost of the answer.
    rest: Rest | None = None
    #: As ``Asked.together``.
    together: bytes = b""


#: A request that is asked once.
NEVER = RepeatedRequest()


class InferenceReply(Generic[Piece, End]):
    """Iterate it for its numbered chunks; with the number 0 what it waits for. ``result`` is there when the block of ``run`` is left."""

    def __init__(
        self,
        about: RepeatedAnswerFacts,
        chunks: AsyncIterator[tuple[int, Piece]],
        result: Callable[[], End],
        *,
        allowance: TightestLimit | None = None,
        clamped_to: int | None = None,
        is_repeat: bool = False,
    ) -> None:
        self._about = about
        self._chunks = chunks
        self._result = result
        #: What is left of the limits; None for a repeat, which uses nothing of them.
        self.allowance = allowance
        #: What max_tokens was lowered to, because the credits did not reach for more.
        self.clamped_to = clamped_to
        #: It is the answer of another call.
        self.is_repeat = is_repeat

    def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        return self._chunks

    @property
    def request_id(self) -> RequestId:
        """Of the call that the answer was made for."""
        return self._about.request_id

    @property
    def model(self) -> ModelName:
        assert self._about.model is not None  # known before the first chunk
        return self._about.model

    @property
    def began_at(self) -> datetime:
        return self._about.began_at

    @property
    def result(self) -> End:
        return self._result()


class DeduplicatedInference:
    """One for the gateway."""

    def __init__(self, pipeline: Pipeline, idempotency: IdempotentRequests) -> None:
        self._pipeline = pipeline
        self._idempotency = idempotency

    @asynccontextmanager
    async def run(
        self,
        principal: Principal,
        request: InferenceRequest,
        *,
        seconds: float,
        again: RepeatedRequest = NEVER,
        whole: bool = False,
        cache: cache_keys.CacheRequest = cache_keys.CacheRequest.NOTHING,
        streamed: bool = True,
    ) -> AsyncIterator[InferenceReply[Chunk, InferenceResult]]:
        """What is behind ``again.rest``, or the ``whole`` of the answer; in chunks of some tokens where it is not ``streamed`` and
        nobody can ask for it again, whose chunks are counted. TooLarge out of the block of one that is not ``streamed`` ends its making,
        under a key too; without a key it costs nothing. Raises what ``Pipeline.run`` and ``IdempotentRequests.answer`` raise."""
        if again.key is not None:
            asked = replace(asked_under(again.key, principal, request, rest=again.rest), together=again.together)
            async with self._under_key(principal, request, asked, seconds=seconds, whole=whole, cache=cache) as answer:
                try:
                    yield answer
                except errors.TooLarge:
                    if not streamed and not answer.is_repeat:
                        # It is billed: others may have read it as a stream.
                        with suppress(errors.Unavailable):
                            await self.withdraw(principal, again.key)
                    raise
            return
        if again.rest is not None:
            raise BadField("Last-Event-ID", f"goes with the {FIELD} that the request had; without one an answer ends with its stream")
        async with (
            self._pipeline.run(principal, request, seconds=seconds, cache=cache, streamed=streamed) as running,
            aclosing(numbered(running)) as chunks,
        ):
            try:
                yield InferenceReply(running, chunks, lambda: running.result, allowance=running.allowance, clamped_to=running.clamped_to)
            except errors.TooLarge:
                if not streamed:
                    running.undeliverable = True
                raise

    async def withdraw(self, principal: Principal, key: str) -> None:
        """Nobody wants what was asked under this key any more. Does nothing where no gateway makes it. Raises Unavailable."""
        await self._idempotency.cancel(principal.tenant_id, key)

    @asynccontextmanager
    async def _under_key(
        self,
        principal: Principal,
        request: InferenceRequest,
        asked: IdempotentRequest,
        *,
        seconds: float,
        whole: bool,
        cache: cache_keys.CacheRequest,
    ) -> AsyncIterator[InferenceReply[Chunk, InferenceResult]]:
        async def produce(take: AnswerRun[ActivePrompt, Chunk, InferenceResult], seed: int) -> InferenceResult:
            # As long as there is: whoever reads it has a deadline of its own.
            left = self._idempotency.most_seconds
            made = self._pipeline.run(
                principal, request, seconds=left, drawn_seed=seed, cache=cache, goes_on_elsewhere=lambda: not take.was_stopped
            )
            async with made as running:
                take.tell(running)
                async for chunk in running:
                    await take.add(chunk)
            return running.result

        async with self._idempotency.answer(asked, produce, seconds=seconds, whole=whole) as repeat:
            about = repeat.head
            ours = about.request_id == asked.request_id
            if ours and isinstance(about, ActivePrompt):
                yield InferenceReply(about, repeat, lambda: repeat.result, allowance=about.allowance, clamped_to=about.clamped_to)
            else:
                yield InferenceReply(about, repeat, lambda: repeat.result, is_repeat=not ours)


def asked_under(
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


async def numbered(chunks: AsyncIterator[Piece]) -> AsyncGenerator[tuple[int, Piece]]:
    """From 1 on; what only says what the answer waits for has the number 0."""
    number = 0
    async for chunk in chunks:
        number += not chunk.waiting
        yield (0 if chunk.waiting else number), chunk
