"""What a door asks for vectors: as `deduplicated_inference` for prompts, under an idempotency key or without one.

    async with once.run(principal, request, seconds=60, key=key) as answer:
        async for number, vectors in answer: …
    answer.result

A part of the vectors is worth nothing and costs nothing, so a request that fails in the middle frees its key.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from services.gateway import deduplicated_inference
from services.gateway.deduplicated_inference import InferenceReply
from services.gateway.embedding_pipeline import ActiveEmbedding, EmbeddingPipeline
from services.gateway.idempotency.answer_runs import AnswerRun
from services.gateway.idempotency.idempotency_keys import IdempotentRequest
from services.gateway.idempotency.idempotent_requests import IdempotentRequests
from shared.api.auth import Principal
from shared.api.embedding import EmbeddingRequest, EmbeddingResult, Vectors


class DeduplicatedEmbeddings:
    """One for the gateway."""

    def __init__(self, embeddings: EmbeddingPipeline, idempotency: IdempotentRequests) -> None:
        self._embeddings = embeddings
        self._idempotency = idempotency

    @asynccontextmanager
    async def run(
        self, principal: Principal, request: EmbeddingRequest, *, seconds: float, key: str | None = None
    ) -> AsyncIterator[InferenceReply[Vectors, EmbeddingResult]]:
        """Raises what ``EmbeddingPipeline.run`` and ``IdempotentRequests.answer`` raise."""
        if key is not None:
            asked = deduplicated_inference.asked_under(key, principal, request)
            async with self._under_key(principal, request, asked, seconds) as answer:
                yield answer
            return
        async with (
            self._embeddings.run(principal, request, seconds=seconds) as running,
            aclosing(deduplicated_inference.numbered(running)) as vectors,
        ):
            yield InferenceReply(running, vectors, lambda: running.result, allowance=running.allowance)

    @asynccontextmanager
    async def _under_key(
        self, principal: Principal, request: EmbeddingRequest, asked: IdempotentRequest, seconds: float
    ) -> AsyncIterator[InferenceReply[Vectors, EmbeddingResult]]:
        async def produce(take: AnswerRun[ActiveEmbedding, Vectors, EmbeddingResult], _seed: int) -> EmbeddingResult:
            async with self._embeddings.run(principal, request, seconds=self._idempotency.most_seconds) as running:
                take.tell(running)
                async for vectors in running:
                    await take.add(vectors)
            return running.result

        async with self._idempotency.answer(asked, produce, seconds=seconds, whole=True) as repeat:
            about = repeat.head
            ours = about.request_id == asked.request_id
            allowance = about.allowance if ours and isinstance(about, ActiveEmbedding) else None
            yield InferenceReply(about, repeat, lambda: repeat.result, allowance=allowance, is_repeat=not ours)
