"""The inference service: the handlers of a worker, and what it tells the mesh about itself."""

import asyncio
import contextlib
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import ClassVar, Protocol

from services.inference import console_status, embedding_runs, infer_http
from services.inference.backends import backend_selection
from services.inference.chunk_coalescing import CoalescedChunks
from services.inference.jobs import generation_job
from services.inference.jobs.backend_interface import Backend, Loader, Measured, Sink
from services.inference.pause import WHY, WorkerPause
from services.inference.receipts import ReceiptKeeper
from services.inference.settings import InferenceSettings
from shared import errors, spans, telemetry
from shared.api import embedding, inference
from shared.api.gateway import Check
from shared.api.generation import ChatMessage, Generation, Sampling, Usage
from shared.api.inference import Chunk, ModelStatus
from shared.discovery import directory
from shared.rpc import RpcCall, StreamCall, serves
from shared.stores import file_lock
from shared.telemetry import logs, tracing
from shared.telemetry.answer_metrics import WorkerAnswers
from shared.types import ModelName, Role

log = logs.get()


class Offering(console_status.ConsoleLines, Protocol):
    """What the service needs of its node."""

    metrics: telemetry.Metrics
    #: Whose tasks end with the node.
    tasks: asyncio.TaskGroup

    def offer(self, *, models: tuple[directory.ModelOffer, ...], load: directory.WorkerLoad, not_ready: str = "") -> None: ...


class AnnouncementBoard:
    """Keeps the node's announcement and the gauges true: called at every change, tells what the backend says then."""

    def __init__(self, node: Offering, pause: WorkerPause) -> None:
        self._node = node
        self._pause = pause
        self.backend: Backend | None = None
        #: Models whose engines are asked when somebody reads the metrics.
        self._asked_when_read: set[ModelName] = set()

    def changed(self) -> None:
        if self.backend is None:
            return
        statuses = self.backend.models()
        ready = [status for status in statuses if status.state in inference.SERVED]
        self._node.offer(
            models=tuple(_offer(name, status) for status in statuses for name in (status.model_id, *status.aliases)),
            load=directory.WorkerLoad(
                slots=sum(status.slots for status in ready),
                running=sum(status.running for status in statuses),
                queued=sum(status.queued for status in statuses),
                expected_wait_seconds=self.backend.expected_wait_seconds(),
            ),
            not_ready=why_not_ready(statuses, is_paused=self._pause.is_on),
        )
        for status in statuses:
            self._measure(status)

    def restarting(self, model: ModelName) -> None:
        self._node.metrics.engine_restarts.labels(model=model).inc()

    def _measure(self, status: ModelStatus) -> None:
        metrics, model = self._node.metrics, status.model_id
        # Prometheus sees the growth of what was there before.
        metrics.engine_restarts.labels(model=model).inc(0)
        metrics.worker_up.labels(model=model).set(status.state in inference.SERVED)
        metrics.worker_slots.labels(model=model, state="busy").set(status.running)
        metrics.worker_slots.labels(model=model, state="free").set(status.slots - status.running)
        metrics.queue_depth.labels(model=model).set(status.queued)
        if model not in self._asked_when_read:
            self._asked_when_read.add(model)
            self._ask_when_read(model)

    def _ask_when_read(self, model: ModelName) -> None:
        metrics = self._node.metrics
        if isinstance(self.backend, Measured):
            look = partial(self.backend.figures, model)
            metrics.engine_overhead.labels(model=model).set_function(lambda: look().overhead)
            metrics.engine_step_seconds.labels(model=model).set_function(lambda: look().step_seconds)
            metrics.engine_tokens_per_second.labels(model=model).set_function(lambda: look().tokens_per_second)


def _offer(name: ModelName, status: ModelStatus) -> directory.ModelOffer:
    return directory.ModelOffer(
        name,
        status.context_tokens,
        status.digest,
        ready=status.state in inference.SERVED,
        only_embeds=status.only_embeds,
        loaded=status.state is not inference.ModelState.UNLOADED,
        slots=status.slots,
        busy=status.running + status.queued,
    )


class InferenceService:
    role: ClassVar[Role] = Role.WORKER

    def __init__(self, settings: InferenceSettings, node: Offering, backend: Backend, pause: WorkerPause) -> None:
        self._settings = settings
        self._pause = pause
        self._metrics = node.metrics
        self._answers = WorkerAnswers(node.metrics, backend.name)
        self._backend = backend
        self._receipts = ReceiptKeeper(settings.receipts_path, node.trust.me)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: InferenceSettings, node: Offering) -> AsyncIterator["InferenceService"]:
        """Start the backend; the service is up at once and ready when a model is. Raises BadSettings."""
        pause = WorkerPause(settings.pause_file)
        board = AnnouncementBoard(node, pause)
        say = _say if settings.narration == "plain" else None
        async with file_lock.hold(settings.receipts_path), backend_selection.opened(settings, board, say) as backend:
            board.backend = backend
            board.changed()
            log.info("worker_started", backend=backend.name, models=[status.model_id for status in backend.models()])
            if settings.pause_file is not None:
                node.tasks.create_task(pause.watch(board.changed))
            if settings.narration == "plain" or settings.status_file is not None:
                node.tasks.create_task(_narrator(settings, node, backend, pause).run())
            service = cls(settings, node, backend, pause)
            node.tasks.create_task(service._receipts.run())
            yield service

    async def checks(self) -> tuple[Check, ...]:
        """Ready by the rule of the announcement; every model is shown with its trouble all the same."""
        paused = (Check(name="owner", ok=False, detail=WHY),) if self._pause.is_on else ()
        return paused + self._model_checks()

    def _model_checks(self) -> tuple[Check, ...]:
        statuses = self._backend.models()
        needed = bool(why_not_ready(statuses, is_paused=False))
        return tuple(
            Check(name=f"model {status.model_id}", ok=status.state in inference.SERVED, detail=status.detail, needed=needed)
            for status in statuses
        ) or (Check(name="models", ok=False, detail=why_not_ready((), is_paused=False)),)

    def asgi(self) -> infer_http.InferHttp:
        return infer_http.InferHttp(self.generate, self._settings.service_token)

    @serves(inference.process_prompt)
    async def process_prompt(self, request: inference.ProcessPrompt, stream: StreamCall[Chunk]) -> Generation:
        origin = generation_job.JobOrigin(str(request.request_id), request.salt, request.delivered)
        credited_items = (lambda: stream.credited_items) if request.reader_paced else None
        with self._receipts.of(request.request_id, len(request.delivered), credited_items) as work:
            sink = work.metered(_MeshSink(stream))
            gathered = None if request.streamed else CoalescedChunks(sink)
            generation = await self.generate(request.model_config.model, request.prompt, request.model_config, gathered or sink, origin)
            if gathered is not None:
                await gathered.flush()
            work.finished(generation)
        return generation

    @serves(inference.read_receipts)
    async def read_receipts(self, request: inference.ReadReceipts, call: RpcCall) -> inference.Receipts:
        return inference.Receipts(self._receipts.read(request.request_ids))

    @serves(embedding.embed)
    async def embed(self, request: embedding.Embed, stream: StreamCall[embedding.Vectors]) -> embedding.Embedded:
        # Whatever it was called: the backend, the metrics and the log know one name.
        model = self._status(request.model).model_id
        return await embedding_runs.run(self._backend, model, request, embedding_runs.MeshVectorSink(stream), self._metrics)

    @serves(inference.list_available_models)
    async def list_available_models(self, request: inference.ListAvailableModels, call: RpcCall) -> inference.AvailableModels:
        return inference.AvailableModels(self._backend.models())

    @serves(inference.get_model_status)
    async def get_model_status(self, request: inference.GetModelStatus, call: RpcCall) -> ModelStatus:
        return self._status(request.model_id)

    @serves(inference.load_model)
    async def load_model(self, request: inference.LoadModel, call: RpcCall) -> ModelStatus:
        loader, model = self._loader(), self._status(request.model_id).model_id
        return await loader.load(model, pin=request.pin)

    @serves(inference.unload_model)
    async def unload_model(self, request: inference.UnloadModel, call: RpcCall) -> ModelStatus:
        loader, model = self._loader(), self._status(request.model_id).model_id
        return await loader.unload(model)

    async def generate(
        self,
        model: ModelName,
        prompt: str | tuple[ChatMessage, ...],
        asked: Sampling,
        sink: Sink,
        origin: generation_job.JobOrigin = generation_job.NOWHERE,
    ) -> Generation:
        """Run a prompt, whichever door it came by. Raises UnknownModel and BadRequest, and what the backend raises."""
        status = self._status(model)
        # Whatever it was called: the backend, the metrics and the log know one name.
        model = status.model_id
        if status.only_embeds:
            raise errors.BadRequest(f"{model} gives embeddings and no answers", hint="ask for embeddings, or ask another model")
        job = generation_job.check(
            model, prompt, asked, context_tokens=status.context_tokens or None, draw_seed=lambda: secrets.randbits(63), origin=origin
        )
        timed = _TimedSink(sink)
        with self._answers.serving("chat", "processPrompt", model) as served:
            served.at_once = asked.n or 1
            try:
                with tracing.span(f"chat {model}", _attributes(job, self._backend.name)) as span:
                    try:
                        generation = await self._backend.generate(job, timed)
                        timed.settle(generation.usage)
                        span.tell(_outcome(generation))
                    finally:
                        timed.trace(span)
            finally:
                served.first_text_seconds, served.output_tokens = timed.first_text_seconds, timed.tokens
                log.info("generation ended", model=model, completion_tokens=timed.tokens, milliseconds=round(timed.seconds() * 1000))
            served.input_tokens = generation.usage.prompt_tokens
        return generation

    def _loader(self) -> Loader:
        if not isinstance(self._backend, Loader):
            raise errors.BadRequest(
                f"the models of the backend {self._backend.name} are loaded by another program", hint="ask that program to load it"
            )
        return self._backend

    def _status(self, model: ModelName) -> ModelStatus:
        statuses = self._backend.models()
        for status in statuses:
            if model in (status.model_id, *status.aliases):
                return status
        served = ", ".join(status.model_id for status in statuses) or "none"
        raise errors.UnknownModel(
            f"this worker does not serve {model[:80]!r}; it serves: {served}",
            hint="name one of these, or add it to MODELS; `aicli models` lists what all workers serve",
        )


def _attributes(job: generation_job.GenerationJob, backend: str) -> dict[str, spans.Value]:
    """By the names of OpenTelemetry; what was asked with no word of what was said."""
    parameters = job.parameters
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": backend,
        "gen_ai.request.model": job.model,
        "gen_ai.request.max_tokens": parameters.max_tokens or 0,
        "gen_ai.request.temperature": parameters.temperature,
        "gen_ai.request.top_p": parameters.top_p,
    }


def _outcome(generation: Generation) -> dict[str, spans.Value]:
    return {
        "gen_ai.usage.input_tokens": generation.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": generation.usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": generation.usage.cached_tokens,
        "gen_ai.response.finish_reasons": str(generation.finish_reason),
    }


class _MeshSink:
    """The stream of a call."""

    def __init__(self, stream: StreamCall[Chunk]) -> None:
        self._stream = stream
        self.send = stream.send

    def accept(self, prompt_tokens: int | None) -> None:
        self._stream.accept(None if prompt_tokens is None else inference.PromptAccepted(prompt_tokens))


class _TimedSink:
    """Passes an answer on, and notes how many tokens it had and when its first text came."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._started = time.monotonic()
        self._token_ids = 0
        self._pieces = 0
        self._settled: int | None = None
        self.first_text_seconds: float | None = None
        self._came_ns = spans.now_ns()
        self._accepted_ns: int | None = None
        self._first_ns: int | None = None

    def accept(self, prompt_tokens: int | None) -> None:
        self._accepted_ns = spans.now_ns()
        self._sink.accept(prompt_tokens)

    async def send(self, item: Chunk) -> None:
        if self._first_ns is None:
            self._first_ns = spans.now_ns()
        self._token_ids += len(item.token_ids)
        self._pieces += bool(item.text or item.tool_calls)
        if self.first_text_seconds is None and item.text:
            self.first_text_seconds = self.seconds()
        await self._sink.send(item)

    def trace(self, span: tracing.span) -> None:
        """What it was doing when, as far as it came."""
        ended_ns = spans.now_ns()
        accepted_ns = self._accepted_ns or self._first_ns or ended_ns
        first_ns = self._first_ns or ended_ns
        span.part("queue", self._came_ns, accepted_ns)
        if self._accepted_ns is not None:
            span.part("prefill", accepted_ns, first_ns)
        if self._first_ns is not None:
            span.part("decode", first_ns, ended_ns)

    def settle(self, usage: Usage) -> None:
        """The answer has ended, with this."""
        self._settled = usage.completion_tokens

    @property
    def tokens(self) -> int:
        """Of an answer that was cut off what is known: a backend that tells no token ids sent at least one token in each piece."""
        return self._token_ids or self._pieces if self._settled is None else self._settled

    def seconds(self) -> float:
        return time.monotonic() - self._started


def why_not_ready(statuses: tuple[ModelStatus, ...], *, is_paused: bool) -> str:
    """Why this worker is not to be used, for its announcement and /readyz alike; empty where one of its models takes prompts."""
    if is_paused:
        return WHY
    if any(status.state in inference.SERVED for status in statuses):
        return ""
    return "; ".join(f"{status.model_id}: {status.detail}" for status in statuses) or "it has no model to serve"


def _narrator(settings: InferenceSettings, node: Offering, backend: Backend, pause: WorkerPause) -> console_status.ConsoleStatus:
    def look() -> console_status.WorkerFacts:
        return console_status.survey(node, backend.models(), is_paused=pause.is_on, now=time.time())

    return console_status.ConsoleStatus(node.id, look, _say if settings.narration == "plain" else None, settings.status_file)


def _say(line: str) -> None:
    """One line to whoever watches; a terminal that was closed is no reason to stop serving."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
