"""Batching of refusals: equal ones are combined, the number kept is bounded, and none is lost without being counted."""

import pytest

from services.auth.audit.refusal_batching import BATCH_SECONDS, RefusalBatching
from shared.api.audit import AuditedAct
from tests.services.auth.audit.deeds import refusal


def taken(batching: RefusalBatching, now: float, most: int = 100, *, all_of_them: bool = False) -> list[tuple[str, int]]:
    return [(act.request_id or act.action, act.times) for act in batching.take(most, now, all_of_them=all_of_them)]


def test_the_first_refusal_is_written_immediately_and_equal_ones_once_a_minute() -> None:
    batching = RefusalBatching()
    for number in range(5):
        batching.add(refusal(number), now=number)
    assert taken(batching, now=5) == [("r0", 1)]
    assert taken(batching, now=BATCH_SECONDS - 1) == []
    assert taken(batching, now=BATCH_SECONDS) == [("r1", 4)], "with the time and the request of the first of them"
    assert len(batching) == 0


def test_a_single_refusal_is_one_row() -> None:
    batching = RefusalBatching()
    batching.add(refusal(), now=0)
    assert taken(batching, now=0) == [("r0", 1)]
    assert taken(batching, now=BATCH_SECONDS) == []
    assert len(batching) == 0


@pytest.mark.parametrize("changed", [{"action": "x"}, {"actor": None}, {"tenant_id": None}, {"address": "::1"}, {"details": {"why": "x"}}])
def test_different_refusals_stay_separate(changed: dict[str, object]) -> None:
    batching = RefusalBatching()
    batching.add(refusal(1), now=0)
    batching.add(refusal(2, **changed), now=0)
    assert taken(batching, now=0) == [("r1", 1), ("r2", 1)]


def test_the_next_minute_starts_a_new_batch() -> None:
    batching = RefusalBatching()
    for number, now in enumerate((0, 1, BATCH_SECONDS, BATCH_SECONDS + 1)):
        batching.add(refusal(number), now=now)
    assert taken(batching, now=BATCH_SECONDS + 1) == [("r0", 1), ("r1", 1), ("r2", 1)]
    assert taken(batching, now=2 * BATCH_SECONDS) == [("r3", 1)]


def test_shutdown_does_not_wait_for_the_minute_to_end() -> None:
    batching = RefusalBatching()
    for number in range(5):
        batching.add(refusal(number), now=0)
    assert taken(batching, now=1, all_of_them=True) == [("r0", 1), ("r1", 4)]


def test_refusals_beyond_the_bound_are_counted_in_one_row() -> None:
    batching = RefusalBatching(most=10)
    for number in range(100):
        batching.add(refusal(number, target=str(number)), now=0)
        assert len(batching) <= 10
    # Each takes two of the ten places: one as a row to write, and one as a kind to compare with for a minute.
    assert [times for _, times in taken(batching, now=0)] == [1, 1, 1, 1, 1, 95]
    batching.add(refusal(7), now=BATCH_SECONDS)
    assert taken(batching, now=BATCH_SECONDS) == [("r7", 1)]


def test_refusals_that_could_not_be_written_come_first_next_time() -> None:
    batching = RefusalBatching()
    for number in range(3):
        batching.add(refusal(number, target=str(number)), now=0)
    first = batching.take(2, 0)
    batching.requeue(first)
    assert taken(batching, now=0) == [("r0", 1), ("r1", 1), ("r2", 1)]


def test_requeued_refusals_without_room_are_counted() -> None:
    batching = RefusalBatching(most=4)
    batching.add(refusal(0, target="0"), now=0)
    batching.add(refusal(1, target="1"), now=0)
    batch = batching.take(2, 0)
    assert len(batch) == 2
    batching.add(refusal(2, target="2"), now=0)
    batching.requeue([*batch, refusal(3, times=7)])
    assert len(batching) <= 4
    assert taken(batching, now=0) == [("r2", 1), ("audit.overflow", 9)]


def test_endless_refusals_use_bounded_memory() -> None:
    batching, total = RefusalBatching(), 0
    acts: list[AuditedAct] = []
    for number in range(20_000):
        batching.add(refusal(0, target=str(number)), now=number / 200)
    assert len(batching) <= 5000
    while batch := batching.take(200, 101, all_of_them=True):
        acts += batch
    total = sum(act.times for act in acts)
    assert (total, len(acts) <= 5001) == (20_000, True)
