"""The `llama` backend: runs GGUF files in our own engine processes, loaded on demand, as many as fit."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from services.inference import engine_speed, missing_libraries
from services.inference.backend_interface import Backend, Sink, VectorSink, Watcher
from services.inference.backends.model_cache import CachedModel, JudgeModel, ModelCache, ModelPrograms, SendWaiting
from services.inference.chat.model_chat import ModelChat
from services.inference.chat.prompt_plan import ReasoningDefaults
from services.inference.engine import engine_messages
from services.inference.engine_speed import EngineSpeed
from services.inference.jobs import GenerationJob
from services.inference.models import catalog, memory
from services.inference.models.catalog import Catalog, CatalogEntry, Defaults
from services.inference.models.model_files import KnownDigests
from services.inference.supervision.engine_supervisor import SupervisedEngine
from shared import errors
from shared.api import generation
from shared.api.embedding import Embed, Embedded, Vectors
from shared.api.generation import GenerationEnd
from shared.api.inference import Chunk, Conversion, Detokenize, ModelFacts, ModelFit, ModelState, ModelStatus, Tokenize
from shared.gguf import gguf_header
from shared.gguf.gguf_header import PoolingKind
from shared.models.trust_rules import TRUSTED
from shared.telemetry import logs
from shared.types import Ability, LoadPurpose, ModelName

log = logs.get()

Done = TypeVar("Done")

PROGRAMS = ModelPrograms(SupervisedEngine, ModelChat)
#: How often the store and MODELS_DIR are read.
STORE_LOOK_SECONDS = 1.0


class LlamaBackend(Backend):
    name = "llama"
    has_engines = True

    def __init__(self, cache: ModelCache, watcher: Watcher) -> None:
        self._cache = cache
        self._watcher = watcher
        #: The names that the settings give.
        self._configured = frozenset(name for cached in cache.all() for name in cached.entry.names)
        #: Reported already.
        self._not_served: frozenset[ModelName] = frozenset()

    def print_plans(self, print_line: Callable[[str], None] | None) -> None:
        """Print how each model will be loaded, from now on."""
        self._cache.print_line = print_line

    async def follow(self, read_later: Callable[[], tuple[CatalogEntry, ...]]) -> None:
        """Serve the models that ``read_later``, which blocks, returns, as they change; runs until cancelled."""
        while True:
            # While a network file system is down, its models stay.
            with suppress(OSError):
                await self.update(await asyncio.to_thread(read_later))
            self._cache.recheck_damaged()
            await asyncio.sleep(STORE_LOOK_SECONDS)

    async def update(self, entries: Collection[CatalogEntry]) -> None:
        """Serve these models besides the configured ones. A changed model is removed first and added by a later call."""
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
                self._cache.add(entry)

    def models(self) -> tuple[ModelStatus, ...]:
        return tuple(status for cached in self._cache.all() for status in self._statuses(cached))

    def expected_wait_seconds(self) -> float:
        return max((cached.limits.expected_wait_seconds() for cached in self._cache.all()), default=0.0)

    async def generate(self, job: GenerationJob, sink: Sink) -> GenerationEnd:
        cached = self._cache.get(job.model)
        entry, chat = cached.entry, cached.chat
        job = replace(job, adapter=cached.adapter_number(job.model)).with_defaults(
            temperature=entry.temperature, top_p=entry.top_p, repeat_penalty=entry.repeat_penalty
        )

        async def work(engine: SupervisedEngine) -> GenerationEnd:
            if job.delivered and job.numerics != _numerics(cached):
                raise errors.UnknownModel(
                    f"this worker's {job.model} computes other tokens than the worker that began the answer", hint="ask another worker"
                )
            if entry.program is not None:
                # It has its own formats and tools.
                return await engine.generate(job, sink)
            prompt, rendered = await chat.prepare(job, ReasoningDefaults(entry.reasoning, entry.reasoning_budget))
            answers = chat.answers(job, rendered, sink, partial(self._watcher.parse_failed, job.model))
            return answers.complete(await engine.generate(replace(job, prompt=prompt), answers))

        # Prompts without a salt share nothing.
        salt = f"{job.adapter}:{job.salt}"
        prefixes = generation.hash_prefixes(job.messages, salt, job.requested.tools) if job.salt and entry.replicas != 1 else ()
        return await self._run(job, lambda reason: sink.send(Chunk("", (), waiting=reason)), work, prefixes, is_batch=job.is_batch)

    async def embed(self, job: Embed, sink: VectorSink) -> Embedded:
        if (base := self._cache.get(job.model).entry.name) != job.model:
            raise errors.BadRequest(f"{job.model} is an adapter, which only generates text", hint=f"use {base}")
        return await self._run(
            job, lambda reason: sink.send(Vectors(waiting=reason)), lambda engine: engine.embed(job, sink), is_batch=job.batch
        )

    async def convert(self, request: Conversion) -> bytes:
        cached = self._cache.get(request.model)
        if cached.entry.program is not None:
            return await super().convert(request)
        async with self._cache.place(cached.entry.name, None) as engine:
            if isinstance(request, Detokenize):
                return await engine.convert(request.token_ids)
            if isinstance(request, Tokenize) and request.raw:
                return await engine.convert(request.messages[0].content, add_special=request.add_special_tokens)
            rendered = await cached.chat.render(request, marked=isinstance(request, Tokenize))
            if isinstance(request, Tokenize):
                return await engine.convert(rendered, add_special=request.add_special_tokens)
            return rendered.encode("utf-8", "replace")

    async def _run(
        self,
        job: GenerationJob | Embed,
        send: SendWaiting,
        work: Callable[[SupervisedEngine], Awaitable[Done]],
        prefixes: Sequence[bytes] = (),
        *,
        is_batch: bool,
    ) -> Done:
        """Run one job on an engine when it is its turn."""
        cached = self._cache.get(job.model)
        model, limits = cached.entry.name, cached.limits
        # Another program doesn't know batches: there, all jobs are alike.
        is_batch = is_batch and cached.entry.program is None
        limits.enter(is_batch=is_batch)
        self._watcher.load_changed()
        # A load doesn't count, because the next job won't need it; a job that never started counts with the mean.
        seconds = limits.mean_seconds
        try:
            async with self._cache.place(model, send, prefixes) as engine:
                started = time.monotonic()
                try:
                    return await work(engine)
                finally:
                    seconds = time.monotonic() - started
        finally:
            limits.leave(seconds, is_batch=is_batch)
            self._watcher.load_changed()

    def figures(self, model: ModelName) -> EngineSpeed:
        cached = self._cache.get(model)
        figures = engine_speed.together(replica.engine.figures() for replica in cached.replicas)
        return replace(figures, vram_bytes=cached.managed.need.vram if cached.replicas else 0)

    async def load(self, model: ModelName, *, pin: bool | None = None, purpose: LoadPurpose | None = None) -> ModelStatus:
        await self._cache.load(self._cache.get(model).entry.name, pin=pin, purpose=purpose)
        return self._status_of(model)

    async def unload(self, model: ModelName) -> ModelStatus:
        await self._cache.unload(self._cache.get(model).entry.name)
        return self._status_of(model)

    async def plan(self, models: Sequence[ModelFacts], defaults: Defaults) -> list[ModelFit]:
        return await self._cache.plan(models, defaults)

    def _status_of(self, model: ModelName) -> ModelStatus:
        return next(status for status in self._statuses(self._cache.get(model)) if status.model_id == model)

    def _statuses(self, cached: CachedModel) -> Iterator[ModelStatus]:
        """Yield the status of the model, and of its adapters, which share its slots."""
        base = self._status(cached)
        yield base
        for adapter in cached.adapters:
            problem = adapter.problem or ("its model generates no text" if base.only_embeds else "")
            is_failed = problem and base.state is not ModelState.FAILED
            yield msgspec.structs.replace(
                base,
                model_id=adapter.adapter.name,
                state=ModelState.FAILED if problem else base.state,
                detail=problem if is_failed else base.detail,
                digest=adapter.digest_with(base.digest),
                aliases=(),
                memory_bytes=0,
                parent=base.model_id,
            )

    def _status(self, cached: CachedModel) -> ModelStatus:
        state, detail = self._cache.state(cached)
        context_tokens, only_embeds, sees_images = _facts(cached)
        need, check = cached.managed.need, cached.file.checked
        header = None if check is None else check.header
        program = cached.entry.program
        found = cached.chat.abilities | ({Ability.IMAGES} if sees_images else set())
        found |= {Ability.TOOLS} if program is not None and program.tools else set()
        pooling = None if header is None else header.pooling_type
        return ModelStatus(
            model_id=cached.entry.name,
            state=state,
            detail=detail,
            backend=self.name,
            context_tokens=context_tokens,
            slots=cached.limits.slots,
            running=cached.limits.running,
            queued=cached.limits.queued,
            digest=cached.file.digest_with_projector if sees_images else cached.file.digest,
            aliases=cached.entry.aliases,
            pinned=cached.managed.pinned,
            memory_bytes=need.ram + need.vram,
            only_embeds=only_embeds,
            numerics=_numerics(cached),
            distrust=cached.verdict.cause or "",
            can_suit_agents=cached.can_suit_agents and cached.purpose is not LoadPurpose.AGENTS,
            batch_busy=cached.limits.batch,
            yields=program is None,
            abilities=abilities(pooling, found, writes=header is not None and not only_embeds, embeds=only_embeds),
        )


def _numerics(cached: CachedModel) -> str:
    return "" if cached.loaded is None else cached.loaded.numerics


@asynccontextmanager
async def opened(
    configured: Catalog,
    options: engine_messages.LoadCommand,
    queue: int,
    budget: memory.MemoryBudget,
    watcher: Watcher,
    *,
    programs: ModelPrograms = PROGRAMS,
    digests_file: Path | None = None,
    swap_seconds: float = 0.0,
    judge: JudgeModel = lambda _entry, _hashes: TRUSTED,
) -> AsyncIterator[LlamaBackend]:
    """Serve the models of ``configured`` within ``budget``, and end all engines on leaving.

    ``options`` has the values that no entry sets. ``digests_file`` caches digests between starts."""
    log.info("models_known", models=[entry.name for entry in configured.entries], budget_bytes=budget.bytes, budget=budget.source)
    for other in configured.elsewhere:
        log.info("model_elsewhere", model=other.name, at=other.service, path=other.path)
    cached = ModelCache(
        configured.entries,
        options,
        queue,
        budget,
        watcher,
        programs=programs,
        known=KnownDigests(digests_file),
        swap_seconds=swap_seconds,
        judge=judge,
    )
    async with cached.opened() as cache:
        yield LlamaBackend(cache, watcher)


def _facts(cached: CachedModel) -> tuple[int, bool, bool]:
    """Return the model's context, 0 if unknown, and whether it only embeds and sees images: as the loaded model says, or else as far as its
    file, plan and entry tell."""
    if (loaded := cached.loaded) is not None:
        return loaded.context_tokens, loaded.only_embeds, loaded.sees_images
    check = cached.file.checked
    # A model without a KV cache can't generate text.
    only_embeds = check is not None and check.header is not None and gguf_header.kv_bytes_per_token(check.header) == 0
    sees_images = cached.entry.projector is not None and missing_libraries.IMAGES.exists()
    return 0 if cached.plan is None else cached.plan.context_tokens, only_embeds, sees_images


def abilities(pooling: PoolingKind | None, found: Collection[Ability], *, writes: bool, embeds: bool) -> tuple[str, ...]:
    """Return what a model can do besides answering text with text."""
    if pooling is PoolingKind.RANK:
        return (Ability.RERANK,)
    # A template without tools gets a generic form of them.
    more = ({Ability.TOOLS} if writes else set()) | ({Ability.EMBEDDINGS} if pooling is not None or embeds else set())
    return tuple(ability for ability in Ability if ability in more or ability in found)
