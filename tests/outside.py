"""Machines outside the house: a home folder each with no stack and no settings. `aicli` runs there, and workers live on there.

What a worker says goes to a file, because a pipe that nobody reads would stop it; and its process belongs to no event loop,
so that it may serve several tests.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cli import profile
from shared.node.client_node import ClientNode, ClientSettings, client
from shared.types import Credential
from tests.stacks import REPOSITORY, Outcome, RunningStack, until

#: From the command on: Python, the sidecar, a ticket used, and the gateway found; on two busy cores.
SERVING_SECONDS = 30.0


@dataclass(slots=True)
class Running:
    """An `aicli` that goes on."""

    process: subprocess.Popen[bytes]
    output: Path

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    async def says(self, words: str, *, seconds: float = SERVING_SECONDS) -> None:
        """Wait until its output has these words."""

        async def said() -> bool:
            text = self.text()
            assert words in text or self.process.poll() is None, f"ended with {self.process.returncode}:\n{text}"
            return words in text

        await until(said, seconds=seconds, what=f"it says {words!r}")

    def sidecar(self) -> int:
        """The process id of its Hyperswarm."""
        return sidecar_of(self.process.pid)

    def kill(self) -> None:
        """kill -9; its sidecar is left to find out."""
        self.process.kill()
        self.process.wait()

    def vanish(self) -> None:
        """It and its sidecar end in the same moment, as if a cable had been pulled: nobody is left to say goodbye."""
        sidecar = self.sidecar()
        self.process.send_signal(signal.SIGSTOP)
        os.kill(sidecar, signal.SIGKILL)
        self.kill()

    async def interrupt(self, *, seconds: float = 15) -> int:
        """SIGTERM, and what it ended with."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ended(seconds=seconds)

    async def ended(self, *, seconds: float = SERVING_SECONDS) -> int:
        """What it ended with."""

        async def is_over() -> bool:
            return self.process.poll() is not None

        await until(is_over, seconds=seconds, what="it ends")
        return int(self.process.returncode)


@dataclass(slots=True)
class Machine:
    """Made by ``machine``."""

    home: Path
    started: list[Running] = field(default_factory=list)

    @property
    def state(self) -> Path:
        """The folder of its worker."""
        return self.home / "worker"

    async def aicli(self, *arguments: str, stdin: str = "", deadline_seconds: float = 120, **variables: str) -> Outcome:
        """Run it to the end, as a person would."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *_words(arguments), stdin=pipe, stdout=pipe, stderr=pipe, cwd=self.home, env=self._environment(variables)
        )
        try:
            async with asyncio.timeout(deadline_seconds):
                out, err = await process.communicate(stdin.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return Outcome(process.returncode, out.decode(), err.decode())

    def start(self, *arguments: str, **variables: str) -> Running:
        """Start it and go on."""
        output = self.home / f"output-{len(self.started) + 1}"
        with output.open("wb") as file:
            process = subprocess.Popen(
                _words(arguments),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=self.home,
                env=self._environment(variables),
                start_new_session=True,
            )
        running = Running(process, output)
        self.started.append(running)
        return running

    def start_worker(self, *arguments: str, **variables: str) -> Running:
        """Its worker; with ``--join`` for the first time."""
        return self.start("worker", "--state", str(self.state), *arguments, **variables)

    async def connect(self, stack: RunningStack, key: Credential) -> None:
        """Make the default profile here, with a ticket of that house and somebody's key."""
        made = await self.aicli("mesh", "connect", await ticket(stack, "client"), "--api-key-stdin", stdin=f"{key}\n")
        assert made.status == 0, made.err

    def client(self) -> AbstractAsyncContextManager[ClientNode]:
        """A client node with the default profile, as `aicli` is one."""
        found = profile.read(self.home / ".config/aimesh/profiles/default.toml")
        return client(ClientSettings(mesh=found.mesh, nats_url=None, node_key_file=found.node_key_file, mesh_file=found.mesh_file))

    def _environment(self, variables: dict[str, str]) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return {**kept, "HOME": str(self.home), "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1", **variables}


def _words(arguments: tuple[str, ...]) -> tuple[str, ...]:
    return (sys.executable, "-m", "cli.main", *arguments)


@contextmanager
def machine() -> Iterator[Machine]:
    """Its processes and its files are gone at the end."""
    with tempfile.TemporaryDirectory(prefix="aimesh-outside-", ignore_cleanup_errors=True) as folder:
        found = Machine(Path(folder))
        try:
            yield found
        finally:
            for running in found.started:
                with suppress(ProcessLookupError):
                    os.killpg(running.process.pid, signal.SIGKILL)
                running.process.wait()


@asynccontextmanager
async def machines(count: int) -> AsyncIterator[list[Machine]]:
    from contextlib import ExitStack

    with ExitStack() as opened:
        yield [opened.enter_context(machine()) for _ in range(count)]


async def ticket(stack: RunningStack, role: str, *options: str) -> str:
    """A new one of that house."""
    made = await stack.aicli("admin", "tickets", "create", "--role", role, "--json", *options)
    return str(made.json()["ticket"])


def sidecar_of(pid: int) -> int:
    """The process id of a node's Hyperswarm."""
    (found,) = [child for child in children_of(pid) if b"sidecar/main.js" in _command(child)]
    return found


def children_of(pid: int) -> list[int]:
    """Whatever thread of it has started them."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that ended meanwhile
            found += [int(child) for child in (task / "children").read_text(encoding="ascii").split()]
    return found


def _command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
