"""Make many calls of one function: one by one, many at once, for some seconds, or at even intervals. Every load is one of these."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from bench import report

Call = Callable[[], Awaitable[object]]

WARM_UP, ONE_BY_ONE = 300, 2000
IN_FLIGHT, EACH = 32, 300


async def seconds_of(call: Call) -> float:
    start = time.perf_counter()
    await call()
    return time.perf_counter() - start


async def one_by_one(call: Call) -> list[float]:
    """Return the microseconds of each call."""
    for _ in range(WARM_UP):
        await call()
    return [1e6 * await seconds_of(call) for _ in range(ONE_BY_ONE)]


async def keep_running(call: Call, at_once: int, goes_on: Callable[[], bool]) -> float:
    """Keep this many calls running as long as ``goes_on`` says so. Return the seconds until the last one has ended."""

    async def caller() -> None:
        while goes_on():
            await call()

    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(caller())
    return time.perf_counter() - start


async def figures_of(call: Call) -> dict[str, float]:
    """Return the microseconds of a call, and the calls a second with some in flight."""
    took = await one_by_one(call)
    left = iter(range(IN_FLIGHT * EACH))
    seconds = await keep_running(call, IN_FLIGHT, lambda: next(left, None) is not None)
    return {"p50": report.percentile(took, 0.5), "p99": report.percentile(took, 0.99), "rate": IN_FLIGHT * EACH / seconds}


async def for_seconds(call: Call, at_once: int, seconds: float) -> float:
    """Return the calls a second."""
    ended = 0

    async def counted() -> None:
        nonlocal ended
        await call()
        ended += 1

    ends_at = time.perf_counter() + seconds
    lasted = await keep_running(counted, at_once, lambda: time.perf_counter() < ends_at)
    return ended / lasted


async def spread(call: Callable[[], Coroutine[Any, Any, None]], count: int, seconds: float) -> None:
    """Start ``count`` calls within some seconds, however long each takes, and wait for all of them."""
    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            delay = start + number * seconds / count - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            tasks.create_task(call())
