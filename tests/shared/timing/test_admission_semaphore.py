import asyncio

import pytest

from shared import errors
from shared.timing.admission_semaphore import AdmissionSemaphore

NEVER = 60.0


async def test_a_few_run_at_a_time_and_the_others_in_order() -> None:
    turns = AdmissionSemaphore(2, of_one=2, seconds=NEVER, refusal="full")
    running: list[int] = []
    gates = [asyncio.Event() for _ in range(5)]
    most = 0

    async def work(number: int) -> None:
        nonlocal most
        async with turns.take("ada"):
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


async def test_a_caller_that_waits_too_long_is_refused_without_a_slot() -> None:
    turns = AdmissionSemaphore(1, of_one=1, seconds=0.01, refusal="too many at once")
    async with turns.take("ada"):
        with pytest.raises(errors.Limited, match="too many at once") as refused:
            async with turns.take("ada"):
                pytest.fail("there was no turn to take")
    assert refused.value.retry_after_seconds == 5
    async with turns.take("ada"):
        pass


async def test_a_failed_or_canceled_caller_releases_its_slot() -> None:
    turns = AdmissionSemaphore(1, of_one=1, seconds=NEVER, refusal="full")
    with pytest.raises(ZeroDivisionError):
        async with turns.take("ada"):
            raise ZeroDivisionError
    async with turns.take("ada"):
        leaving = asyncio.create_task(turns.take("ada").__aenter__())
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait((leaving,))
    async with asyncio.timeout(30), turns.take("ada"):
        pass


async def test_an_owner_holds_no_more_than_its_share_and_others_pass_its_queue() -> None:
    turns = AdmissionSemaphore(3, of_one=2, seconds=NEVER, refusal="full")
    order: list[str] = []
    gate = asyncio.Event()

    async def work(owner: str) -> None:
        async with turns.take(owner):
            order.append(owner)
            await gate.wait()

    async with asyncio.TaskGroup() as tasks:
        for owner in ("ada", "ada", "ada", "ada", "bob", "cleo"):
            tasks.create_task(work(owner))
            await asyncio.sleep(0)
        assert order == ["ada", "ada", "bob"]
        gate.set()
    assert order == ["ada", "ada", "bob", "ada", "cleo", "ada"]


async def test_a_waiter_canceled_as_it_gets_the_slot_passes_it_on() -> None:
    turns = AdmissionSemaphore(1, of_one=1, seconds=NEVER, refusal="full")
    async with asyncio.timeout(30):
        async with turns.take("ada"):
            leaving = asyncio.create_task(turns.take("bob").__aenter__())
            staying = asyncio.create_task(turns.take("cleo").__aenter__())
            await asyncio.sleep(0)
            # Cancel bob before ada's slot passes to it, and before its task runs.
            leaving.cancel()
        await staying
    assert leaving.cancelled()
