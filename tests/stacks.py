"""A whole stack, as `aicli stack up` makes it: real servers and five service processes, in a folder and on ports of its own.

    async with stack(AIMESH_ECHO="1") as running:
        await running.aicli("infer", "hello")
        running.kill("gateway")
"""

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.testnet import free_port

REPOSITORY = Path(__file__).resolve().parent.parent
PORTS = (
    "AUTH_SERVICE_PORT",
    "GATEWAY_SERVICE_PORT",
    "INFERENCE_SERVICE_PORT",
    "METRICS_SERVICE_PORT",
    "WEB_SERVICE_PORT",
    "NATS_PORT",
    "PROMETHEUS_PORT",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command did."""

    status: int
    out: str
    err: str


class ProgramRow(msgspec.Struct, frozen=True):
    """What the tests need of a row of `aicli stack status --json`."""

    name: str
    state: str
    pid: int | None = None
    ready: bool = False


@dataclass(frozen=True, slots=True)
class RunningStack:
    home: Path
    environment: dict[str, str]

    async def aicli(self, *arguments: str, stdin: str = "", deadline_seconds: float = 60, **variables: str) -> Outcome:
        """Run `aicli` as a person would."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cli.main", *arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            cwd=REPOSITORY, env={**self.environment, **variables},
        )  # fmt: skip
        try:
            async with asyncio.timeout(deadline_seconds):
                out, err = await process.communicate(stdin.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return Outcome(process.returncode, out.decode(), err.decode())

    async def programs(self) -> dict[str, ProgramRow]:
        """What the supervisor runs, by name."""
        done = await self.aicli("stack", "status", "--json")
        return {row.name: row for row in msgspec.convert(json.loads(done.out), list[ProgramRow])}

    async def kill(self, name: str) -> int:
        """kill -9 of one program; returns the process id it had."""
        pid = (await self.programs())[name].pid
        assert pid is not None, f"{name} does not run"
        os.kill(pid, signal.SIGKILL)
        return pid

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self.environment[f'{service.upper()}_SERVICE_PORT']}"

    @property
    def api_key(self) -> str:
        """The admin's key."""
        import tomllib

        return str(tomllib.loads((self.home / "profile.toml").read_text(encoding="utf-8"))["api_key"])


def _environment(home: Path, variables: dict[str, str]) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    ports = {name: str(free_port()) for name in PORTS}
    return {**kept, **ports, "AIMESH_HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), **variables}


@asynccontextmanager
async def stack(**variables: str) -> AsyncIterator[RunningStack]:
    """Up, the block, down, and nothing left. Fails with the whole output when it does not come up."""
    home = Path(tempfile.mkdtemp(prefix="aimesh-stack-"))
    running = RunningStack(home, _environment(home, variables))
    try:
        up = await running.aicli("stack", "up", deadline_seconds=120)
        assert up.status == 0, up.out + up.err
        yield running
    finally:
        down = await running.aicli("stack", "down", deadline_seconds=60)
        shutil.rmtree(home, ignore_errors=True)
        assert down.status == 0, down.out + down.err
