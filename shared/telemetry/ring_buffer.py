"""The latest of what one process makes and another reads, now and then: where nobody reads, the oldest go."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RingReading(Generic[T]):
    items: tuple[T, ...]
    #: Where the next reading goes on.
    next: int
    #: Overwritten before this reader came for them.
    lost: int


class RingBuffer(Generic[T]):
    """Everything in it has a number, which says where a reader goes on."""

    def __init__(self, most: int) -> None:
        self._kept: deque[T] = deque(maxlen=most)
        #: The number of the next to come; those in ``_kept`` are the ones before it.
        self._next = 0

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, items: Iterable[T]) -> None:
        for item in items:
            self._kept.append(item)
            self._next += 1

    def read(self, after: int, most: int) -> RingReading[T]:
        """From number ``after`` on, at most so many."""
        first = self._next - len(self._kept)
        # A number of before a restart means nothing now.
        start = first if after > self._next else max(after, first)
        found = tuple(islice(self._kept, start - first, start - first + most))
        return RingReading(found, start + len(found), 0 if after > self._next else start - after)
