import asyncio

import pytest

from shared import errors
from shared.turns import Turns

NEVER = 60.0


async def test_a_few_at_a_time_and_the_others_in_order() -> None:
    turns = Turns(2, seconds=NEVER, refusal="full")
    running: list[int] = []
    gates = [asyncio.Event() for _ in range(5)]
    most = 0

    async def work(number: int) -> None:
        nonlocal most
        async with turns.take():
            running.append(number)
            most = max(most, sum(not gate.is_set() for gate in (gates[each] for each in running)))
            await gates[number].wait()

    async with asyncio.TaskGroup() as tasks:
        for number in range(5):
            tasks.create_task(work(number))
        for number in range(5):
            await asyncio.sleep(0)
            assert running == list(range(min(5, number + 2)))
            gates[number].set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    assert most == 2


async def test_who_waits_too_long_is_told_so_and_takes_no_turn() -> None:
    turns = Turns(1, seconds=0.01, refusal="too many at once")
    async with turns.take():
        with pytest.raises(errors.Overloaded, match="too many at once") as refused:
            async with turns.take():
                pytest.fail("there was no turn to take")
    assert refused.value.retry_after_seconds == 5
    async with turns.take():
        pass


async def test_who_fails_or_leaves_gives_the_turn_back() -> None:
    turns = Turns(1, seconds=NEVER, refusal="full")
    with pytest.raises(ZeroDivisionError):
        async with turns.take():
            raise ZeroDivisionError
    async with turns.take():
        leaving = asyncio.create_task(turns.take().__aenter__())
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait((leaving,))
    async with asyncio.timeout(10), turns.take():
        pass
