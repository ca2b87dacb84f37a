"""A request for embeddings, and a fake reader of their vectors."""

import asyncio
import math
import struct
from collections.abc import Sequence

from shared.api.embedding import Embed, EmbeddingInput, Vectors
from shared.context import new_request_id
from shared.types import ModelName


def texts_for(model: ModelName, inputs: tuple[EmbeddingInput, ...], dimensions: int | None = None, query: str | None = None) -> Embed:
    return Embed(model, inputs, new_request_id(), dimensions, query)


class VectorReader:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.accepted = False
        self.prompt_tokens: int | None = None
        self.vectors: list[tuple[float, ...]] = []
        self.waited: list[str] = []
        self.first = asyncio.Event()

    def accept(self, prompt_tokens: int | None) -> None:
        self.accepted = True
        self.prompt_tokens = prompt_tokens

    async def send(self, item: Vectors) -> None:
        self.waited += [item.waiting] if item.waiting else []
        for vector in item.vectors:
            self.vectors.append(struct.unpack(f"<{len(vector) // 4}f", vector))
            self.first.set()


def of_one_text(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether these are vectors of one text, perhaps computed in different batches or pieces.

    With quantized weights, they may differ by 0.01, depending on the CPU and the batch. The closest different texts in these tests differ
    by 0.2."""
    return len(one) == len(other) and math.dist(one, other) < 0.05
