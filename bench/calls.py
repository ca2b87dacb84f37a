"""Time many calls of one function: one after another, many at once, or for some seconds."""

import asyncio
import time
from collections.abc import Awaitable, Callable

Call = Callable[[], Awaitable[object]]

WARM_UP, ONE_BY_ONE = 300, 2000


async def one_by_one(call: Call) -> list[float]:
    """Return the microseconds of each call."""
    for _ in range(WARM_UP):
        await call()
    return [1e6 * await seconds_of(call) for _ in range(ONE_BY_ONE)]


async def seconds_of(call: Call) -> float:
    start = time.perf_counter()
    await call()
    return time.perf_counter() - start


async def many_at_once(call: Call, at_once: int, each: int) -> float:
    """Return the calls a second."""

    async def caller() -> None:
        for _ in range(each):
            await call()

    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(caller())
    return at_once * each / (time.perf_counter() - start)


async def for_seconds(call: Call, at_once: int, seconds: float) -> tuple[float, list[float]]:
    """Return the calls a second, and the seconds that each took."""
    took: list[float] = []
    began = time.perf_counter()

    async def caller() -> None:
        while time.perf_counter() < began + seconds:
            took.append(await seconds_of(call))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(caller())
    return len(took) / (time.perf_counter() - began), took
