"""One engine process as its worker sees it: started, spoken to, and started again when it dies.

One task owns the process (``run``); generations only write commands and read their own queue of reports.
"""

import asyncio
import itertools
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import msgspec

from services.inference.backends.backend import Sink, Watcher
from services.inference.engine import wire
from services.inference.jobs import Job
from shared import errors, restarts
from shared.api.generation import Generation, Usage
from shared.api.inference import Chunk, ModelState
from shared.telemetry import logs
from shared.types import FinishReason, ModelName

log = logs.get()

#: A large model on a slow disk; longer than this is a disk that hangs.
LOAD_SECONDS = 900.0
#: The process ends by itself when its socket closes, after the step it is in.
EXIT_SECONDS = 2.0
#: What an engine may inherit: what its libraries and its GPU driver read. No URL, no key, no token.
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
KEPT_PREFIXES = ("CUDA_", "NVIDIA_", "HIP_", "ROCR_", "GGML_", "OMP_")

#: The engine; the number of its socket and of this process follow.
PROGRAM = (sys.executable, "-P", "-m", "services.inference.engine.process")


@dataclass(frozen=True, slots=True)
class Died:
    """The engine's process ended while the generation ran."""

    reason: str


_Report = wire.Accepted | wire.Refused | wire.Progress | Died


class Tally:
    """Counts what a generation was given."""

    def __init__(self, answers: int) -> None:
        self.prompt_tokens = 0
        self._completion_tokens = 0
        self._cached_tokens = 0
        self._finished: dict[int, FinishReason] = {}
        self._answers = answers

    @property
    def is_over(self) -> bool:
        return len(self._finished) == self._answers

    def take(self, progress: wire.Progress) -> None:
        self._completion_tokens += len(progress.token_ids)
        if progress.answer == 0:
            # The other answers begin behind what the first has read: that is no cache of an earlier prompt.
            self._cached_tokens = progress.cached_tokens
        if progress.finish is not None:
            self._finished[progress.answer] = progress.finish

    def generation(self) -> Generation:
        reasons = tuple(self._finished[answer] for answer in sorted(self._finished))
        usage = Usage(self.prompt_tokens, self._completion_tokens, self._cached_tokens)
        return Generation(reasons[0], usage, reasons if self._answers > 1 else ())


class Engine:
    """The engine of one model. ``run`` must be running in somebody's TaskGroup for the whole life."""

    def __init__(self, model: ModelName, load: wire.Load, watcher: Watcher, program: tuple[str, ...] = PROGRAM) -> None:
        self._model = model
        self._load = load
        self._watcher = watcher
        self._program = program
        self._history = restarts.History()
        self._writer: asyncio.StreamWriter | None = None
        self._ids = itertools.count(1)
        #: Each queue is bounded by the generation's own tokens: one report per token, one before and one at the end.
        self._running: dict[int, asyncio.Queue[_Report]] = {}
        self.state = ModelState.LOADING
        self.detail = "loading"
        #: Of the loading, from 0 to 1.
        self.progress = 0.0
        #: None until the process has loaded the model once.
        self.loaded: wire.Loaded | None = None
        self.pid: int | None = None

    async def run(self) -> None:
        """Keep a process running until cancelled, or until it is clear that it cannot."""
        while True:
            started = time.monotonic()
            try:
                reason = await self._live()
            except _NotLoadable as refused:
                log.error("model_failed", model=self._model, reason=str(refused))
                self._become(ModelState.FAILED, f"{refused}; mend it and restart the worker")
                return
            match restarts.decide(self._history, started_at=started, now=time.monotonic()):
                case restarts.GiveUp(crashes):
                    log.error("engine_gave_up", model=self._model, reason=reason, crashes=crashes)
                    self._become(ModelState.FAILED, f"the engine crashed {crashes} times in 5 minutes, last: {reason}; restart the worker")
                    return
                case restarts.RestartIn(seconds, history):
                    self._history, crashes = history, len(history.crashes)
                    log.warning("engine_died", model=self._model, reason=reason, crashes=crashes, restart_in_seconds=seconds)
                    self._become(
                        ModelState.LOADING, f"the engine {reason}; it is started again (crash {crashes} of {restarts.MOST_CRASHES})"
                    )
                    self._watcher.restarting(self._model)
                    await asyncio.sleep(seconds)

    async def generate(self, job: Job, sink: Sink) -> Generation:
        """Raises Unavailable when no engine runs, ModelCrashed when it dies meanwhile, BadRequest as the engine says."""
        identity = next(self._ids)
        reports: asyncio.Queue[_Report] = asyncio.Queue()
        # Written before it is entered: nothing to take back when there is no engine.
        self._send(
            wire.Generate(identity, job.messages, job.parameters, job.salt, job.delivered, job.grammar, job.asked.tools, job.request)
        )
        self._running[identity] = reports
        over = False
        tally = Tally(job.parameters.n)
        try:
            while True:
                report = await reports.get()
                match report:
                    case wire.Accepted():
                        tally.prompt_tokens = report.prompt_tokens
                        sink.accept(report.prompt_tokens)
                    case wire.Progress():
                        tally.take(report)
                        over = tally.is_over
                        if report.token_ids or report.text or report.tool_calls:
                            await sink.send(Chunk(report.text, report.token_ids, report.answer, report.logprobs, report.tool_calls))
                        if over:
                            return tally.generation()
                    case wire.Refused():
                        over = True
                        raise errors.from_problem(report.problem)
                    case Died():
                        over = True
                        raise errors.ModelCrashed(
                            f"the engine of {self._model} {report.reason} during this request", hint="try again; the worker restarts it"
                        )
                    case _:
                        assert_never(report)
        finally:
            del self._running[identity]
            if not over and self._writer is not None:
                self._send(wire.Cancel(identity))

    async def _live(self) -> str:
        """One life of a process; returns why it ended. Raises _NotLoadable."""
        try:
            async with self._process() as (process, reader, writer):
                writer.write(wire.pack(self._load))
                reason = await self._listen(reader, writer)
            reason = reason or _ended(process.returncode)
        except OSError as error:
            reason = f"could not be started: {error}"
        for reports in self._running.values():
            reports.put_nowait(Died(reason))
        return reason

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Pass reports on until the socket ends; returns why, or "" where the exit code will say it."""
        unframer = wire.Unframer()
        loading = True
        while True:
            # A loaded engine may be silent for ever; the deadline of a generation is its caller's.
            try:
                async with asyncio.timeout(LOAD_SECONDS if loading else None):
                    received = await reader.read(256 * 1024)
            except TimeoutError:
                return f"did not load the model within {LOAD_SECONDS:g} s"
            except ConnectionError:
                return ""
            if not received:
                return ""
            try:
                for body in unframer.feed(received):
                    self._take(wire.report_decoder.decode(body), writer)
                    loading = False
            except (msgspec.MsgspecError, errors.ProtocolViolation) as error:
                return f"sent what is no report: {error}"

    def _take(self, report: wire.Report, writer: asyncio.StreamWriter) -> None:
        match report:
            case wire.Step():
                for progress in report.progress:
                    self._deliver(progress)
            case wire.Accepted() | wire.Refused():
                self._deliver(report)
            case wire.Loading():
                self.progress = report.progress
                self._watcher.changed()
            case wire.Loaded():
                self._ready(report, writer)
            case wire.LoadFailed():
                raise _NotLoadable(report.reason)
            case _:
                assert_never(report)

    def _deliver(self, report: wire.Accepted | wire.Refused | wire.Progress) -> None:
        # Reports of a generation that was cancelled meanwhile find no queue.
        if (reports := self._running.get(report.id)) is not None:
            reports.put_nowait(report)

    def _ready(self, loaded: wire.Loaded, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.loaded = loaded
        log.info(
            "model_loaded",
            model=self._model,
            description=loaded.description,
            context_tokens=loaded.context_tokens,
            slots=self._load.slots,
            threads=self._load.threads,
            gpu=loaded.gpu or "none",
            chat_template=loaded.chat_template,
            processor=loaded.processor,
        )
        self._become(ModelState.READY, "")

    def _become(self, state: ModelState, detail: str) -> None:
        self.state, self.detail = state, detail
        self._watcher.changed()

    def _send(self, command: wire.Command) -> None:
        if self._writer is None:
            raise errors.Unavailable(f"{self._model} is not ready: {self.detail}", hint="ask again in a moment", retry_after_seconds=1.0)
        self._writer.write(wire.pack(command))

    @asynccontextmanager
    async def _process(self) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.StreamReader, asyncio.StreamWriter]]:
        ours, theirs = socket.socketpair()
        with ExitStack() as unstarted:
            unstarted.callback(ours.close)
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(*self._program, str(theirs.fileno()), str(os.getpid())),
                    stdin=asyncio.subprocess.DEVNULL,
                    env=scrubbed(os.environ),
                    pass_fds=(theirs.fileno(),),
                )
            # From here on the stream owns the socket.
            unstarted.pop_all()
        self.pid = process.pid
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        try:
            yield process, reader, writer
        finally:
            self._writer = None
            self.pid = None
            writer.close()
            await asyncio.shield(_exit_code(process))


class _NotLoadable(Exception):
    """The process says that this model cannot be loaded, so another try gives nothing else."""


def scrubbed(environment: Mapping[str, str]) -> dict[str, str]:
    """What of a worker's environment its engine may see."""
    kept = {name: value for name, value in environment.items() if name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES)}
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[3])}


async def _exit_code(process: asyncio.subprocess.Process) -> int:
    """Wait for the end of a process whose socket is closed; a stuck one is killed."""
    try:
        async with asyncio.timeout(EXIT_SECONDS):
            return await process.wait()
    except TimeoutError:
        process.kill()
        return await process.wait()


def _ended(code: int | None) -> str:
    if code is None:
        return "ended"
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
