"""Waits under one timer, in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from shared.timing.bounded_waits import BoundedWait, BoundedWaits, wait_until_set
from tests.shared.timing.virtual_time import VirtualLoop, pass_time


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()


async def wait_for_ever() -> None:
    await asyncio.Event().wait()


def test_a_wait_that_takes_too_long_is_ended_at_any_position(loop: VirtualLoop) -> None:
    async def work() -> None:
        waits = BoundedWaits(5)
        for _ in range(100):
            with waits:
                await pass_time(1)
        assert not waits.expired
        for _ in range(2):
            # Each wait has its full time, and no more.
            began = loop.time()
            with pytest.raises(TimeoutError), waits:
                await wait_for_ever()
            assert loop.time() - began == pytest.approx(5)
            assert waits.expired
        with waits:
            await pass_time(4)
        assert not waits.expired
        waits.close()

    loop.run_until_complete(work())


def test_time_between_two_waits_does_not_count(loop: VirtualLoop) -> None:
    async def work() -> None:
        waits = BoundedWaits(3)
        for _ in range(3):
            with waits:
                await pass_time(2)
            await pass_time(50)
        waits.close()

    loop.run_until_complete(work())


async def wait_in(waits: BoundedWaits, wait: Callable[[], Awaitable[None]] = wait_for_ever) -> None:
    with waits:
        await wait()


def test_another_cancellation_stays_a_cancellation(loop: VirtualLoop) -> None:
    async def work() -> None:
        task = asyncio.create_task(wait_in(BoundedWait(30)))
        await pass_time(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    loop.run_until_complete(work())


def test_a_cancellation_wins_over_a_timeout(loop: VirtualLoop) -> None:
    async def work() -> None:
        task = asyncio.create_task(wait_in(BoundedWait(20)))
        await pass_time(0)
        loop.call_at(20, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    loop.run_until_complete(work())


def test_errors_of_the_awaited_call_pass_through(loop: VirtualLoop) -> None:
    async def fail() -> None:
        raise TimeoutError("its own")

    async def work() -> None:
        wait = BoundedWait(30)
        with pytest.raises(TimeoutError, match="its own"):
            await wait_in(wait, fail)
        assert not wait.expired

    loop.run_until_complete(work())


def test_one_wait_leaves_no_timer_behind(loop: VirtualLoop) -> None:
    async def work() -> None:
        wait = BoundedWait(20)
        with pytest.raises(TimeoutError):
            await wait_in(wait)
        assert wait.timer is None
        with wait:
            await pass_time(0)
        assert wait.timer is None

    loop.run_until_complete(work())


def test_waiting_for_an_event_ends_with_the_event_or_the_time(loop: VirtualLoop) -> None:
    async def work() -> None:
        event = asyncio.Event()
        assert not await wait_until_set(event, 5)
        assert loop.time() == 5
        loop.call_later(1, event.set)
        assert await wait_until_set(event, 5)
        assert loop.time() == 6

    loop.run_until_complete(work())
