import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as some

from services.inference.supervision.engine_calls import EngineLock, EngineTurn


class LockUser:
    """Waits for a turn, records it, and keeps it until released."""

    def __init__(self, turns: EngineLock, *, alone: bool) -> None:
        self.alone = alone
        self.turn: EngineTurn | None = None
        self.is_over = False
        self._turns = turns
        self._go = asyncio.Event()
        self.task = asyncio.ensure_future(self._visit())

    @property
    def is_in(self) -> bool:
        return self.turn is not None and not self.is_over

    async def _visit(self) -> None:
        try:
            async with self._turns.entered(alone=self.alone) as self.turn:
                await self._go.wait()
        finally:
            self.is_over = True

    async def leave(self) -> None:
        self._go.set()
        await self.task

    async def give_up(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


async def settled() -> None:
    """Run everything that can run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_shared_turns_run_together() -> None:
    turns = EngineLock()
    visitors = [LockUser(turns, alone=False) for _ in range(3)]
    await settled()
    assert all(one.is_in for one in visitors)
    for one in visitors:
        await one.leave()


async def test_exclusive_turn_waits_for_all_and_delays_later_ones() -> None:
    turns = EngineLock()
    first, second = LockUser(turns, alone=False), LockUser(turns, alone=False)
    await settled()
    alone, later = LockUser(turns, alone=True), LockUser(turns, alone=False)
    await first.leave()
    await settled()
    assert (alone.is_in, later.is_in) == (False, False)
    await second.leave()
    await settled()
    assert (alone.is_in, later.is_in) == (True, False)
    await alone.leave()
    await settled()
    assert later.is_in
    await later.leave()


async def test_turn_can_end_before_its_block() -> None:
    turns = EngineLock()
    first = LockUser(turns, alone=True)
    await settled()
    second = LockUser(turns, alone=True)
    await settled()
    assert first.turn is not None
    first.turn.leave()
    await settled()
    assert second.is_in
    await first.leave()
    third = LockUser(turns, alone=False)
    await settled()
    assert not third.is_in, "leaving twice gave nobody's turn away"
    await second.leave()
    await third.leave()


@pytest.mark.parametrize("alone", [False, True])
async def test_canceled_waiter_delays_nobody(alone: bool) -> None:
    turns = EngineLock()
    first = LockUser(turns, alone=not alone)
    await settled()
    waiting, behind = LockUser(turns, alone=True), LockUser(turns, alone=False)
    await settled()
    await waiting.give_up()
    await settled()
    assert behind.is_in is (not first.alone)
    await first.leave()
    await settled()
    assert behind.is_in
    await behind.leave()


async def test_waiter_canceled_while_admitted_releases_its_turn() -> None:
    turns = EngineLock()
    first = LockUser(turns, alone=True)
    await settled()
    unlucky, next_one = LockUser(turns, alone=True), LockUser(turns, alone=True)
    await settled()
    assert first.turn is not None
    first.turn.leave()
    # The second user has been admitted, but has not run since.
    await unlucky.give_up()
    await settled()
    assert next_one.is_in
    await first.leave()
    await next_one.leave()


@given(some.lists(some.tuples(some.sampled_from(["together", "alone", "leave", "give up"]), some.integers(0, 7)), max_size=40))
def test_exclusive_turns_are_alone_and_no_turn_waits_needlessly(steps: list[tuple[str, int]]) -> None:
    asyncio.run(_live_through(steps))


async def _live_through(steps: list[tuple[str, int]]) -> None:
    turns = EngineLock()
    visitors: list[LockUser] = []
    for what, which in steps:
        match what:
            case "together" | "alone":
                visitors.append(LockUser(turns, alone=what == "alone"))
            case "leave" if inside := [one for one in visitors if one.is_in]:
                await inside[which % len(inside)].leave()
            case "give up" if here := [one for one in visitors if not one.task.done()]:
                await here[which % len(here)].give_up()
        await settled()
        inside = [one for one in visitors if one.is_in]
        assert len(inside) == 1 or not any(one.alone for one in inside)
        waiting = [one for one in visitors if one.turn is None and not one.is_over]
        assert inside or not waiting, "the engine is free and somebody waits"
    for one in _to_the_end(visitors):
        await one.leave()
        await settled()
    assert all(one.is_over for one in visitors)


def _to_the_end(visitors: list[LockUser]) -> Iterator[LockUser]:
    while inside := [one for one in visitors if one.is_in]:
        yield inside[0]
