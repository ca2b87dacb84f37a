"""Answers each request once per idempotency key; requests without a key run independently.

    async with requests.run(principal, request, seconds=60, repeat=RepeatedRequest(key)) as answer:
        async for number, chunk in answer: …
    # the row is written before the caller learns how the request ended
    answer.result

Without a key, a request ends when its caller disconnects. With a key it runs on for half a minute, and a retry reads the same answer.
Partial embeddings are useless, so an embedding request that fails halfway frees its key.
"""

import secrets
from collections.abc import AsyncIterator, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from services.gateway.facts.bad_field import BadField
from services.gateway.idempotency import cache_keys
from services.gateway.idempotency.answer_buffer import Piece
from services.gateway.idempotency.answer_reader import InferenceReplyHead
from services.gateway.idempotency.answer_runs import AnswerRun
from services.gateway.idempotency.idempotency_keys import FIELD, End, IdempotentRequest, KeyUse
from services.gateway.idempotency.idempotent_requests import IdempotentRequests
from services.gateway.requests.image_admission import ImageLimits
from services.gateway.requests.pipeline import Pipeline
from shared import context, errors
from shared.api.auth import Principal
from shared.api.embedding import EmbeddingRequest, EmbeddingResult, Vectors
from shared.api.gateway import InferenceRequest, InferenceResult, Rest
from shared.api.inference import Chunk
from shared.protocol import request_memory


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedRequest:
    """Says which earlier request a call repeats, if any."""

    key: str | None = None
    #: The part of the answer that the caller has lost.
    rest: Rest | None = None
    #: See ``IdempotentRequest.together``.
    together: bytes = b""


NO_REPEAT = RepeatedRequest()

Piece_co = TypeVar("Piece_co", covariant=True)
End_co = TypeVar("End_co", covariant=True)


class ReplyFacts(Protocol):
    @property
    def head(self) -> InferenceReplyHead: ...

    @property
    def is_repeat(self) -> bool:
        """Return whether another call started this answer."""


class InferenceReply(ReplyFacts, Protocol[Piece_co, End_co]):
    """The answer as an iterator of numbered chunks; number 0 is a waiting notice. Read ``result`` after the block of ``run``."""

    @property
    def result(self) -> End_co: ...

    def __aiter__(self) -> AsyncIterator[tuple[int, Piece_co]]: ...


class DeduplicatedInference:
    """Runs requests through the pipeline, deduplicated by idempotency key."""

    def __init__(self, pipeline: Pipeline, idempotency: IdempotentRequests, images: ImageLimits = ImageLimits()) -> None:  # noqa: B008 - frozen
        self._pipeline = pipeline
        self._images = images
        self._idempotency = idempotency

    @property
    def most_seconds(self) -> float:
        """Return the time limit for a request."""
        return self._pipeline.most_seconds

    async def admit_images(self, request: InferenceRequest, written: MutableMapping[str, bytes] | None = None) -> InferenceRequest:
        """Return the request as ``run`` takes it. See ``ImageLimits.admit``."""
        if not written and not any(message.images for message in request.messages):
            return request
        encoded_bytes = sum(map(len, written.values())) if written else 0
        request = await self._images.admit(request, written)
        if encoded_bytes and (held := request_memory.current.get()) is not None:
            image_bytes = sum(len(image.data) for message in request.messages for image in message.images)
            held.resize(held.size - max(0, encoded_bytes - image_bytes))
        return request

    def run(
        self,
        principal: Principal,
        request: InferenceRequest,
        *,
        seconds: float,
        repeat: RepeatedRequest = NO_REPEAT,
        whole: bool = False,
        cache: cache_keys.CacheRequest = cache_keys.CacheRequest.NOTHING,
        streamed: bool = True,
    ) -> AbstractAsyncContextManager[InferenceReply[Chunk, InferenceResult]]:
        """Return the answer after ``repeat.rest``, or the ``whole`` answer; in larger chunks if it is neither ``streamed`` nor under a key.
        If TooLarge leaves the block of an unstreamed request, the generation ends, at no cost without a key. Raises what
        ``Pipeline.run`` and ``IdempotentRequests.answer`` raise."""
        if repeat.key is not None:
            return self._run_once(principal, request, repeat, seconds=seconds, whole=whole, cache=cache, streamed=streamed)
        if repeat.rest is not None:
            raise BadField("Last-Event-ID", f"requires the {FIELD} of the original request; without one, an answer ends with its stream")
        return self._pipeline.run(principal, request, seconds=seconds, cache=cache, streamed=streamed)

    @asynccontextmanager
    async def _run_once(
        self,
        principal: Principal,
        request: InferenceRequest,
        repeat: RepeatedRequest,
        *,
        seconds: float,
        whole: bool,
        cache: cache_keys.CacheRequest,
        streamed: bool,
    ) -> AsyncIterator[InferenceReply[Chunk, InferenceResult]]:
        key = repeat.key
        assert key is not None
        keyed_request = replace(_keyed(key, principal, request, repeat), config_revision=self._pipeline.config_revision)

        async def produce(run: AnswerRun[Any, Chunk, InferenceResult], key_use: KeyUse) -> InferenceResult:
            # The maximum, because every reader has its own deadline; but a whole answer has to be there at that of its first one.
            left = self._idempotency.most_seconds if streamed else min(seconds, self._idempotency.most_seconds)
            running = self._pipeline.run(
                principal,
                request,
                seconds=left,
                key_use=key_use,
                cache=cache,
                streamed=streamed,
                continues_elsewhere=lambda: not run.was_stopped,
            )
            # Other readers may need it longer than the call that brought it.
            with request_memory.current.get() or nullcontext():
                return await _record_answer(run, running)

        async with self._idempotency.answer(keyed_request, produce, seconds=seconds, whole=whole) as answer:
            try:
                yield answer
            except errors.TooLarge:
                if not streamed and not answer.is_repeat:
                    # It is still billed: other callers may have read it as a stream.
                    with suppress(errors.Unavailable):
                        await self.cancel(principal, key)
                raise

    def embed(
        self, principal: Principal, request: EmbeddingRequest, *, seconds: float, key: str | None = None
    ) -> AbstractAsyncContextManager[InferenceReply[Vectors, EmbeddingResult]]:
        """Raises what ``Pipeline.embed`` and ``IdempotentRequests.answer`` raise."""
        if key is None:
            return self._pipeline.embed(principal, request, seconds=seconds)

        async def produce(run: AnswerRun[Any, Vectors, EmbeddingResult], _key_use: KeyUse) -> EmbeddingResult:
            return await _record_answer(run, self._pipeline.embed(principal, request, seconds=self._idempotency.most_seconds))

        return self._idempotency.answer(_keyed(key, principal, request, NO_REPEAT), produce, seconds=seconds, whole=True)

    async def cancel(self, principal: Principal, key: str) -> None:
        """Cancel the request under this key. Does nothing if no gateway runs it. Raises Unavailable."""
        await self._idempotency.cancel(principal.tenant_id, key)


async def _record_answer(run: AnswerRun[Any, Piece, End], running: AbstractAsyncContextManager[InferenceReply[Piece, End]]) -> End:
    async with running as answer:
        run.set_head(answer.head)
        async for _, chunk in answer:
            await run.add(chunk)
    return answer.result


def _keyed(key: str, principal: Principal, request: InferenceRequest | EmbeddingRequest, repeat: RepeatedRequest) -> IdempotentRequest:
    now = context.current.get() or context.start()
    return IdempotentRequest(
        owner=principal.tenant_id,
        key=key,
        request=request,
        request_id=now.request_id,
        seed=secrets.randbits(63),
        after=0 if repeat.rest is None else repeat.rest.after,
        together=repeat.together,
    )
