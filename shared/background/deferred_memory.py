"""What a service without a table has put aside. It forgets that at a restart, and then tries each item once more."""

import time
from collections.abc import Callable, Sequence

from shared.timing.backoff import Backoff

_PAUSES = Backoff(first_seconds=10.0, longest_seconds=3600.0)
_MAX_ITEMS = 10_000


class DeferredMemory:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: Tries, and when the next one is due.
        self._items: dict[tuple[str, str], tuple[int, float]] = {}

    async def find_waiting(self, kind: str, ids: Sequence[str]) -> tuple[set[str], set[str]]:
        known = {each: self._items[kind, each][1] for each in ids if (kind, each) in self._items}
        waiting = {each for each, next_at in known.items() if next_at > self._clock()}
        return waiting, known.keys() - waiting

    async def take_due(self, kind: str) -> str | None:
        return next((each for (of, each), (_, next_at) in self._items.items() if of == kind and next_at <= self._clock()), None)

    async def defer(self, kind: str, item_id: str, error: str, max_tries: int) -> int:
        """Nobody can retry an item here, so it never rests."""
        tries = self._items.pop((kind, item_id), (0, 0.0))[0] + 1
        self._items[kind, item_id] = tries, self._clock() + _PAUSES.pause(tries)
        if len(self._items) > _MAX_ITEMS:
            del self._items[next(iter(self._items))]
        return min(tries, max_tries - 1)

    async def forget(self, kind: str, ids: Sequence[str]) -> None:
        for each in ids:
            self._items.pop((kind, each), None)

    async def count_stuck(self, money: Sequence[str]) -> dict[str, int]:
        return {}
