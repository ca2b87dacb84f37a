"""Start other processes of a bench, and read what processes use of processor and memory."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psutil

from stack.processes import stop

#: For figures in MiB, from MB.
MIB = 1024**2 / 1e6
START_SECONDS = 120.0
STOP_SECONDS = 5.0


def spent_ms(pid: int) -> float:
    """Return the processor time since the process began, user and kernel together."""
    return 1000 * sum(psutil.Process(pid).cpu_times()[:2])


def resident_mb(pid: int | None = None) -> float:
    """Return the resident set (RSS), by default of this process."""
    return float(psutil.Process(pid).memory_info().rss) / 1e6


def children_of(pid: int) -> dict[int, str]:
    """Return the command of each child."""
    return {child.pid: " ".join(child.cmdline()) for child in psutil.Process(pid).children()}


@asynccontextmanager
async def watching_memory(pid: int, every_seconds: float) -> AsyncIterator[list[float]]:
    """Collect the resident set in MB until the block ends."""
    readings = [resident_mb(pid)]

    async def watch() -> None:
        while True:
            await asyncio.sleep(every_seconds)
            readings.append(resident_mb(pid))

    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch())
        yield readings
        watching.cancel()


def others_seconds() -> float:
    """Return the processor time that the machine has spent on all but this process and its ended children."""
    times = psutil.cpu_times()
    # The last two are part of others.
    return sum(times[:8]) - times.idle - times.iowait - sum(os.times()[:4])


@dataclass(frozen=True, slots=True)
class Other:
    """A process that writes a line of JSON when it is ready, and one for each line that it reads."""

    process: asyncio.subprocess.Process
    #: What it wrote when it was ready.
    ready: dict[str, float]

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    async def ask(self) -> dict[str, float]:
        self.send()
        return await _hear(self.process)


async def _hear(process: asyncio.subprocess.Process) -> dict[str, float]:
    assert process.stdout is not None
    async with asyncio.timeout(START_SECONDS):
        line = await process.stdout.readline()
    assert line, "the other process ended"
    found: dict[str, float] = json.loads(line)
    return found


@asynccontextmanager
async def started(*words: object, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program until the block ends, and end it by force if it does not react."""
    process = await asyncio.create_subprocess_exec(*map(str, words), **options)
    try:
        yield process
    finally:
        await stop(process, signal.SIGTERM, STOP_SECONDS)


@asynccontextmanager
async def other(*words: object, environment: Mapping[str, str] | None = None) -> AsyncIterator[Other]:
    """Run a program that says when it is ready."""
    pipe = asyncio.subprocess.PIPE
    async with started(*words, stdin=pipe, stdout=pipe, env={**os.environ, **(environment or {})}) as process:
        yield Other(process, await _hear(process))


def serving(bench: str, *arguments: object) -> AbstractAsyncContextManager[Other]:
    """Run `python -m bench.NAME --serve ARGUMENTS`."""
    return other(sys.executable, "-m", f"bench.{bench}", "--serve", *arguments)


async def serve_until_stdin_ends(**ready: float) -> None:
    """Tell `other` that this process is ready, and wait for its end."""
    print(json.dumps(ready), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
