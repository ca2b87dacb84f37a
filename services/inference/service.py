"""The inference service: a worker's RPC handlers."""

import asyncio
import contextlib
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import ClassVar, Generic, TypeVar

import msgspec

from services.inference import console_status, energy, features, infer_http, jobs, missing_libraries, moderation, user_logout
from services.inference.announcements import PAUSED, Announcements
from services.inference.backend_interface import Backend, Sink, VectorSink
from services.inference.backends import backend_selection
from services.inference.features import Site
from services.inference.model_pulls import ModelConsent, ModelPulls
from services.inference.model_trust import ModelTrust
from services.inference.models.model_store import ModelStore
from services.inference.receipts import AdoptedReceipts, ReceiptKeeper, keep_key
from services.inference.settings import InferenceSettings
from shared import errors, spans
from shared.api import embedding, inference
from shared.api.embedding import Embedded, Vectors
from shared.api.gateway import Check
from shared.api.generation import ChatMessage, GenerationEnd, Sampling, Usage
from shared.api.inference import (
    Chunk,
    Conversion,
    Converted,
    ConvertedPart,
    Fit,
    ModelFacts,
    ModelFit,
    ModelStatus,
    Moderate,
    Moderated,
    ModerationNotice,
)
from shared.api.method import Nothing
from shared.api.node import FIRST_MODEL
from shared.background.deferred_memory import DeferredMemory
from shared.background.items import BackgroundItems
from shared.background.tasks import keep
from shared.node import Node
from shared.rpc import RpcCall, StreamCall, serves
from shared.stores import replica_files
from shared.telemetry import logs, tracing
from shared.telemetry.answer_metrics import WorkerAnswers
from shared.telemetry.readiness import OwnCheck
from shared.types import Ability, ModelName, Role

#: Chunks held back are lost if the worker dies; another worker then computes them again.
GATHER_SECONDS = 0.25
#: Most tokens in a chunk, which then has a few hundred characters and at most 16 KiB.
MAX_TOKENS = 64
#: The most converted tokens or text in one message, which may have 1 MiB.
PART_BYTES = 256 * 1024

log = logs.get()

Item = TypeVar("Item", Chunk, Vectors)


class InferenceService:
    role: ClassVar[Role] = Role.WORKER

    def __init__(self, settings: InferenceSettings, node: Node, backend: Backend, watcher: Announcements) -> None:
        self._settings = settings
        self._consent = ModelConsent(node, settings.allow_pulls)
        self._watcher = watcher
        self._answers = WorkerAnswers(node.metrics, backend.name)
        self._backend = backend
        self._receipts = ReceiptKeeper(replica_files.path_of(settings.receipts_path, node.trust.me.id), node.trust.me)
        self._adopted = AdoptedReceipts(settings.receipts_path, node.trust.me.id, BackgroundItems(DeferredMemory(), node.metrics))
        self._pulls = ModelPulls(settings, self._consent.is_given, node)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: InferenceSettings, node: Node) -> AsyncIterator["InferenceService"]:
        """Start the backend; the service is up at once and ready when a model is. Raises BadSettings."""
        trust = await asyncio.to_thread(ModelTrust.open, settings)
        accepts_models = ModelConsent(node, settings.allow_pulls).is_given
        watcher = Announcements(node, settings.pause_file, queue=settings.queue, accepts_models=accepts_models)
        print_line = _print_line if settings.console == "plain" else None
        site = Site(settings=settings, node=node, watcher=watcher)
        if (open_backend := features.find_backend(settings.backend)) is not None:
            opening = open_backend(site)
        else:
            opening = backend_selection.opened(settings, watcher, print_line, trust.judge, features.find_program_starter)
        async with (
            replica_files.held(settings.receipts_path, node.trust.me.id) as receipts,
            opening as backend,
        ):
            watcher.backend = backend
            watcher.changed()
            log.info("worker_started", backend=backend.name, models=[status.model_id for status in backend.models()])
            node.tasks.create_task(keep("pause file", watcher.follow_pause))
            for task in features.tasks():
                node.tasks.create_task(keep(task.name, partial(task.run, site)))

            def is_busy() -> bool:
                return any(status.running for status in backend.models())

            node.tasks.create_task(keep("energy", partial(energy.measure, node.metrics, settings, node.host, is_busy)))
            if print_line is not None or settings.status_file is not None:
                console = console_status.ConsoleStatus(
                    node.id,
                    lambda: console_status.read_facts(
                        node, backend.models(), notices=watcher.notices, is_paused=watcher.is_paused, now=time.time()
                    ),
                    print_line,
                    settings.status_file,
                )
                node.tasks.create_task(keep("console", console.run))
            service = cls(settings, node, backend, watcher)
            node.tasks.create_task(keep("receipts", service._receipts.run))
            if replica_files.is_shared(settings.receipts_path):
                await asyncio.to_thread(keep_key, receipts, settings.node_key_file)
                node.tasks.create_task(keep("adoption of receipts", service._adopted.run))
            if backend.has_engines:
                store = ModelStore(settings.store_path)
                node.tasks.create_task(keep("trust", partial(trust.run, node.rpc, store)))
                machine = partial(
                    watcher.follow_machine, store.pulls, service._pulls.assigned, service._pulls.refused, missing_libraries.find
                )
                node.tasks.create_task(keep("machine", machine))
                if (quota := settings.model_store_quota_bytes) is not None:
                    node.metrics.model_store_used_ratio.set_function(lambda: store.used_bytes() / quota)
                node.tasks.create_task(keep("pulls at start", partial(service._pulls.pull_at_start, watcher.wait_for_models)))
                node.tasks.create_task(keep("quarantine", partial(service._pulls.quarantine, backend.models)))
                exchange = partial(service._pulls.exchange_blocks, is_busy, lambda: watcher.is_paused)
                node.tasks.create_task(keep("exchange of blocks", exchange))
            yield service
            node.leave_reason = await user_logout.find_reason()

    async def checks(self) -> tuple[Check, ...]:
        """Report the same readiness as the announcement, and every model with its problem."""
        statuses = self._backend.models()
        why = self._watcher.why_not_ready(statuses, is_paused=False)
        checks = [
            OwnCheck(name=f"model {status.model_id}", ok=status.state in inference.SERVED, detail=status.detail, needed=bool(why))
            for status in statuses
        ]
        paused = [OwnCheck(name="owner", ok=False, detail=PAUSED)] if self._watcher.is_paused else []
        name = "models" if self._settings.models_pull else FIRST_MODEL
        return (*paused, *(checks or [OwnCheck(name=name, ok=False, detail=why)]))

    def asgi(self) -> infer_http.InferHttp:
        return infer_http.InferHttp(self.generate, self.run_embedding, self._settings.service_token)

    @serves(inference.process_prompt)
    async def process_prompt(self, request: inference.ProcessPrompt, stream: StreamCall[Chunk]) -> GenerationEnd:
        origin = jobs.JobOrigin(
            request=str(request.request_id),
            salt=request.salt,
            delivered=request.delivered,
            numerics=request.numerics,
            open_ended=request.open_ended,
            is_batch=request.batch,
        )
        sink = _MeshSink(stream, lambda: self._status(request.model_config.model).numerics)
        credited_items = (lambda: stream.credited_items) if request.reader_paced else None
        with self._receipts.meter(request.request_id, len(request.delivered), sink, credited_items) as meter:
            gathered = None if request.streamed else CoalescedChunks(meter)
            generation = await self.generate(request.model_config.model, request.prompt, request.model_config, gathered or meter, origin)
            if gathered is not None:
                await gathered.flush()
            meter.finished(generation)
        return generation

    @serves(inference.read_receipts)
    async def read_receipts(self, request: inference.ReadReceipts, call: RpcCall) -> inference.Receipts:
        return inference.Receipts(self._receipts.read(request.request_ids) + self._adopted.read(request.request_ids))

    @serves(embedding.embed)
    async def embed(self, request: embedding.Embed, stream: StreamCall[Vectors]) -> Embedded:
        return await self.run_embedding(request, _MeshSink(stream))

    @serves(embedding.rank)
    async def rank(self, request: embedding.Embed, stream: StreamCall[Vectors]) -> Embedded:
        if request.query is None:
            raise errors.BadRequest("query is missing")
        return await self.embed(request, stream)

    @serves(inference.moderate)
    async def moderate(self, request: Moderate, stream: StreamCall[ModerationNotice]) -> Moderated:
        status = self._status(request.model)
        model = status.model_id
        jobs.check_moderation(request)
        with self._answers.serving("moderation", "moderate", model) as served:
            try:
                if request.format is not None:
                    moderated = await moderation.by_chat(request, self.generate, stream.send)
                elif status.only_moderates:
                    moderated = await self._backend.moderate(request)
                    served.input_tokens = moderated.prompt_tokens
                else:
                    raise errors.BadRequest(f"{model} does not moderate", hint="set task or format where the model is configured")
            finally:
                log.info("moderation ended", model=model, texts=len(request.texts), milliseconds=round(served.seconds * 1000))
        return moderated

    @serves(inference.tokenize)
    async def tokenize(self, request: inference.Tokenize, stream: StreamCall[ConvertedPart]) -> Converted:
        return await self._convert(request, stream)

    @serves(inference.detokenize)
    async def detokenize(self, request: inference.Detokenize, stream: StreamCall[ConvertedPart]) -> Converted:
        return await self._convert(request, stream)

    @serves(inference.render_chat)
    async def render_chat(self, request: inference.RenderChat, stream: StreamCall[ConvertedPart]) -> Converted:
        return await self._convert(request, stream)

    async def _convert(self, request: Conversion, stream: StreamCall[ConvertedPart]) -> Converted:
        """Raises UnknownMethod if the backend can't, and what the backend raises."""
        model = self._status(request.model).model_id
        jobs.check_conversion(request)
        content = await self._backend.convert(msgspec.structs.replace(request, model=model))
        for start in range(0, max(1, len(content)), PART_BYTES):
            await stream.send(ConvertedPart(start, content[start : start + PART_BYTES]))
        # A model that was loaded for it knows its context only now.
        return Converted(self._status(model).context_tokens)

    @serves(inference.list_available_models)
    async def list_available_models(self, request: inference.ListAvailableModels, call: RpcCall) -> inference.AvailableModels:
        return inference.AvailableModels(self._backend.models())

    @serves(inference.get_model_status)
    async def get_model_status(self, request: inference.GetModelStatus, call: RpcCall) -> ModelStatus:
        return self._status(request.model_id)

    @serves(inference.load_model)
    async def load_model(self, request: inference.LoadModel, call: RpcCall) -> ModelStatus:
        return await self._loader().load(self._status(request.model_id).model_id, pin=request.pin, purpose=request.purpose)

    @serves(inference.unload_model)
    async def unload_model(self, request: inference.UnloadModel, call: RpcCall) -> ModelStatus:
        return await self._loader().unload(self._status(request.model_id).model_id)

    @serves(inference.pull_model)
    async def pull_model(self, request: inference.PullModel, stream: StreamCall[inference.PullProgress]) -> inference.PulledModel:
        self._loader()
        return await self._pulls.pull(request, stream)

    @serves(inference.ensure_model)
    async def ensure_model(self, request: inference.EnsureModel, call: RpcCall) -> inference.EnsuredModel:
        self._loader()
        return await self._pulls.ensure(request)

    @serves(inference.remove_model)
    async def remove_model(self, request: inference.RemoveModel, call: RpcCall) -> Nothing:
        self._consent.check_remover(request)
        await self._pulls.remove(request)
        return Nothing()

    @serves(inference.plan_models)
    async def plan_models(self, request: inference.PlanModels, call: RpcCall) -> inference.ModelFits:
        fits = await self._loader().plan(request.models, self._settings.model_defaults())
        planned = zip(request.models, fits, strict=True)
        return inference.ModelFits(tuple([await asyncio.to_thread(self._with_disk, facts, fit) for facts, fit in planned]))

    def _with_disk(self, facts: ModelFacts, fit: ModelFit) -> ModelFit:
        store = ModelStore(self._settings.store_path, self._settings.model_store_quota_bytes)
        try:
            store.ensure_folders()
            store.check_room(facts.file_bytes)
        except errors.TooLarge as error:
            return msgspec.structs.replace(fit, fit=Fit.NO, detail=error.message)
        except OSError as error:
            return msgspec.structs.replace(fit, fit=Fit.NO, detail=f"the store can't be used: {error.strerror}")
        return fit

    @serves(inference.set_model_consent)
    async def set_model_consent(self, request: inference.SetModelConsent, call: RpcCall) -> Nothing:
        self._consent.set(request)
        await self._pulls.consent_changed(accepts_models=request.accepts_models)
        self._watcher.changed()
        return Nothing()

    async def generate(
        self,
        model: ModelName,
        prompt: str | tuple[ChatMessage, ...],
        requested: Sampling,
        sink: Sink,
        origin: jobs.JobOrigin = jobs.NO_ORIGIN,
    ) -> GenerationEnd:
        """Run a prompt from the mesh or from HTTP. Raises UnknownModel and BadRequest, and what the backend raises."""
        status = self._status(model)
        # The backend, the metrics and the log don't know aliases.
        model = status.model_id
        if status.only_embeds:
            raise errors.BadRequest(f"{model} only computes embeddings", hint="request embeddings, or use another model")
        if status.only_moderates:
            raise errors.BadRequest(f"{model} only moderates", hint="use another model")
        if Ability.IMAGES not in status.abilities and not isinstance(prompt, str) and any(message.images for message in prompt):
            raise errors.BadRequest(f"{model} doesn't support images", hint="leave them out, or use another model")
        job = jobs.check_prompt(
            model, prompt, requested, context_tokens=status.context_tokens or None, draw_seed=lambda: secrets.randbits(63), origin=origin
        )
        timed = _TimedSink(sink)
        with self._answers.serving("chat", "processPrompt", model) as served:
            served.at_once = requested.n or 1
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
                log.info("generation ended", model=model, completion_tokens=timed.tokens, milliseconds=round(served.seconds * 1000))
            served.input_tokens = generation.usage.prompt_tokens
        return generation

    async def run_embedding(self, request: embedding.Embed, sink: VectorSink) -> Embedded:
        """Run a request for embeddings. Raises UnknownModel and BadRequest, and what the backend raises."""
        status = self._status(request.model)
        model = status.model_id
        if status.only_moderates:
            raise errors.BadRequest(f"{model} only moderates", hint="use another model")
        jobs.check_texts(request)
        called, operation = (embedding.embed, "embeddings") if request.query is None else (embedding.rank, "rerank")
        with self._answers.serving(operation, called.name.partition(".")[2], model) as served:
            try:
                embedded = await self._backend.embed(msgspec.structs.replace(request, model=model), sink)
            finally:
                milliseconds = round(served.seconds * 1000)
                log.info("embedding ended", operation=operation, model=model, texts=len(request.inputs), milliseconds=milliseconds)
            served.input_tokens = embedded.prompt_tokens
        return embedded

    def _loader(self) -> Backend:
        if not self._backend.has_engines:
            raise errors.BadRequest(
                f"the models of the backend {self._backend.name} are loaded by another program", hint="load the model there"
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


def _attributes(job: jobs.GenerationJob, backend: str) -> dict[str, spans.Value]:
    """Span attributes by OpenTelemetry's conventions; they never hold a text of the prompt or the answer."""
    parameters = job.parameters
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": backend,
        "gen_ai.request.model": job.model,
        "gen_ai.request.max_tokens": parameters.max_tokens or 0,
        "gen_ai.request.temperature": parameters.temperature,
        "gen_ai.request.top_p": parameters.top_p,
    }


def _outcome(generation: GenerationEnd) -> dict[str, spans.Value]:
    return {
        "gen_ai.usage.input_tokens": generation.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": generation.usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": generation.usage.cached_tokens,
        "gen_ai.response.finish_reasons": str(generation.finish_reason),
    }


class _MeshSink(Generic[Item]):
    """The stream of a call, as a backend's sink."""

    def __init__(self, stream: StreamCall[Item], find_numerics: Callable[[], str] = str) -> None:
        self._stream: StreamCall[Item] = stream
        self._find_numerics = find_numerics

    def accept(self, prompt_tokens: int | None) -> None:
        self._stream.accept(None if prompt_tokens is None else inference.PromptAccepted(prompt_tokens, self._find_numerics()))

    async def send(self, item: Item) -> None:
        await self._stream.send(item)


class _TimedSink:
    """Passes an answer on, and records its number of tokens and the time of its first text."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._token_ids = 0
        self._pieces = 0
        self._settled: int | None = None
        self._started_ns = spans.now_ns()
        self._accepted_ns: int | None = None
        self._first_ns: int | None = None
        self.first_text_seconds: float | None = None

    def accept(self, prompt_tokens: int | None) -> None:
        self._accepted_ns = spans.now_ns()
        self._sink.accept(prompt_tokens)

    async def send(self, item: Chunk) -> None:
        if self._first_ns is None:
            self._first_ns = spans.now_ns()
        self._token_ids += len(item.token_ids)
        if item.text or item.reasoning or item.call_parts:
            self._pieces += 1
            if self.first_text_seconds is None:
                self.first_text_seconds = (spans.now_ns() - self._started_ns) / 1e9
        await self._sink.send(item)

    def trace(self, span: tracing.span) -> None:
        ended_ns = spans.now_ns()
        accepted_ns = self._accepted_ns or self._first_ns or ended_ns
        first_ns = self._first_ns or ended_ns
        span.part("queue", self._started_ns, accepted_ns)
        if self._accepted_ns is not None:
            span.part("prefill", accepted_ns, first_ns)
        if self._first_ns is not None:
            span.part("decode", first_ns, ended_ns)

    def settle(self, usage: Usage) -> None:
        self._settled = usage.completion_tokens

    @property
    def tokens(self) -> int:
        """Fall back to a lower bound for an answer that was cut off: without token ids, each piece has at least one token."""
        return self._token_ids or self._pieces if self._settled is None else self._settled


def _print_line(line: str) -> None:
    # A closed terminal must not stop the worker.
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


class CoalescedChunks:
    """Joins the chunks of an answer that is not streamed, because a frame per token would be wasted on it.

    Sends the first chunk at once, so that the caller knows that its answer has begun, and joins the others. ``flush`` it at the end."""

    def __init__(self, sink: Sink, clock: Callable[[], float] = time.monotonic) -> None:
        self._sink = sink
        self._clock = clock
        self._held: dict[int, Chunk] = {}
        self._sent_at = 0.0

    def accept(self, prompt_tokens: int | None) -> None:
        self._sink.accept(prompt_tokens)

    async def send(self, item: Chunk) -> None:
        if item.waiting:
            await self._sink.send(item)
            return
        held = self._held.get(item.answer)
        together = self._held[item.answer] = item if held is None else _joined(held, item)
        is_due = len(together.token_ids) >= MAX_TOKENS or self._clock() - self._sent_at >= GATHER_SECONDS
        if is_due or item.finish is not None:
            await self.flush()

    async def flush(self) -> None:
        held, self._held = self._held, {}
        self._sent_at = self._clock()
        for chunk in held.values():
            await self._sink.send(chunk)


def _joined(first: Chunk, then: Chunk) -> Chunk:
    return msgspec.structs.replace(
        then,
        text=first.text + then.text,
        token_ids=first.token_ids + then.token_ids,
        logprobs=first.logprobs + then.logprobs,
        reasoning=first.reasoning + then.reasoning,
        call_parts=first.call_parts + then.call_parts,
    )
