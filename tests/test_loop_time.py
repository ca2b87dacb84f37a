"""The measurement of the event loop's callbacks."""

import asyncio
import time

import pytest

from tests import loop_time


def _work(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


async def _slow_step() -> None:
    with loop_time.subject("a large body"):
        await asyncio.sleep(0)
        _work(0.03)
        await asyncio.sleep(0)


async def test_a_slow_callback_is_named_with_its_subject() -> None:
    with loop_time.measured() as callbacks:
        await asyncio.gather(*(asyncio.create_task(_slow_step()) for _ in range(2)))
    assert [callback.name for callback in callbacks.slowest[:2]] == ["_slow_step"] * 2
    with pytest.raises(AssertionError, match=r"held the event loop for 20 ms or longer: \d+ ms for a large body in _slow_step; \d+ ms"):
        callbacks.ensure_below(0.02)


async def test_all_callbacks_of_a_turn_count_together() -> None:
    with loop_time.measured() as callbacks:
        await asyncio.gather(*(asyncio.create_task(_slow_step()) for _ in range(3)))
    callbacks.ensure_below(0.085)
    assert callbacks.longest_turn_seconds > 0.085


async def test_a_task_inherits_the_subject() -> None:
    async def child() -> None:
        _work(0.03)

    with loop_time.measured() as callbacks:
        with loop_time.subject("a parent"):
            task = asyncio.create_task(child())
        await task
    assert callbacks.slowest[0].subject == "a parent"


async def test_waiting_and_other_threads_do_not_count() -> None:
    with loop_time.measured() as callbacks:
        await asyncio.to_thread(_work, 0.03)
        asyncio.get_running_loop().call_soon(time.sleep, 0.03)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert callbacks.count >= 3
    callbacks.ensure_below(0.02)


async def test_a_block_without_callbacks_measures_nothing() -> None:
    with loop_time.measured() as callbacks:
        _work(0.001)
    with pytest.raises(AssertionError, match="no callback"):
        callbacks.ensure_below(1)


async def test_only_the_slowest_callbacks_are_kept() -> None:
    with loop_time.measured() as callbacks:
        for _ in range(100):
            await asyncio.sleep(0)
    # The first part of the test ran before, and the last one still runs.
    assert callbacks.count == 99
    assert len(callbacks.slowest) == 10
    assert callbacks.slowest == sorted(callbacks.slowest, reverse=True)
