"""One engine process as its worker sees it: started, spoken to, and started again when it dies or hangs.

One task owns the process (``run``); generations only write commands and read their own queue of reports. A generation that an
engine died of is known when it comes again (`poison_requests`), and runs alone then (`engine_lock`).
"""

import asyncio
import itertools
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import assert_never

import msgspec

from services.inference.engine import engine_messages
from services.inference.jobs.backend_interface import Sink, Watcher
from services.inference.jobs.embedding_interface import VectorSink
from services.inference.jobs.embedding_job import EmbeddingJob
from services.inference.jobs.engine_speed import EngineSpeed, StepMeter
from services.inference.jobs.generation_job import GenerationJob
from services.inference.supervision import embedding_calls, poison_requests
from services.inference.supervision.embedding_calls import EmbeddingCall
from services.inference.supervision.engine_calls import EngineCall, EngineDied
from services.inference.supervision.engine_lock import EngineLock, EngineTurn
from services.inference.supervision.poison_requests import PoisonRequests, RequestSuspicion
from services.inference.supervision.watchdog import STEP_SECONDS, Watchdog
from shared import errors
from shared.api.embedding import Embedded
from shared.api.generation import Generation
from shared.api.inference import ModelState
from shared.telemetry import logs
from shared.timing import restart_policy
from shared.types import ModelName

log = logs.get()

#: The process ends by itself when its socket closes, after the step it is in.
EXIT_SECONDS = 2.0
#: What an engine may inherit: what its libraries and its GPU driver read. No URL, no key, no token.
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
KEPT_PREFIXES = ("CUDA_", "NVIDIA_", "HIP_", "ROCR_", "GGML_", "OMP_")

#: The engine; the number of its socket and of this process follow.
PROGRAM = (sys.executable, "-P", "-m", "services.inference.engine.engine_process")


class SupervisedEngine:
    """The engine of one model. ``run`` must be running in somebody's TaskGroup for the whole life.

    The engines of a worker share their ``poison_requests``. ``watchdog_seconds`` is how long a step may take (`watchdog`)."""

    def __init__(
        self,
        model: ModelName,
        load: engine_messages.LoadCommand,
        watcher: Watcher,
        program: tuple[str, ...] = PROGRAM,
        *,
        suspected: PoisonRequests | None = None,
        watchdog_seconds: float = STEP_SECONDS,
    ) -> None:
        self._model = model
        self._load = load
        self._watcher = watcher
        self._program = program
        self._suspects = suspected or PoisonRequests(time.monotonic)
        self._watchdog_seconds = watchdog_seconds
        self._turns = EngineLock()
        self._steps = StepMeter()
        self._history = restart_policy.RestartHistory()
        self._writer: asyncio.StreamWriter | None = None
        self._ids = itertools.count(1)
        #: What the process is computing now, or is about to.
        self._running: dict[int, EngineCall | EmbeddingCall] = {}
        self.state = ModelState.LOADING
        self.detail = "loading"
        #: Of the loading, from 0 to 1.
        self.progress = 0.0
        #: None until the process has loaded the model once.
        self.loaded: engine_messages.Loaded | None = None
        self.pid: int | None = None

    def figures(self) -> EngineSpeed:
        """How fast it was in the last seconds."""
        return self._steps.figures(time.monotonic())

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
            match restart_policy.decide(self._history, started_at=started, now=time.monotonic()):
                case restart_policy.GiveUp(crashes):
                    log.error("engine_gave_up", model=self._model, reason=reason, crashes=crashes)
                    self._become(ModelState.FAILED, f"the engine crashed {crashes} times in 5 minutes, last: {reason}; restart the worker")
                    return
                case restart_policy.RestartIn(seconds, history):
                    self._history, crashes = history, len(history.crashes)
                    log.warning("engine_died", model=self._model, reason=reason, crashes=crashes, restart_in_seconds=seconds)
                    self._become(
                        ModelState.LOADING, f"the engine {reason}; it is started again (crash {crashes} of {restart_policy.MOST_CRASHES})"
                    )
                    self._watcher.restarting(self._model)
                    await asyncio.sleep(seconds)

    async def generate(self, job: GenerationJob, sink: Sink) -> Generation:
        """Raises Unavailable when no engine runs, ModelCrashed when it dies meanwhile, Poison when two have died of this request,
        BadRequest as the engine says. A request that one engine has died of waits until this one has nothing else to do."""
        fingerprint = poison_requests.fingerprint(job)
        async with self._turn(fingerprint) as turn:
            identity = next(self._ids)
            call = EngineCall(fingerprint, turn, job.parameters.n)
            command = engine_messages.StartGeneration(
                *(identity, job.messages, job.parameters, job.salt, job.delivered, job.grammar, job.asked.tools, job.request),
                raw=job.asked.raw,
            )
            with self._asked(command, call):
                generation = await call.passed_on(sink)
        self._suspects.clear(fingerprint)
        return generation

    async def embed(self, job: EmbeddingJob, sink: VectorSink) -> Embedded:
        """As ``generate``."""
        fingerprint = embedding_calls.fingerprint(job)
        async with self._turn(fingerprint) as turn:
            call = EmbeddingCall(fingerprint, turn, len(job.inputs))
            with self._asked(engine_messages.EmbedTexts(next(self._ids), job.inputs, job.dimensions), call):
                embedded = await call.passed_on(sink)
        self._suspects.clear(fingerprint)
        return embedded

    @asynccontextmanager
    async def _turn(self, fingerprint: bytes) -> AsyncIterator[EngineTurn]:
        """Raises Poison; Unavailable, because nobody waits for a turn at an engine that is not there."""
        while True:
            standing = self._suspects.standing(fingerprint)
            if standing is RequestSuspicion.POISON:
                raise errors.Poison(
                    f"this request ended the engine of {self._model} twice and is not run again",
                    hint="change it; the worker's log says what the engine died of (engine_died)",
                )
            self._ensure_ready()
            async with self._turns.entered(alone=standing is RequestSuspicion.SUSPECT) as turn:
                # While it waited, the engine may have died of the same request from somebody else.
                if self._suspects.standing(fingerprint) in (standing, RequestSuspicion.CLEAR):
                    yield turn
                    return

    @contextmanager
    def _asked(
        self, command: engine_messages.StartGeneration | engine_messages.EmbedTexts, call: EngineCall | EmbeddingCall
    ) -> Iterator[None]:
        """The process works on it until it has reported the end, or until the block ends."""
        # Written before it is entered: nothing to take back when there is no engine.
        self._send(command)
        self._running[command.id] = call
        try:
            yield
        finally:
            if self._running.pop(command.id, None) is not None and self._writer is not None:
                self._send(engine_messages.CancelGeneration(command.id))

    async def _live(self) -> str:
        """One life of a process; returns why it ended. Raises _NotLoadable."""
        self.progress = 0.0
        try:
            async with self._process() as (process, reader, writer):
                writer.write(engine_messages.pack(self._load))
                reason = await self._listen(reader, writer)
                self._become(ModelState.LOADING, f"the engine {reason or 'ended'}")
                if reason:
                    # A process that hangs in a driver may not even die at once; those who wait for it need not wait for that.
                    _kill(process)
                    self._died(reason)
            reason = reason or _ended(process.returncode)
        except OSError as error:
            reason = f"could not be started: {error}"
        except asyncio.CancelledError:
            self._end_calls("was stopped")
            raise
        self._died(reason)
        return reason

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Pass reports on until the socket ends; returns why, or "" where the exit code will say it."""
        unframer = engine_messages.Unframer()
        watchdog = Watchdog(self._watchdog_seconds)
        while True:
            try:
                async with asyncio.timeout(watchdog.tick_seconds):
                    received = await reader.read(256 * 1024)
            except TimeoutError:
                # A loaded engine without work may be silent for ever.
                is_loading = self._writer is None
                if (is_loading or self._running) and watchdog.ticked():
                    what = "how far it is with loading" if is_loading else "a step"
                    return f"hung: it did not report {what} for {watchdog.limit_seconds:g} s"
                continue
            except ConnectionError:
                return ""
            if not received:
                return ""
            watchdog.heard()
            try:
                for body in unframer.feed(received):
                    self._take(engine_messages.report_decoder.decode(body), writer, watchdog)
            except (msgspec.MsgspecError, errors.ProtocolViolation) as error:
                return f"sent what is no report: {error}"

    def _take(self, report: engine_messages.Report, writer: asyncio.StreamWriter, watchdog: Watchdog) -> None:
        match report:
            case engine_messages.StepReport():
                watchdog.stepped(report.seconds)
                self._steps.take(report, time.monotonic())
                for progress in report.progress:
                    self._deliver(progress)
            case engine_messages.EmbeddingTurn():
                watchdog.stepped(report.seconds)
                for vectors in report.vectors:
                    self._deliver(vectors)
            case engine_messages.GenerationAccepted() | engine_messages.GenerationRefused():
                self._deliver(report)
            case engine_messages.Loading():
                self.progress = report.progress
                self._watcher.changed()
            case engine_messages.Loaded():
                watchdog.loaded()
                self._ready(report, writer)
            case engine_messages.LoadFailed():
                raise _NotLoadable(report.reason)
            case _:
                assert_never(report)

    def _deliver(
        self,
        report: engine_messages.GenerationAccepted
        | engine_messages.GenerationRefused
        | engine_messages.AnswerProgress
        | engine_messages.ComputedVectors,
    ) -> None:
        # Reports of a generation that was cancelled meanwhile find no call.
        call = self._running.get(report.id)
        if call is not None and call.deliver(report):
            del self._running[report.id]

    def _died(self, reason: str) -> None:
        """Whatever was running fails, and may be what the process died of. Does nothing the second time."""
        fingerprints = {call.fingerprint for call in self._running.values()}
        if fingerprints:
            alone = all(call.turn.alone for call in self._running.values())
            self._suspects.died(fingerprints, alone=alone)
            log.warning("requests_suspected", model=self._model, requests=[one.hex()[:16] for one in sorted(fingerprints)], alone=alone)
        self._end_calls(reason)

    def _end_calls(self, reason: str) -> None:
        self._writer = None
        calls = list(self._running.values())
        self._running.clear()
        for call in calls:
            call.deliver(EngineDied(f"the engine of {self._model} {reason}"))

    def _ready(self, loaded: engine_messages.Loaded, writer: asyncio.StreamWriter) -> None:
        if loaded.unconfined and self.loaded is None:
            log.warning("engine_unconfined", model=self._model, reason=loaded.unconfined)
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
            lowered=loaded.lowered,
        )
        self._become(ModelState.READY, "")

    def _become(self, state: ModelState, detail: str) -> None:
        self.state, self.detail = state, detail
        self._watcher.changed()

    def _ensure_ready(self) -> asyncio.StreamWriter:
        if self._writer is None:
            raise errors.Unavailable(f"{self._model} is not ready: {self.detail}", hint="ask again in a moment", retry_after_seconds=1.0)
        return self._writer

    def _send(self, command: engine_messages.Command) -> None:
        self._ensure_ready().write(engine_messages.pack(command))

    @asynccontextmanager
    async def _process(self) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.StreamReader, asyncio.StreamWriter]]:
        ours, theirs = socket.socketpair()
        with ExitStack() as unconnected:
            unconnected.callback(ours.close)
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(*self._program, str(theirs.fileno()), str(os.getpid())),
                    stdin=asyncio.subprocess.DEVNULL,
                    env=inherited(),
                    pass_fds=(theirs.fileno(),),
                )
            self.pid = process.pid
            try:
                reader, writer = await asyncio.open_unix_connection(sock=ours)
                # From here on the stream owns the socket.
                unconnected.pop_all()
                try:
                    yield process, reader, writer
                finally:
                    self._writer = None
                    writer.close()
            finally:
                self.pid = None
                await _reaped(process)


class _NotLoadable(Exception):
    """The process says that this model cannot be loaded, so another try gives nothing else."""


def inherited() -> dict[str, str]:
    """What a process of the engine's may know of this one's environment."""
    return scrubbed(os.environ)


def scrubbed(environment: Mapping[str, str]) -> dict[str, str]:
    """What of a worker's environment its engine may see."""
    kept = {name: value for name, value in environment.items() if name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES)}
    # Where ggml aborts it would start a debugger on itself, to print where it was.
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[3]), "GGML_NO_BACKTRACE": "1"}


async def _reaped(process: asyncio.subprocess.Process) -> None:
    """Wait for the end of a process whose socket is closed; a stuck one is killed, and any when nobody has time for this."""
    try:
        async with asyncio.timeout(EXIT_SECONDS):
            await process.wait()
    except (TimeoutError, asyncio.CancelledError) as error:
        _kill(process)
        await process.wait()
        if isinstance(error, asyncio.CancelledError):
            raise


def _kill(process: asyncio.subprocess.Process) -> None:
    # Not process.kill(): that waits for the process behind asyncio's back, which then does not learn how it ended.
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _ended(code: int | None) -> str:
    if code is None:
        return "ended"
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
