"""One vector for a text that was computed in pieces.  Pure."""

import math
import struct
from collections.abc import Sequence
from enum import StrEnum


class Pooling(StrEnum):
    """Which of a text's tokens speak for the whole of it; the model's file says so."""

    MEAN = "mean"
    FIRST = "first"
    LAST = "last"


class Pooled:
    """The vector of one text, of which each piece has been pooled already."""

    def __init__(self, pooling: Pooling) -> None:
        self._pooling = pooling
        self._vector: list[float] = []
        self._tokens = 0

    def add(self, vector: Sequence[float], tokens: int) -> None:
        """That of the text's next piece, which has so many tokens."""
        if not self._tokens or self._pooling is Pooling.LAST:
            self._vector = list(vector)
        elif self._pooling is Pooling.MEAN:
            old, new = self._tokens / (self._tokens + tokens), tokens / (self._tokens + tokens)
            self._vector = [one * old + other * new for one, other in zip(self._vector, vector, strict=True)]
        self._tokens += tokens

    def packed(self, dimensions: int) -> bytes | None:
        """Its first dimensions, one long; None where the model computed nothing that has a direction."""
        kept = self._vector[:dimensions]
        length = math.hypot(*kept)
        if length == 0 or not math.isfinite(length):
            return None
        return struct.pack(f"<{len(kept)}f", *(value / length for value in kept))
