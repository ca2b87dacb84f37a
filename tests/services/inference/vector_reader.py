"""Stands in for whoever reads vectors."""

import asyncio
import struct

from shared.api.embedding import Vectors


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
