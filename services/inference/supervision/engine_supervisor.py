"""Runs one engine process: starts it, sends it commands, and restarts it when it dies or hangs.

One task owns the process (``run``); calls only write commands and read their own queue of reports. A request during which an engine
died runs alone when it is retried (`poison_requests`, `engine_calls`).
"""

import asyncio
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import assert_never

import msgspec

from services.inference import child_process
from services.inference.backend_interface import Sink, VectorSink, Watcher
from services.inference.chat import fit
from services.inference.chat.model_chat import ModelChat
from services.inference.engine import engine_messages
from services.inference.engine_speed import EngineSpeed, StepMeter
from services.inference.jobs import GenerationJob
from services.inference.supervision import engine_calls, poison_requests
from services.inference.supervision.poison_requests import PoisonRequests, RequestSuspicion
from shared import errors
from shared.api.embedding import Embed, Embedded
from shared.api.generation import GenerationEnd
from shared.api.inference import ModelState
from shared.telemetry import logs
from shared.timing import restart_policy
from shared.types import ModelName

log = logs.get()

#: For an engine to read an image, between two steps.
SEND_SECONDS = 60.0
#: Without progress during a load; a large file on a slow disk may stall for minutes.
LOAD_SECONDS = 900.0
#: The first step reads the model's file into memory and compiles GPU programs.
FIRST_STEP_SECONDS = 600.0
STEP_SECONDS = 60.0
#: A step that reads much of a prompt may take this many times the longest step so far.
PATIENCE = 30.0
#: The resolution; a busy engine reports more often.
TICK_SECONDS = 1.0

#: Followed by the number of the socket and the id of this process.
PROGRAM = (sys.executable, "-P", "-m", "services.inference.engine.engine_process")


class Watchdog:
    """Decides when a silent engine hangs. Gets every report and every tick.  Pure.

    It counts ticks of the worker's loop instead of time: a worker that was suspended sees one tick where the clock shows hours, and
    then reads what its engine reported meanwhile."""

    def __init__(self, step_seconds: float = STEP_SECONDS) -> None:
        self._step_seconds = step_seconds
        self.tick_seconds = min(TICK_SECONDS, step_seconds / 4)
        self.limit_seconds = LOAD_SECONDS
        self._silent_ticks = 0
        self._longest_seconds = 0.0

    def report_received(self) -> None:
        self._silent_ticks = 0

    def load_ended(self) -> None:
        """The next step is the first."""
        self.limit_seconds = max(FIRST_STEP_SECONDS, self._step_seconds)

    def step_ended(self, seconds: float) -> None:
        """A step ended; ``seconds`` is by the engine's clock."""
        self._longest_seconds = max(self._longest_seconds, seconds)
        self.limit_seconds = max(self._step_seconds, min(PATIENCE * self._longest_seconds, FIRST_STEP_SECONDS))

    def tick(self) -> bool:
        """A busy engine was silent for a tick. Return whether it hangs."""
        self._silent_ticks += 1
        return self._silent_ticks * self.tick_seconds >= self.limit_seconds


class SupervisedEngine:
    """The engine of one model. ``run`` must run in a TaskGroup as long as it is used.

    The engines of a worker share their ``poison_requests``. ``watchdog_seconds`` bounds a step (`Watchdog`)."""

    def __init__(
        self,
        model: ModelName,
        load: engine_messages.LoadCommand,
        watcher: Watcher,
        chat: ModelChat,
        program: tuple[str, ...] = PROGRAM,
        *,
        poison_requests: PoisonRequests | None = None,
        watchdog_seconds: float = STEP_SECONDS,
    ) -> None:
        self._model = model
        self._load = load
        self._watcher = watcher
        self._chat = chat
        self._program = program
        self._poison_requests = poison_requests or PoisonRequests(time.monotonic)
        self._watchdog_seconds = watchdog_seconds
        self._lock = engine_calls.EngineLock()
        self._steps = StepMeter()
        self._history = restart_policy.RestartHistory()
        self._writer: asyncio.StreamWriter | None = None
        self._ids = itertools.count(1)
        self._running: dict[int, engine_calls.EngineCall] = {}
        self._image_turn = asyncio.Lock()
        self.state = ModelState.LOADING
        self.detail = "loading"
        self.progress = 0.0
        self.loaded: engine_messages.Loaded | None = None
        self.pid: int | None = None

    def figures(self) -> EngineSpeed:
        cpu_seconds, ram_bytes = _used(self.pid)
        return replace(self._steps.figures(time.monotonic()), cpu_seconds=cpu_seconds, ram_bytes=ram_bytes)

    async def run(self) -> None:
        """Keep a process running until cancelled, or until it can't be loaded or crashes too often."""
        if self._load.may_fit:
            self._load = await fit.fitted(self._load)
        while True:
            started = time.monotonic()
            try:
                reason = await self._run_process()
            except _NotLoadable as refused:
                log.error("model_failed", model=self._model, reason=str(refused))
                self._set_state(ModelState.FAILED, f"{refused}; fix it and restart the worker")
                return
            match restart_policy.decide(self._history, started_at=started, now=time.monotonic()):
                case restart_policy.GiveUp(crashes):
                    log.error("engine_gave_up", model=self._model, reason=reason, crashes=crashes)
                    self._set_state(
                        ModelState.FAILED, f"the engine crashed {crashes} times in 5 minutes, last: {reason}; restart the worker"
                    )
                    return
                case restart_policy.RestartIn(seconds, history):
                    self._history, crashes = history, len(history.crashes)
                    log.warning("engine_died", model=self._model, reason=reason, crashes=crashes, restart_in_seconds=seconds)
                    self._set_state(
                        ModelState.LOADING, f"the engine {reason}; restarting (crash {crashes} of {restart_policy.MAX_CRASHES})"
                    )
                    self._watcher.restarting(self._model)
                    await asyncio.sleep(seconds)

    async def generate(self, job: GenerationJob, sink: Sink) -> GenerationEnd:
        """Raises Unavailable if no engine runs, ModelCrashed if it dies meanwhile, Poison if the request crashed two engines, and
        BadRequest. A request that crashed one engine waits until this one is idle."""
        # 12 MiB of images take 40 ms.
        has_images = any(message.images for message in job.messages)
        fingerprint = await asyncio.to_thread(poison_requests.fingerprint, job) if has_images else poison_requests.fingerprint(job)
        async with self._turn(fingerprint) as turn:
            identity = next(self._ids)
            await self._send_images(identity, job)
            call = engine_calls.GenerationCall(
                fingerprint, turn, job.parameters.n, partial(self._cancel_answer, identity), is_batch=job.is_batch
            )
            command = engine_messages.StartGeneration(
                identity, job.prompt, job.parameters, job.salt, job.delivered, job.adapter, job.is_batch
            )
            with self._submitted(command, call):
                return await call.pass_on(sink)

    async def _send_images(self, identity: int, job: GenerationJob) -> None:
        """Decode a prompt's images and send them, one at a time: the pixels of all requests would take too much memory."""
        images = [image for message in job.messages for image in message.images]
        if not images:
            return
        writer, is_sent = self._ensure_ready(), False
        try:
            async with self._image_turn:
                for number, image in enumerate(images, 1):
                    decoded = await self._chat.decode(image, number)
                    self._ensure_same(writer)
                    self._send(engine_messages.AddImage(identity, decoded))
                    async with asyncio.timeout(SEND_SECONDS):
                        await writer.drain()
            self._ensure_same(writer)
            is_sent = True
        except (TimeoutError, ConnectionError) as error:
            raise errors.Unavailable(f"the engine of {self._model} reads no images", hint="try again", retry_after_seconds=1.0) from error
        finally:
            if not is_sent and self._writer is writer:
                self._send(engine_messages.CancelGeneration(identity))

    def _ensure_same(self, writer: asyncio.StreamWriter) -> None:
        """Raises Unavailable if the process that got a prompt's images is gone."""
        if self._writer is not writer:
            raise errors.Unavailable(f"the engine of {self._model} was started again", hint="try again", retry_after_seconds=1.0)

    async def embed(self, job: Embed, sink: VectorSink) -> Embedded:
        """Raises as ``generate``."""
        fingerprint = poison_requests.text_fingerprint(job.model, job.inputs, job.dimensions, job.query)
        async with self._turn(fingerprint) as turn:
            call = engine_calls.EmbeddingCall(fingerprint, turn, len(job.inputs), is_batch=job.batch)
            with self._submitted(engine_messages.EmbedTexts(next(self._ids), job.inputs, job.dimensions, job.query, job.batch), call):
                return await call.pass_on(sink)

    async def convert(self, source: str | bytes, *, add_special: bool = True) -> bytes:
        """Return the token ids of a prompt, of TOKEN_BYTES each, or the text of such ids. Raises as ``generate``."""
        fingerprint = poison_requests.text_fingerprint(source)
        async with self._turn(fingerprint) as turn:
            call = engine_calls.ConversionCall(fingerprint, turn)
            prompt, token_ids = (source, None) if isinstance(source, str) else ("", source)
            with self._submitted(engine_messages.ConvertTokens(next(self._ids), prompt, token_ids, add_special), call):
                return await call.read()

    @asynccontextmanager
    async def _turn(self, fingerprint: bytes) -> AsyncIterator[engine_calls.EngineTurn]:
        """Wait for a turn. Raises Poison, and Unavailable if no engine runs."""
        while True:
            suspicion = self._poison_requests.suspicion(fingerprint)
            if suspicion is RequestSuspicion.POISON:
                raise errors.Poison(
                    f"this request crashed the engine of {self._model} twice and will not run again",
                    hint="change the request; the worker's log says how the engine died (engine_died)",
                )
            self._ensure_ready()
            async with self._lock.entered(alone=suspicion is RequestSuspicion.SUSPECT) as turn:
                # During the wait, the same request from another caller may have crashed the engine.
                if self._poison_requests.suspicion(fingerprint) in (suspicion, RequestSuspicion.CLEAR):
                    yield turn
                    # It ended without a crash.
                    self._poison_requests.clear(fingerprint)
                    return

    @contextmanager
    def _submitted(self, command: engine_messages.TextCommand, call: engine_calls.EngineCall) -> Iterator[None]:
        """Have the process run a call until it reports the end, or until the block ends."""
        self._running[command.id] = call
        try:
            self._send(command)
            yield
        finally:
            # Also if the command is too large to be sent: its images have been.
            if self._running.pop(command.id, None) is not None and self._writer is not None:
                self._send(engine_messages.CancelGeneration(command.id))

    def _cancel_answer(self, identity: int, answer: int) -> None:
        """End one answer of a call in the process; does nothing if the process has ended the call."""
        if identity in self._running and self._writer is not None:
            self._send(engine_messages.CancelGeneration(identity, answer))

    async def _run_process(self) -> str:
        """Start a process and return why it ended. Raises _NotLoadable."""
        self.progress = 0.0
        try:
            async with self._process() as (process, reader, writer):
                writer.write(engine_messages.pack(self._load))
                reason = await self._listen(reader, writer)
                self._set_state(ModelState.LOADING, f"the engine {reason or 'ended'}")
                if reason:
                    # A process that hangs in a driver may not die at once; callers need not wait for that.
                    child_process.kill(process)
                    self._died(reason)
            reason = reason or child_process.reason_of_end(process.returncode)
        except OSError as error:
            reason = f"could not be started: {error}"
        except asyncio.CancelledError:
            self._end_calls("was stopped")
            raise
        self._died(reason)
        return reason

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Pass reports on until the socket ends. Return the reason, or "" if the exit code tells it."""
        unframer = engine_messages.Unframer()
        watchdog = Watchdog(self._watchdog_seconds)
        while True:
            try:
                async with asyncio.timeout(watchdog.tick_seconds):
                    received = await reader.read(256 * 1024)
            except TimeoutError:
                # A loaded engine without work is silent.
                is_loading = self._writer is None
                if (is_loading or self._running) and watchdog.tick():
                    what = "progress with loading" if is_loading else "a step"
                    return f"hung: it did not report {what} for {watchdog.limit_seconds:g} s"
                continue
            except ConnectionError:
                return ""
            if not received:
                return ""
            watchdog.report_received()
            try:
                for body in unframer.feed(received):
                    await self._take(engine_messages.report_decoder.decode(body), writer, watchdog)
            except (msgspec.MsgspecError, errors.ProtocolViolation) as error:
                return f"sent an invalid report: {error}"
            except errors.Unavailable as error:
                return f"cannot be used: {error.message}"

    async def _take(self, report: engine_messages.Report, writer: asyncio.StreamWriter, watchdog: Watchdog) -> None:
        match report:
            case engine_messages.StepReport():
                watchdog.step_ended(report.seconds)
                self._take_step(report)
            case engine_messages.EmbeddingTurn():
                watchdog.step_ended(report.seconds)
                for vectors in report.vectors:
                    self._deliver(vectors)
            case engine_messages.GenerationAccepted() | engine_messages.GenerationRefused() | engine_messages.ConversionResult():
                self._deliver(report)
            case engine_messages.EncodingImages():
                pass
            case engine_messages.Loading():
                self.progress = report.progress
                self._watcher.changed()
            case engine_messages.Loaded():
                await self._open_chat(report, writer)
                watchdog.load_ended()
                self._ready(report, writer)
            case engine_messages.LoadFailed():
                raise _NotLoadable(report.reason)
            case _:
                assert_never(report)

    def _take_step(self, step: engine_messages.StepReport) -> None:
        self._steps.record(step, time.monotonic())
        if step.drafted:
            self._watcher.drafted(self._model, step.drafted, step.accepted)
        if step.preempted:
            self._watcher.preempted(self._model, step.preempted)
        for progress in step.progress:
            self._deliver(progress)

    async def _open_chat(self, loaded: engine_messages.Loaded, writer: asyncio.StreamWriter) -> None:
        """Test the chat template. Raises _NotLoadable if it isn't usable, and Unavailable if that can't be found out."""
        if loaded.only_embeds:
            return
        try:
            shown = await self._chat.open(loaded)
        except errors.BadRequest as refused:
            raise _NotLoadable(refused.message) from refused
        writer.write(engine_messages.pack(engine_messages.ShowTokens(shown)))

    def _deliver(self, report: engine_calls.Progress | engine_messages.GenerationRefused) -> None:
        if isinstance(report, engine_messages.GenerationAccepted) and report.image_seconds:
            self._watcher.images_encoded(self._model, report.image_seconds)
        call = self._running.get(report.id)
        if call is not None and call.deliver(report):
            del self._running[report.id]

    def _died(self, reason: str) -> None:
        """Fail the running calls and suspect each of them. Does nothing the second time."""
        fingerprints = {call.fingerprint for call in self._running.values()}
        if fingerprints:
            alone = all(call.turn.alone for call in self._running.values())
            self._poison_requests.died(fingerprints, alone=alone)
            log.warning("requests_suspected", model=self._model, requests=[one.hex()[:16] for one in sorted(fingerprints)], alone=alone)
        self._end_calls(reason)

    def _end_calls(self, reason: str) -> None:
        self._writer = None
        calls = list(self._running.values())
        self._running.clear()
        for call in calls:
            call.deliver(engine_calls.EngineDied(f"the engine of {self._model} {reason}"))

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
            chat_template=bool(loaded.chat_template),
            processor=loaded.processor,
            lowered=loaded.lowered,
            sees_images=loaded.sees_images,
        )
        self._set_state(ModelState.READY, "")

    def _set_state(self, state: ModelState, detail: str) -> None:
        self.state, self.detail = state, detail
        self._watcher.changed()

    def _ensure_ready(self) -> asyncio.StreamWriter:
        if self._writer is None:
            raise errors.Unavailable(f"{self._model} is not ready: {self.detail}", hint="try again in a moment", retry_after_seconds=1.0)
        return self._writer

    def _send(self, command: engine_messages.Command) -> None:
        packed = engine_messages.pack(command)
        if len(packed) > engine_messages.MAX_MESSAGE_BYTES:
            raise errors.BadRequest(f"the prompt has {len(packed)} bytes; at most {engine_messages.MAX_MESSAGE_BYTES} are allowed")
        self._ensure_ready().write(packed)

    @asynccontextmanager
    async def _process(self) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.StreamReader, asyncio.StreamWriter]]:
        process, reader, writer = await child_process.start(self._program)
        self.pid = process.pid
        try:
            yield process, reader, writer
        finally:
            self._writer = self.pid = None
            await child_process.end(process, writer)


class _NotLoadable(Exception):
    """The model can't be loaded; a restart wouldn't help."""


def _used(pid: int | None) -> tuple[float, int]:
    """Return a process's processor time and its bytes of RAM; 0 if it is gone, or on a system without /proc."""
    try:
        # Behind the program's name, which may contain anything.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0, 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
