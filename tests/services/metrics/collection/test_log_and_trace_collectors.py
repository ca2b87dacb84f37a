"""Reading continues where the last reading of a node ended."""

import pytest

from services.metrics.collection import log_and_trace_collectors
from services.metrics.collection.log_and_trace_collectors import ReadPositions
from shared import errors
from shared.telemetry.ring_buffer import RingBuffer, RingReading
from shared.types import NodeId

HERE = NodeId("U" + "HERE" + "A" * 51)


class Node:
    """Has a ring buffer of 20, and returns 3 items at a time."""

    def __init__(self) -> None:
        self.ring: RingBuffer[int] = RingBuffer(20)
        self.answers = 100

    async def fetch(self, after: int) -> RingReading[int]:
        self.answers -= 1
        if self.answers < 0:
            raise errors.LinkLost("gone")
        return self.ring.read(after, 3)


async def test_new_items_are_read_once_and_in_order() -> None:
    node, marks = Node(), ReadPositions[int](page=3, most_readings=5)
    node.ring.add(range(7))
    assert (await marks.read(HERE, node.fetch)).items == tuple(range(7))
    assert (await marks.read(HERE, node.fetch)).items == ()
    node.ring.add(range(7, 9))
    assert (await marks.read(HERE, node.fetch)).items == (7, 8)


async def test_large_backlog_is_read_over_several_rounds() -> None:
    node, marks = Node(), ReadPositions[int](page=3, most_readings=2)
    node.ring.add(range(10))
    assert (await marks.read(HERE, node.fetch)).items == tuple(range(6))
    assert (await marks.read(HERE, node.fetch)).items == tuple(range(6, 10))


async def test_overwritten_items_are_counted() -> None:
    node, marks = Node(), ReadPositions[int](page=3, most_readings=100)
    node.ring.add(range(2))
    await marks.read(HERE, node.fetch)
    node.ring.add(range(2, 50))
    found = await marks.read(HERE, node.fetch)
    assert (found.items, found.lost) == (tuple(range(30, 50)), 28)


async def test_items_read_before_a_failure_are_kept_and_the_rest_is_read_later() -> None:
    node, marks = Node(), ReadPositions[int](page=3, most_readings=5)
    node.ring.add(range(8))
    node.answers = 1
    assert (await marks.read(HERE, node.fetch)).items == (0, 1, 2)
    node.answers = 100
    assert (await marks.read(HERE, node.fetch)).items == tuple(range(3, 8))


async def test_memory_is_bounded_with_ever_new_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_and_trace_collectors, "_MAX_NODES", 3)
    node, marks = Node(), ReadPositions[int](page=3, most_readings=5)
    node.ring.add(range(2))
    for number in range(10):
        assert (await marks.read(NodeId(f"U{number:055}"), node.fetch)).items == (0, 1)
        assert len(marks._after) <= 3
