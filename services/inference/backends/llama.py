"""The `llama` backend: GGUF files in engine processes of our own, loaded when they are asked for, as many as have room."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from services.inference.backends.model_cache import CachedModel, EngineInterface, ModelCache, StartEngine
from services.inference.engine import engine_messages
from services.inference.engine.gguf import gguf_header
from services.inference.jobs import engine_speed
from services.inference.jobs.backend_interface import Sink, Watcher
from services.inference.jobs.embedding_interface import VectorSink, WaitingSink
from services.inference.jobs.embedding_job import EmbeddingJob
from services.inference.jobs.engine_speed import EngineSpeed
from services.inference.jobs.generation_job import GenerationJob
from services.inference.models import memory
from services.inference.models.catalog import Catalog
from services.inference.models.digests import KnownDigests
from services.inference.structured_output import output_formats
from services.inference.structured_output.grammar_checker import Checker
from services.inference.supervision import engine_supervisor
from services.inference.tool_calls import tool_format
from services.inference.tool_calls.tool_format import ToolStyle
from shared.api.embedding import Embedded
from shared.api.generation import Generation, ToolChoice
from shared.api.inference import ModelStatus
from shared.telemetry import logs
from shared.types import ModelName


def checker(model: Path) -> Checker:
    """Tries grammars on this model's vocabulary, in a process of its own that starts with the first one."""
    return Checker(model, engine_supervisor.inherited())


async def shaped(job: GenerationJob, style: ToolStyle | None, tries: Checker) -> GenerationJob:
    """The job with its grammar, if it asks for any. Raises BadRequest for what cannot be had, and what ``Checker.check`` does."""
    if (grammar := grammar_of(job, style)) is None:
        return job
    await tries.check(grammar, field="format" if job.asked.format is not None else "tools")
    return replace(job, grammar=grammar)


def grammar_of(job: GenerationJob, style: ToolStyle | None) -> str | None:
    """Pure. Raises BadRequest."""
    if job.asked.format is not None:
        return output_formats.grammar_of(job.asked.format)
    # Of a model that takes no tools the engine says so.
    if job.asked.tool_choice is ToolChoice.REQUIRED and style is not None:
        wanted = tool_format.grammar_schema(job.asked.tools, style)
        return output_formats.grammar_of_schema(wanted.schema, field="tools", before=wanted.prefix, after=wanted.suffix)
    return None


log = logs.get()

#: What a job ends with.
Done = TypeVar("Done")


class LlamaBackend:
    name = "llama"

    def __init__(self, residents: ModelCache, checkers: Mapping[ModelName, Checker], watcher: Watcher) -> None:
        self._residents = residents
        self._checkers = checkers
        self._watcher = watcher

    def models(self) -> tuple[ModelStatus, ...]:
        return tuple(self._status(resident) for resident in self._residents.all())

    def expected_wait_seconds(self) -> float:
        return max((resident.intake.expected_wait_seconds() for resident in self._residents.all()), default=0.0)

    def engine_pid(self, model: ModelName) -> int | None:
        """A process that runs ``model`` now, for whoever looks after the machine."""
        replicas = self._residents.get(model).replicas
        return replicas[0].engine.pid if replicas else None

    async def generate(self, job: GenerationJob, sink: Sink) -> Generation:
        async def work(engine: EngineInterface) -> Generation:
            style = None if engine.loaded is None else engine.loaded.tool_style
            return await engine.generate(await shaped(job, style, self._checkers[job.model]), sink)

        return await self._run(job.model, sink, work)

    async def embed(self, job: EmbeddingJob, sink: VectorSink) -> Embedded:
        return await self._run(job.model, WaitingSink(sink), lambda engine: engine.embed(job, sink))

    async def _run(self, model: ModelName, sink: Sink, work: Callable[[EngineInterface], Awaitable[Done]]) -> Done:
        """Work of one job at one engine, in its turn. ``sink`` hears what it waits for."""
        intake = self._residents.get(model).intake
        intake.enter()
        self._watcher.changed()
        # The time of a load is the load's and says nothing of the next job; a job that never began counts as any other.
        seconds = intake.mean_seconds
        try:
            async with self._residents.place(model, sink) as engine:
                started = time.monotonic()
                try:
                    return await work(engine)
                finally:
                    seconds = time.monotonic() - started
        finally:
            intake.leave(seconds)
            self._watcher.changed()

    def figures(self, model: ModelName) -> EngineSpeed:
        return engine_speed.together(replica.engine.figures() for replica in self._residents.get(model).replicas)

    async def load(self, model: ModelName, *, pin: bool | None = None) -> ModelStatus:
        """Load a model now; raises Unavailable where that cannot be. With ``pin`` it stays, or no longer has to."""
        await self._residents.load(model, pin=pin)
        return self._status(self._residents.get(model))

    async def unload(self, model: ModelName) -> ModelStatus:
        """Take a model out of memory, pinned or not; raises Overloaded while it has requests."""
        await self._residents.unload(model)
        return self._status(self._residents.get(model))

    def _status(self, resident: CachedModel) -> ModelStatus:
        state, detail = self._residents.state(resident)
        return ModelStatus(
            model_id=resident.entry.name,
            state=state,
            detail=detail,
            backend=self.name,
            context_tokens=_context_tokens(resident),
            slots=resident.intake.slots,
            running=resident.intake.running,
            queued=resident.intake.queued,
            digest=resident.file.digest,
            aliases=resident.entry.aliases,
            pinned=self._residents.is_pinned(resident),
            memory_bytes=self._residents.need_bytes(resident),
            only_embeds=_only_embeds(resident),
        )


@asynccontextmanager
async def opened(
    catalogue: Catalog,
    options: engine_messages.LoadCommand,
    queue: int,
    budget: memory.Budget,
    watcher: Watcher,
    *,
    start: StartEngine = engine_supervisor.SupervisedEngine,
    digests_file: Path | None = None,
) -> AsyncIterator[LlamaBackend]:
    """Serve the models of ``catalogue`` within ``budget``; ``options`` is what no entry says. Ends all engines on leaving.

    ``digests_file`` is where the digests of their files are kept between two starts; without it they are not."""
    log.info("models_known", models=[entry.name for entry in catalogue.entries], budget_bytes=budget.bytes, budget=budget.source)
    for other in catalogue.elsewhere:
        log.info("model_elsewhere", model=other.name, service=other.service, path=other.path)
    async with AsyncExitStack() as opened_checkers:
        checkers = {entry.name: await opened_checkers.enter_async_context(checker(entry.file)) for entry in catalogue.entries}
        known = KnownDigests(digests_file)
        async with ModelCache(catalogue.entries, options, queue, budget, watcher, start=start, known=known).opened() as residents:
            yield LlamaBackend(residents, checkers, watcher)


def _loaded(resident: CachedModel) -> engine_messages.Loaded | None:
    return next((replica.engine.loaded for replica in resident.replicas if replica.engine.loaded is not None), None)


def _only_embeds(resident: CachedModel) -> bool:
    """As loaded, or as its file says; False while that is not known."""
    loaded = _loaded(resident)
    if loaded is not None:
        return loaded.only_embeds
    look = resident.file.look
    # What keeps nothing of a text cannot go on with it.
    return look is not None and look.header is not None and gguf_header.kv_bytes_per_token(look.header) == 0


def _context_tokens(resident: CachedModel) -> int:
    """As loaded, or as it will be; 0 while that is not known."""
    loaded = _loaded(resident)
    if loaded is not None:
        return loaded.context_tokens
    look = resident.file.look
    return 0 if look is None or look.header is None else memory.context_tokens(look.header, resident.entry)
