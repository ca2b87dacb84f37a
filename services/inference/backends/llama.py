"""The `llama` backend: runs GGUF files in our own engine processes, loaded on demand, as many as fit."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from services.inference import engine_speed
from services.inference.backend_interface import Sink, VectorSink, WaitingSink, Watcher
from services.inference.backends.model_cache import CachedModel, EngineInterface, ModelCache, StartEngine
from services.inference.engine import engine_messages, gguf_header
from services.inference.engine_speed import EngineSpeed
from services.inference.jobs import EmbeddingJob, GenerationJob
from services.inference.models import catalog, memory
from services.inference.models.catalog import Catalog, CatalogEntry
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
    """Return a checker of grammars for this model's vocabulary; its process starts with the first grammar."""
    return Checker(model, engine_supervisor.inherited())


async def shaped(job: GenerationJob, style: ToolStyle | None, checker: Checker) -> GenerationJob:
    """Return the job with its grammar, if it needs one. Raises BadRequest, and what ``Checker.check`` raises."""
    if (grammar := grammar_of(job, style)) is None:
        return job
    await checker.check(grammar, field="tools" if job.requested.format is None else "format")
    return replace(job, grammar=grammar)


def grammar_of(job: GenerationJob, style: ToolStyle | None) -> str | None:
    """Build the grammar for a job's format or tools. Pure. Raises BadRequest."""
    wanted, tools = job.requested.format, job.requested.tools
    is_required = job.requested.tool_choice is ToolChoice.REQUIRED
    # The engine refuses tools if the model has no chat template.
    if tools and style is not None and (is_required or wanted is not None):
        call = tool_format.grammar_schema(tools, style)
        if is_required or wanted is None:
            return output_formats.grammar_of_schema(call.schema, field="tools", before=call.prefix, after=call.suffix)
        return output_formats.grammar_of_either(call, wanted)
    return None if wanted is None else output_formats.grammar_of(wanted)


log = logs.get()

Done = TypeVar("Done")

#: How often the store is read.
STORE_LOOK_SECONDS = 1.0


class LlamaBackend:
    name = "llama"

    def __init__(self, cache: ModelCache, watcher: Watcher) -> None:
        self._cache = cache
        self._checkers = {cached.entry.name: checker(cached.entry.file) for cached in cache.all()}
        self._watcher = watcher
        #: The names that the settings give.
        self._configured = frozenset(name for cached in cache.all() for name in cached.entry.names)
        #: Reported already.
        self._not_served: frozenset[ModelName] = frozenset()

    async def follow(self, read_store: Callable[[], tuple[CatalogEntry, ...]], look_seconds: float = STORE_LOOK_SECONDS) -> None:
        """Serve the models that ``read_store``, which blocks, returns, as they change; runs until cancelled."""
        while True:
            await self.update(await asyncio.to_thread(read_store))
            await asyncio.sleep(look_seconds)

    async def update(self, entries: Collection[CatalogEntry]) -> None:
        """Serve these models besides the configured ones. A changed model is removed first and added by a later call."""
        for name in [name for name in self._checkers if not self._cache.has(name)]:
            await self._checkers.pop(name).close()
        room = catalog.MAX_NAMES - len(self._configured)
        wanted = {entry.name: entry for entry in [entry for entry in entries if entry.name not in self._configured][:room]}
        if (not_served := frozenset(entry.name for entry in entries) - wanted.keys()) - self._not_served:
            reason = f"the settings have a model of this name, or there are more than {catalog.MAX_NAMES} names"
            log.warning("models_not_served", models=sorted(not_served), reason=reason)
        self._not_served = not_served
        for cached in self._cache.all():
            name = cached.entry.name
            if name not in self._configured and wanted.get(name) != cached.entry:
                log.info("model_removed", model=name)
                self._cache.remove(name)
        for entry in wanted.values():
            if not self._cache.has(entry.name):
                log.info("model_added", model=entry.name)
                self._checkers[entry.name] = checker(entry.file)
                self._cache.add(entry)

    async def aclose(self) -> None:
        """End the processes that check grammars."""
        for one in self._checkers.values():
            await one.close()

    def models(self) -> tuple[ModelStatus, ...]:
        return tuple(self._status(cached) for cached in self._cache.all())

    def expected_wait_seconds(self) -> float:
        return max((cached.limits.expected_wait_seconds() for cached in self._cache.all()), default=0.0)

    def engine_pid(self, model: ModelName) -> int | None:
        """Return the id of a process that runs ``model``, for tests that kill it."""
        replicas = self._cache.get(model).replicas
        return replicas[0].engine.pid if replicas else None

    async def generate(self, job: GenerationJob, sink: Sink) -> Generation:
        entry = self._cache.get(job.model).entry
        job = job.with_defaults(temperature=entry.temperature, top_p=entry.top_p, repeat_penalty=entry.repeat_penalty)

        async def work(engine: EngineInterface) -> Generation:
            style = None if engine.loaded is None else engine.loaded.tool_style
            return await engine.generate(await shaped(job, style, self._checkers[job.model]), sink)

        return await self._run(job.model, sink, work)

    async def embed(self, job: EmbeddingJob, sink: VectorSink) -> Embedded:
        return await self._run(job.model, WaitingSink(sink), lambda engine: engine.embed(job, sink))

    async def _run(self, model: ModelName, sink: Sink, work: Callable[[EngineInterface], Awaitable[Done]]) -> Done:
        """Run one job on an engine when it is its turn. ``sink`` gets messages about the wait."""
        limits = self._cache.get(model).limits
        limits.enter()
        self._watcher.changed()
        # A load doesn't count, because the next job won't need it; a job that never started counts with the mean.
        seconds = limits.mean_seconds
        try:
            async with self._cache.place(model, sink) as engine:
                started = time.monotonic()
                try:
                    return await work(engine)
                finally:
                    seconds = time.monotonic() - started
        finally:
            limits.leave(seconds)
            self._watcher.changed()

    def figures(self, model: ModelName) -> EngineSpeed:
        return engine_speed.together(replica.engine.figures() for replica in self._cache.get(model).replicas)

    async def load(self, model: ModelName, *, pin: bool | None = None) -> ModelStatus:
        """Load a model now. Raises Unavailable. ``pin`` sets or removes its pin."""
        await self._cache.load(model, pin=pin)
        return self._status(self._cache.get(model))

    async def unload(self, model: ModelName) -> ModelStatus:
        """Unload a model, pinned or not. Raises Overloaded while it has requests."""
        await self._cache.unload(model)
        return self._status(self._cache.get(model))

    def _status(self, cached: CachedModel) -> ModelStatus:
        state, detail = self._cache.state(cached)
        return ModelStatus(
            model_id=cached.entry.name,
            state=state,
            detail=detail,
            backend=self.name,
            context_tokens=_context_tokens(cached),
            slots=cached.limits.slots,
            running=cached.limits.running,
            queued=cached.limits.queued,
            digest=cached.file.digest,
            aliases=cached.entry.aliases,
            pinned=self._cache.is_pinned(cached),
            memory_bytes=self._cache.need_bytes(cached),
            only_embeds=_only_embeds(cached),
        )


@asynccontextmanager
async def opened(
    configured: Catalog,
    options: engine_messages.LoadCommand,
    queue: int,
    budget: memory.MemoryBudget,
    watcher: Watcher,
    *,
    start: StartEngine = engine_supervisor.SupervisedEngine,
    digests_file: Path | None = None,
) -> AsyncIterator[LlamaBackend]:
    """Serve the models of ``configured`` within ``budget``, and end all engines on leaving.

    ``options`` has the values that no entry sets. ``digests_file`` caches digests between starts."""
    log.info("models_known", models=[entry.name for entry in configured.entries], budget_bytes=budget.bytes, budget=budget.source)
    for other in configured.elsewhere:
        log.info("model_elsewhere", model=other.name, at=other.service, path=other.path)
    known = KnownDigests(digests_file)
    cached = ModelCache(configured.entries, options, queue, budget, watcher, start=start, known=known)
    async with cached.opened() as cache, aclosing(LlamaBackend(cache, watcher)) as backend:
        yield backend


def _loaded(cached: CachedModel) -> engine_messages.Loaded | None:
    return next((replica.engine.loaded for replica in cached.replicas if replica.engine.loaded is not None), None)


def _only_embeds(cached: CachedModel) -> bool:
    """Ask the loaded model, or else its file; False if unknown."""
    loaded = _loaded(cached)
    if loaded is not None:
        return loaded.only_embeds
    look = cached.file.look
    # A model without a KV cache can't generate text.
    return look is not None and look.header is not None and gguf_header.kv_bytes_per_token(look.header) == 0


def _context_tokens(cached: CachedModel) -> int:
    """Ask the loaded model, or else estimate from its file; 0 if unknown."""
    loaded = _loaded(cached)
    if loaded is not None:
        return loaded.context_tokens
    look = cached.file.look
    return 0 if look is None or look.header is None else memory.context_tokens(look.header, cached.entry)
