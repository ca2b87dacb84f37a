"""Machines outside the stack, each a home folder without a stack or settings. `aicli` runs there, and workers keep running there.

A worker's output goes to a file, because a pipe that no one reads would block the worker. Its process belongs to no event loop,
so it can serve several tests.
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
from tests.stacks import REPOSITORY, Outcome, RunningStack, outcome_of, until

#: From the start of the command: Python, the sidecar, using a ticket, and finding the gateway; on two busy cores.
SERVING_SECONDS = 30.0


@dataclass(slots=True)
class Running:
    """An `aicli` that keeps running."""

    process: subprocess.Popen[bytes]
    output: Path

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    async def says(self, words: str, *, seconds: float = SERVING_SECONDS) -> None:
        """Wait until the output contains these words."""

        async def said() -> bool:
            text = self.text()
            assert words in text or self.process.poll() is None, f"ended with {self.process.returncode}:\n{text}"
            return words in text

        await until(said, seconds=seconds, what=f"it says {words!r}")

    def sidecar(self) -> int:
        """Return the process ID of its Hyperswarm."""
        return sidecar_of(self.process.pid)

    def kill(self) -> None:
        """Kill it with SIGKILL; its sidecar has to notice."""
        self.process.kill()
        self.process.wait()

    def vanish(self) -> None:
        """Kill it and its sidecar at the same moment, as if a cable were pulled: neither sends a shutdown message."""
        sidecar = self.sidecar()
        self.process.send_signal(signal.SIGSTOP)
        os.kill(sidecar, signal.SIGKILL)
        self.kill()

    async def interrupt(self, *, seconds: float = 15) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ended(seconds=seconds)

    async def ended(self, *, seconds: float = SERVING_SECONDS) -> int:
        """Wait for the end and return the exit status."""

        async def is_over() -> bool:
            return self.process.poll() is not None

        await until(is_over, seconds=seconds, what="it ends")
        return int(self.process.returncode)


@dataclass(slots=True)
class Machine:
    """Created by ``machine``."""

    home: Path
    caretaker: subprocess.Popen[bytes]
    started: list[Running] = field(default_factory=list)

    @property
    def state(self) -> Path:
        """The state folder of the machine's worker."""
        return self.home / "worker"

    async def aicli(self, *arguments: str, stdin: str = "", deadline_seconds: float = 120, **variables: str) -> Outcome:
        """Run `aicli` to its end, as a user would."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *_words(arguments), stdin=pipe, stdout=pipe, stderr=pipe, cwd=self.home, env=self._environment(variables)
        )
        return await outcome_of(process, stdin, seconds=deadline_seconds)

    def start(self, *arguments: str, **variables: str) -> Running:
        """Start `aicli` in the background."""
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
        assert self.caretaker.stdin is not None
        self.caretaker.stdin.write(b"%d\n" % process.pid)
        self.caretaker.stdin.flush()
        return running

    def start_worker(self, *arguments: str, **variables: str) -> Running:
        """Start the machine's worker; pass ``--join`` the first time."""
        return self.start("worker", "--state", str(self.state), *arguments, **variables)

    async def connect(self, stack: RunningStack, key: Credential) -> None:
        """Create the default profile on this machine, with a ticket of that stack and a user's key."""
        made = await self.aicli("mesh", "connect", await ticket(stack, "client"), "--api-key-stdin", stdin=f"{key}\n")
        assert made.status == 0, made.err

    def client(self) -> AbstractAsyncContextManager[ClientNode]:
        """Open a client node with the default profile, as `aicli` does."""
        found = profile.read(self.home / ".config/aimesh/profiles/default.toml")
        return client(ClientSettings(mesh=found.mesh, nats_url=None, node_key_file=found.node_key_file, mesh_file=found.mesh_file))

    def _environment(self, variables: dict[str, str]) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return {**kept, "HOME": str(self.home), "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1", **variables}


def _words(arguments: tuple[str, ...]) -> tuple[str, ...]:
    return (sys.executable, "-m", "cli.main", *arguments)


#: Its input has the groups of processes that were started, and ends when we do. Of dash, `kill -KILL --` takes no group.
_CARETAKER = 'while read -r group; do groups="$groups $group"; done; for group in $groups; do kill -s KILL -- "-$group"; done; rm -rf "$0"'


@contextmanager
def machine() -> Iterator[Machine]:
    """Create a machine; its processes and files are removed at the end, also when we are killed."""
    folder = tempfile.mkdtemp(prefix="aimesh-outside-")
    caretaker = subprocess.Popen(
        ["/bin/sh", "-c", _CARETAKER, folder],
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    found = Machine(Path(folder), caretaker)
    try:
        yield found
    finally:
        caretaker.communicate()
        for running in found.started:
            running.process.wait()


@asynccontextmanager
async def machines(count: int) -> AsyncIterator[list[Machine]]:
    from contextlib import ExitStack

    with ExitStack() as opened:
        yield [opened.enter_context(machine()) for _ in range(count)]


async def ticket(stack: RunningStack, role: str, *options: str) -> str:
    """Create a ticket of that stack."""
    made = await stack.aicli("admin", "tickets", "create", "--role", role, "--json", *options)
    return str(made.json()["ticket"])


def sidecar_of(pid: int) -> int:
    """Return the process ID of a node's Hyperswarm."""
    (found,) = [child for child in children_of(pid) if b"sidecar/main.js" in command(child)]
    return found


def children_of(pid: int) -> list[int]:
    """Return the children of a process, including those that its other threads started."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # the thread ended meanwhile
            found += [int(child) for child in (task / "children").read_text(encoding="ascii").split()]
    return found


def command(pid: int) -> bytes:
    """Return the command line of a process, empty if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
