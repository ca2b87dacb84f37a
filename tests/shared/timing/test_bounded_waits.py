"""Waits under one timer."""

import asyncio
import time

import pytest

from shared.timing.bounded_waits import BoundedWait, BoundedWaits


async def test_a_wait_that_takes_too_long_is_ended_wherever_it_stands_in_the_row() -> None:
    waits = BoundedWaits(0.05)
    for _ in range(100):
        with waits:
            await asyncio.sleep(0.001)
    began = time.monotonic()
    with pytest.raises(TimeoutError), waits:
        await asyncio.Event().wait()
    assert time.monotonic() - began > 0.04
    # And the next has its whole time again.
    with waits:
        await asyncio.sleep(0.02)
    with pytest.raises(TimeoutError), waits:
        await asyncio.Event().wait()
    waits.close()


async def test_time_between_two_waits_is_not_counted() -> None:
    waits = BoundedWaits(0.03)
    for _ in range(3):
        with waits:
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
    waits.close()


async def test_a_cancel_of_somebody_else_stays_one() -> None:
    async def work(waits: BoundedWaits) -> None:
        with waits:
            await asyncio.Event().wait()

    task = asyncio.create_task(work(BoundedWaits(30)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_where_both_want_it_the_cancel_wins() -> None:
    async def work(waits: BoundedWaits) -> None:
        with waits:
            await asyncio.Event().wait()

    waits = BoundedWaits(0.02)
    task = asyncio.create_task(work(waits))
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0)
    loop.call_at(waits._timer.when(), task.cancel)  # type: ignore[union-attr]  # in the very same turn of the loop
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_errors_of_what_is_waited_for_pass_through() -> None:
    waits = BoundedWaits(30)
    with pytest.raises(ZeroDivisionError), waits:
        raise ZeroDivisionError
    waits.close()


async def test_one_wait_leaves_no_timer_behind() -> None:
    wait = BoundedWait(0.02)
    with pytest.raises(TimeoutError), wait:
        await asyncio.Event().wait()
    assert wait._timer is None
    with wait:
        await asyncio.sleep(0)
    assert wait._timer is None
