"""Repeated work."""

import asyncio

import pytest

from shared import errors
from shared.node.lifecycle import every
from tests.stopwatch import HANG_SECONDS


async def test_a_rare_job_runs_soon_after_the_start() -> None:
    done = asyncio.Event()

    async def work() -> None:
        done.set()

    async with asyncio.timeout(HANG_SECONDS), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(every(3600, work, first=0))
        await done.wait()
        running.cancel()


async def test_without_a_first_delay_a_job_waits_its_interval() -> None:
    times = 0

    async def work() -> None:
        nonlocal times
        times += 1

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await every(3600, work)
    assert times == 0


async def test_an_outage_does_not_end_the_loop() -> None:
    times, enough = 0, asyncio.Event()

    async def work() -> None:
        nonlocal times
        times += 1
        if times == 3:
            enough.set()
        raise errors.Unavailable("PostgreSQL does not answer")

    async with asyncio.timeout(HANG_SECONDS), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(every(0, work))
        await enough.wait()
        running.cancel()
