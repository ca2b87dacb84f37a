"""Time many calls of one function: one after another, many at once, or for some seconds."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from bench import report

Call = Callable[[], Awaitable[object]]
#: Gets the number of its caller.
NumberedCall = Callable[[int], Awaitable[object]]

WARM_UP, ONE_BY_ONE = 300, 2000


async def one_by_one(call: Call) -> list[float]:
    """Return the microseconds of each call."""
    for _ in range(WARM_UP):
        await call()
    took = []
    for _ in range(ONE_BY_ONE):
        start = time.perf_counter()
        await call()
        took.append((time.perf_counter() - start) * 1e6)
    return took


async def many_at_once(call: Call, at_once: int, each: int) -> None:
    async def caller() -> None:
        for _ in range(each):
            await call()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(caller())


async def rate_of_many(call: Call, at_once: int, each: int) -> float:
    """Return the calls a second."""
    start = time.perf_counter()
    await many_at_once(call, at_once, each)
    return at_once * each / (time.perf_counter() - start)


async def for_seconds(call: NumberedCall, at_once: int, seconds: float) -> tuple[float, list[float]]:
    """Return the calls a second, and the seconds that each took."""
    took: list[float] = []
    began = time.perf_counter()

    async def caller(number: int) -> None:
        while (start := time.perf_counter()) < began + seconds:
            await call(number)
            took.append(time.perf_counter() - start)

    async with asyncio.TaskGroup() as tasks:
        for number in range(at_once):
            tasks.create_task(caller(number))
    return len(took) / (time.perf_counter() - began), took


async def seconds_of(call: Call) -> float:
    start = time.perf_counter()
    await call()
    return time.perf_counter() - start


@dataclass(slots=True)
class Figures:
    """One contender's figures, one for each round."""

    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    #: Calls a second with many at once.
    rate: list[float] = field(default_factory=list)
    #: Items or messages a second of a stream.
    stream: list[float] = field(default_factory=list)

    def add_latencies(self, took: list[float]) -> None:
        self.p50.append(report.percentile(took, 0.5))
        self.p99.append(report.percentile(took, 0.99))


def compare(
    claim: str,
    ours: list[float],
    unit: str,
    rival: str,
    theirs: list[float],
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> report.Row:
    """Compare the medians of all rounds."""
    return report.against(claim, statistics.median(ours), unit, rival, statistics.median(theirs), at_most=at_most, at_least=at_least)


def latency_rows(claim: str, took_seconds: list[float]) -> list[report.Row]:
    return [report.alone(f"{claim}: p{share}", 1000 * report.percentile(took_seconds, share / 100), "ms") for share in (50, 99)]
