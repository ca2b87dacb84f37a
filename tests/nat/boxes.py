"""Machines on which a user types `aicli`: each has its own home folder, the package, and nothing else.

Output goes to files: a worker's lines are read while it runs, and a pipe that no one reads would block it.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests import stopwatch
from tests.nat.topology import Machine
from tests.stacks import REPOSITORY, Outcome, outcome_of

#: Only guards against hanging.
COMMAND_SECONDS = 120.0


@dataclass(slots=True)
class Running:
    """An `aicli` that keeps running."""

    process: asyncio.subprocess.Process
    output: Path

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    async def says(self, words: str, *, seconds: float) -> None:
        """Wait until the output contains these words."""
        deadline = stopwatch.now() + seconds
        while words not in self.text():
            assert self.process.returncode is None, f"ended with {self.process.returncode} before it said {words!r}:\n{self.text()}"
            assert stopwatch.now() < deadline, f"did not say {words!r} within {seconds} s:\n{self.text()}"
            await asyncio.sleep(0.02)

    async def kill(self) -> None:
        """Kill the process with SIGKILL; its children have to notice."""
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


@dataclass(slots=True)
class Box:
    machine: Machine
    home: Path
    #: Added to the variables that every shell has.
    variables: dict[str, str]
    _started: int = 0

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        # Without proxies: every mesh of these tests has made-up addresses, which a proxy of this machine would not know.
        return {**kept, "HOME": str(self.home), "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1", **self.variables}

    def _words(self, arguments: tuple[str, ...]) -> tuple[str, ...]:
        return (sys.executable, "-m", "cli.main", *arguments)

    async def aicli(self, *arguments: str, stdin: str = "", deadline_seconds: float = COMMAND_SECONDS) -> Outcome:
        """Run `aicli` to its end, as a user would."""
        pipe = asyncio.subprocess.PIPE
        process = await self.machine.start(*self._words(arguments), environment=self._environment(), stderr=pipe)
        return await outcome_of(process, stdin, seconds=deadline_seconds)

    async def start(self, *arguments: str) -> Running:
        """Start `aicli` in the background; ``says`` waits for a line."""
        self._started += 1
        output = self.home / f"output-{self._started}"
        with output.open("wb") as file:
            process = await self.machine.start(
                *self._words(arguments), environment=self._environment(), stdin=asyncio.subprocess.DEVNULL, stdout=file, stderr=file
            )
        return Running(process, output)


@asynccontextmanager
async def box(machine: Machine, **variables: str) -> AsyncIterator[Box]:
    """Create a user's account on that machine; its processes and files are removed at the end."""
    with tempfile.TemporaryDirectory(prefix="aimesh-box-", ignore_cleanup_errors=True) as folder:
        try:
            yield Box(machine, Path(folder), variables)
        finally:
            await machine.kill_all()


@asynccontextmanager
async def house(machine: Machine, **variables: str) -> AsyncIterator[Box]:
    """Run the services on that machine, with `aicli stack up`."""
    # A stack that is configured with DHT nodes elsewhere runs none, so it needs no address for them.
    own = {} if variables.keys() & {"DHT_BOOTSTRAP", "DHT_HOST", "LAN"} else {"DHT_HOST": machine.address}
    async with box(machine, **own, **variables) as made:
        made.variables["AIMESH_HOME"] = str(made.home / "aimesh")
        up = await made.aicli("stack", "up", deadline_seconds=250)
        try:
            assert up.status == 0, up.out + up.err
            yield made
        finally:
            await made.aicli("stack", "down")
