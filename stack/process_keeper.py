"""Keep one program running: start it, wait for its exit or a command, and do what ``shared.timing.restart_policy`` decides.

The task in ``run`` owns the program's state; others put events into its queue or read ``status``.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared.timing import restart_policy
from shared.timing.restart_policy import GiveUp, RestartHistory, RestartIn
from stack import processes
from stack import stack_home as homes
from stack.control import ProgramStatus
from stack.servers.program import Program

#: A shell's exit status for a missing program; used if the program cannot be started.
_CANNOT_START_STATUS = 127

_log = logging.getLogger("supervisor")


@dataclass(frozen=True, slots=True)
class Exited:
    pid: int
    status: int


@dataclass(frozen=True, slots=True)
class RestartWanted:
    """A user asked for it: past crashes are forgotten."""


@dataclass(frozen=True, slots=True)
class StopWanted:
    """For good."""


@dataclass(frozen=True, slots=True)
class Hung:
    """The process has not answered for too long and must be restarted."""

    pid: int


Event = Exited | RestartWanted | StopWanted | Hung


class ProcessKeeper:
    """``remember`` is called with every process right after its start, ``note_end`` with the status of each that ended by itself. Without a
    ``log``, it writes where we do."""

    def __init__(
        self,
        program: Program,
        log: Path | None,
        tasks: asyncio.TaskGroup,
        remember: Callable[[processes.Child], None],
        note_end: Callable[[str, int], None] = lambda _name, _status: None,
    ) -> None:
        self.program = program
        self.status = ProgramStatus(program.name, "stopped", None, time.time(), 0, "")
        self._remember = remember
        self._note_end = note_end
        self._log_file = log
        self._tasks = tasks
        # There is one exit per process and a few commands by users; more means that something runs in a loop.
        self._events: asyncio.Queue[Event] = asyncio.Queue(maxsize=16)
        self._history = RestartHistory()
        self._crashes = 0

    def order(self, event: RestartWanted | StopWanted | Hung) -> bool:
        """Return whether the queue had room."""
        try:
            self._events.put_nowait(event)
        except asyncio.QueueFull:
            return False
        return True

    async def run(self) -> None:
        """Run until StopWanted; raises nothing."""
        while True:
            started = time.monotonic()
            event: Event | None = await self._live()
            if isinstance(event, Exited):
                self._note_end(self.program.name, event.status)
                is_hopeless = event.status == self.program.hopeless_status
                event = await self._pause(f"ended with {_describe(event.status)}", started, is_hopeless=is_hopeless)
            elif isinstance(event, Hung):
                event = await self._pause("stopped answering", started)
            if isinstance(event, StopWanted):
                break
        self._become("stopped")

    async def _live(self) -> Event:
        try:
            process = await self._start()
        except OSError as error:
            self._write(f"cannot start {self.program.name}: {error.strerror}: {error.filename}\n")
            return Exited(0, _CANNOT_START_STATUS)
        event = await self._next(process.pid)
        if not isinstance(event, Exited):
            self._become("stopping", pid=process.pid)
            # Commands that arrive meanwhile are queued again.
            grace_seconds = self.program.grace_seconds
            if not await processes.stop(process, self.program.stop_signal, grace_seconds):
                _log.warning("%s: did not stop within %.0f s; killed", self.program.name, grace_seconds)
            _log.info("%s: stopped", self.program.name)
        return event

    async def _start(self) -> Process:
        self._become("starting")
        with contextlib.nullcontext() if self._log_file is None else self._log_file.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *self.program.command,
                env=self.program.environment,
                cwd=self.program.folder or homes.checkout(),
                stdin=PIPE if self.program.ends_with_stdin else DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
                preexec_fn=processes.dies_with_parent(self.program.stop_signal, os.getpid()),
            )
        self._remember(processes.Child(self.program.name, process.pid, processes.start_of(process.pid) or 0))
        _log.info("%s: started, pid %d", self.program.name, process.pid)
        self._tasks.create_task(self._watch(process))
        self._become("running", pid=process.pid)
        return process

    async def _watch(self, process: Process) -> None:
        status = await process.wait()
        # Its children must not outlive it: an engine would hold the model's memory.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await self._events.put(Exited(process.pid, status))

    async def _next(self, pid: int) -> Event:
        while True:
            event = await self._events.get()
            if not isinstance(event, Exited | Hung) or event.pid == pid:
                return event

    async def _pause(self, ended: str, started: float, *, is_hopeless: bool = False) -> Event | None:
        """After a crash, wait as long as the policy says, or until a command arrives, and return that."""
        self._crashes += 1
        pause: float | None = None
        match restart_policy.decide(self._history, started_at=started, now=time.monotonic()):
            case _ if is_hopeless:
                # The program says so itself: a restart would not help.
                self._stay_down("its settings are wrong, or another process uses its node key; its log says which")
            case RestartIn(pause, history):
                self._history = history
                _log.warning("%s: %s; starts again in %.0f s", self.program.name, ended, pause)
                self._become("waiting", why=f"{ended}; starts again in {pause:.0f} s")
            case GiveUp(crashes):
                self._stay_down(
                    f"it crashed {crashes} times within {restart_policy.WINDOW_SECONDS / 60:.0f} minutes; the last time it {ended}"
                )
        event = await self._order_within(pause)
        if isinstance(event, RestartWanted):
            self._history = RestartHistory()
        return event

    def _stay_down(self, why: str) -> None:
        _log.error("%s: stays down: %s", self.program.name, why)
        self._become("down", why=why)

    async def _order_within(self, seconds: float | None) -> Event | None:
        try:
            async with asyncio.timeout(seconds):
                return await self._next(0)
        except TimeoutError:
            return None

    def _become(self, state: str, *, pid: int | None = None, why: str = "") -> None:
        self.status = ProgramStatus(self.program.name, state, pid, time.time(), self._crashes, why)

    def _write(self, text: str) -> None:
        with contextlib.nullcontext(sys.stderr) if self._log_file is None else self._log_file.open("a", encoding="utf-8") as output:
            output.write(text)


def _describe(status: int) -> str:
    """Describe ``status`` as asyncio reports it: negative for a signal."""
    return f"signal {-status}" if status < 0 else f"status {status}"
