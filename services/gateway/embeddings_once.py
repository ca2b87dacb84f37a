"""What a door asks for vectors: as `once` for prompts, under an idempotency key or without one.

    async with once.run(principal, request, seconds=60, key=key) as answer:
        async for number, vectors in answer: …
    answer.result

A part of the vectors is worth nothing and costs nothing, so a request that fails in the middle frees its key.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from services.gateway import once
from services.gateway.embeddings import Embeddings, Running
from services.gateway.once import Answer
from services.gateway.repeats.idempotency import Idempotency
from services.gateway.repeats.idempotency_keys import Asked
from services.gateway.repeats.takes import Take
from shared.api.auth import Principal
from shared.api.embedding import EmbeddingRequest, EmbeddingResult, Vectors


class EmbeddingsOnce:
    """One for the gateway."""

    def __init__(self, embeddings: Embeddings, idempotency: Idempotency) -> None:
        self._embeddings = embeddings
        self._idempotency = idempotency

    @asynccontextmanager
    async def run(
        self, principal: Principal, request: EmbeddingRequest, *, seconds: float, key: str | None = None
    ) -> AsyncIterator[Answer[Vectors, EmbeddingResult]]:
        """Raises what ``Embeddings.run`` and ``Idempotency.answer`` raise."""
        if key is not None:
            asked = once.asked_under(key, principal, request)
            async with self._under_key(principal, request, asked, seconds) as answer:
                yield answer
            return
        async with (
            self._embeddings.run(principal, request, seconds=seconds) as running,
            aclosing(once.numbered(running)) as vectors,
        ):
            yield Answer(running, vectors, lambda: running.result, allowance=running.allowance)

    @asynccontextmanager
    async def _under_key(
        self, principal: Principal, request: EmbeddingRequest, asked: Asked, seconds: float
    ) -> AsyncIterator[Answer[Vectors, EmbeddingResult]]:
        async def produce(take: Take[Running, Vectors, EmbeddingResult], _seed: int) -> EmbeddingResult:
            async with self._embeddings.run(principal, request, seconds=self._idempotency.most_seconds) as running:
                take.tell(running)
                async for vectors in running:
                    await take.add(vectors)
            return running.result

        async with self._idempotency.answer(asked, produce, seconds=seconds, whole=True) as repeat:
            about = repeat.head
            ours = about.request_id == asked.request_id
            allowance = about.allowance if ours and isinstance(about, Running) else None
            yield Answer(about, repeat, lambda: repeat.result, allowance=allowance, is_repeat=not ours)
