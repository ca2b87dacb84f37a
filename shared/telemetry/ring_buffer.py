"""Buffer items for a reader that polls. The oldest are dropped if nobody reads them."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RingReading(Generic[T]):
    items: tuple[T, ...]
    #: Pass this as ``after`` to the next ``read``.
    next: int
    #: How many items were overwritten unread.
    lost: int


class RingBuffer(Generic[T]):
    """A bounded buffer of numbered items."""

    def __init__(self, most: int) -> None:
        self._kept: deque[T] = deque(maxlen=most)
        self._next = 0

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, items: Iterable[T]) -> None:
        for item in items:
            self._kept.append(item)
            self._next += 1

    def read(self, after: int, most: int) -> RingReading[T]:
        """Return at most ``most`` items from number ``after`` on."""
        first = self._next - len(self._kept)
        # A number from before a restart is meaningless.
        start = first if after > self._next else max(after, first)
        found = tuple(islice(self._kept, start - first, start - first + most))
        return RingReading(found, start + len(found), 0 if after > self._next else start - after)
