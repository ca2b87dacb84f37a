"""Counts the work that runs at once, in total and per owner. Pure."""

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from shared import errors


class ConcurrencyLimit:
    """Callers check ``is_full`` and ``has_share`` before ``enter``, or let ``one_more`` do it. Each ``enter`` needs one ``leave``."""

    def __init__(self, most: int, most_of_one: int | None = None) -> None:
        self._most = most
        #: None: an owner may have all of them.
        self._most_of_one = most_of_one
        self._running: Counter[Hashable] = Counter()
        self._total = 0

    def __len__(self) -> int:
        return self._total

    @property
    def is_full(self) -> bool:
        return self._total >= self._most

    def has_share(self, owner: Hashable) -> bool:
        """Return whether this owner is below its own limit. None is an owner without one."""
        return owner is None or self._most_of_one is None or self._running[owner] < self._most_of_one

    def enter(self, owner: Hashable = None) -> None:
        self._total += 1
        self._running[owner] += 1

    def leave(self, owner: Hashable = None) -> None:
        self._total -= 1
        self._running[owner] -= 1
        if not self._running[owner]:
            del self._running[owner]

    @contextmanager
    def one_more(self, owner: Hashable, refusal: errors.AimeshError) -> Iterator[None]:
        """Count one until the block ends. Raises ``refusal`` above a limit."""
        if self.is_full or not self.has_share(owner):
            raise refusal
        self.enter(owner)
        try:
            yield
        finally:
            self.leave(owner)
