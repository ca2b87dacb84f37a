"""Remember how far the ring buffer of each node was read: its spans or its log lines."""

from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from shared import errors
from shared.telemetry.ring_buffer import RingReading
from shared.types import NodeId

_MOST_NODES: Final = 2_000

T = TypeVar("T")


class ReadPositions(Generic[T]):
    def __init__(self, *, page: int, most_readings: int) -> None:
        """A response with fewer than ``page`` items is the last. After ``most_readings`` calls, the rest waits for the next round."""
        self._page = page
        self._most_readings = most_readings
        self._after: dict[NodeId, int] = {}

    async def read(self, node: NodeId, fetch: Callable[[int], Awaitable[RingReading[T]]]) -> RingReading[T]:
        """Return the new items of a node, as far as it responds; ``fetch`` reads from a number on."""
        if node not in self._after and len(self._after) >= _MOST_NODES:
            # Known nodes are read from the start again.
            self._after.clear()
        items: list[T] = []
        lost = 0
        for _ in range(self._most_readings):
            try:
                found = await fetch(self._after.get(node, 0))
            except errors.AimeshError:
                # The health shows it, and the rest waits in the buffer.
                break
            self._after[node] = found.next
            items += found.items
            lost += max(0, found.lost)
            if len(found.items) < self._page:
                break
        return RingReading(tuple(items), self._after.get(node, 0), lost)
