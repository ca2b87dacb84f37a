"""Where the reading of each node's latest goes on: its spans, or its lines of log."""

from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from shared import errors
from shared.telemetry.ring_buffer import RingReading
from shared.types import NodeId

_MOST_NODES: Final = 2_000

T = TypeVar("T")


class ReadPositions(Generic[T]):
    def __init__(self, *, page: int, most_readings: int) -> None:
        """A reading of fewer than ``page`` was the last. A node that has more than so many readings tells the rest in the next round."""
        self._page = page
        self._most_readings = most_readings
        #: 0 where a node was not read before.
        self._after: dict[NodeId, int] = {}

    async def read(self, node: NodeId, ask: Callable[[int], Awaitable[RingReading[T]]]) -> RingReading[T]:
        """All that is new there, as far as it answers; ``ask`` reads from a number on."""
        if node not in self._after and len(self._after) >= _MOST_NODES:
            # Those that are still there tell what they have once more.
            self._after.clear()
        items: list[T] = []
        lost = 0
        for _ in range(self._most_readings):
            try:
                found = await ask(self._after.get(node, 0))
            except errors.AimeshError:
                # Its health says so, and the rest waits there.
                break
            self._after[node] = found.next
            items += found.items
            lost += max(0, found.lost)
            if len(found.items) < self._page:
                break
        return RingReading(tuple(items), self._after.get(node, 0), lost)
