import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as some

from services.inference.supervision.engine_lock import EngineLock, EngineTurn


class Visitor:
    """Wants a turn, notes that it has it, and keeps it until told to go."""

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
    """Whoever can go on has done so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_many_are_in_together() -> None:
    turns = EngineLock()
    visitors = [Visitor(turns, alone=False) for _ in range(3)]
    await settled()
    assert all(one.is_in for one in visitors)
    for one in visitors:
        await one.leave()


async def test_who_is_to_be_alone_waits_for_all_and_holds_up_the_rest() -> None:
    turns = EngineLock()
    first, second = Visitor(turns, alone=False), Visitor(turns, alone=False)
    await settled()
    alone, later = Visitor(turns, alone=True), Visitor(turns, alone=False)
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


async def test_a_turn_can_end_before_its_block() -> None:
    turns = EngineLock()
    first = Visitor(turns, alone=True)
    await settled()
    second = Visitor(turns, alone=True)
    await settled()
    assert first.turn is not None
    first.turn.leave()
    await settled()
    assert second.is_in
    await first.leave()
    third = Visitor(turns, alone=False)
    await settled()
    assert not third.is_in, "leaving twice gave nobody's turn away"
    await second.leave()
    await third.leave()


@pytest.mark.parametrize("alone", [False, True])
async def test_who_gives_up_in_the_line_holds_up_nobody(alone: bool) -> None:
    turns = EngineLock()
    first = Visitor(turns, alone=not alone)
    await settled()
    waiting, behind = Visitor(turns, alone=True), Visitor(turns, alone=False)
    await settled()
    await waiting.give_up()
    await settled()
    assert behind.is_in is (not first.alone)
    await first.leave()
    await settled()
    assert behind.is_in
    await behind.leave()


async def test_who_gives_up_in_the_moment_of_being_let_in_gives_the_turn_back() -> None:
    turns = EngineLock()
    first = Visitor(turns, alone=True)
    await settled()
    unlucky, next_one = Visitor(turns, alone=True), Visitor(turns, alone=True)
    await settled()
    assert first.turn is not None
    first.turn.leave()
    # It has been let in and does not know it yet.
    await unlucky.give_up()
    await settled()
    assert next_one.is_in
    await first.leave()
    await next_one.leave()


@given(some.lists(some.tuples(some.sampled_from(["together", "alone", "leave", "give up"]), some.integers(0, 7)), max_size=40))
def test_nobody_alone_has_company_and_nobody_waits_for_nothing(story: list[tuple[str, int]]) -> None:
    asyncio.run(_live_through(story))


async def _live_through(story: list[tuple[str, int]]) -> None:
    turns = EngineLock()
    visitors: list[Visitor] = []
    for what, which in story:
        match what:
            case "together" | "alone":
                visitors.append(Visitor(turns, alone=what == "alone"))
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


def _to_the_end(visitors: list[Visitor]) -> Iterator[Visitor]:
    while inside := [one for one in visitors if one.is_in]:
        yield inside[0]
