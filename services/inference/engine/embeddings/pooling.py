"""Pools the vectors of a text's pieces into one.  Pure."""

import math
import struct
from collections.abc import Sequence
from enum import StrEnum


class Pooling(StrEnum):
    """Which tokens make up a text's vector; set in the model's file."""

    MEAN = "mean"
    FIRST = "first"
    LAST = "last"


class Pooled:
    """The vector of one text, assembled from pooled pieces."""

    def __init__(self, pooling: Pooling) -> None:
        self._pooling = pooling
        self._vector: list[float] = []
        self._tokens = 0

    def add(self, vector: Sequence[float], tokens: int) -> None:
        """Add the vector of the text's next piece, which has ``tokens`` tokens."""
        if not self._tokens or self._pooling is Pooling.LAST:
            self._vector = list(vector)
        elif self._pooling is Pooling.MEAN:
            old, new = self._tokens / (self._tokens + tokens), tokens / (self._tokens + tokens)
            self._vector = [one * old + other * new for one, other in zip(self._vector, vector, strict=True)]
        self._tokens += tokens

    def packed(self, dimensions: int) -> bytes | None:
        """Return the first ``dimensions`` numbers, normalized; None if the vector has no direction."""
        kept = self._vector[:dimensions]
        length = math.hypot(*kept)
        if length == 0 or not math.isfinite(length):
            return None
        return struct.pack(f"<{len(kept)}f", *(value / length for value in kept))
