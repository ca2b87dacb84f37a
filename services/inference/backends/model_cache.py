"""Loads and unloads the worker's models as `model_cache_policy` decides, and reports the results to it.

Decisions are carried out without an await, and so before the next fact arrives.
"""

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import assert_never

import msgspec

from services.inference.backend_interface import WarningTopic, Watcher
from services.inference.chat.model_chat import ModelChat
from services.inference.engine import engine_messages
from services.inference.engine.file_stamps import Stamps
from services.inference.models import load_plan, memory, model_fit
from services.inference.models.catalog import CatalogEntry, Defaults
from services.inference.models.load_plan import LoadPlan
from services.inference.models.model_cache_policy import (
    MAX_SWAPS,
    SWAPS_SECONDS,
    AdmitStep,
    Decision,
    LoadModelStep,
    ManagedModel,
    ModelCachePolicy,
    RecheckStep,
    RefuseStep,
    Stage,
    UnloadModelStep,
)
from services.inference.models.model_files import AdapterFile, KnownDigests, ModelFile
from services.inference.models.quantities import MemoryBytes
from services.inference.queue_limits import QueueLimits
from services.inference.supervision.engine_supervisor import SupervisedEngine
from shared import errors
from shared.api.inference import ModelFacts, ModelFit, ModelState
from shared.background import tasks
from shared.models.trust_rules import TRUSTED, Verdict
from shared.node import lifecycle
from shared.protocol.agent_requirements import CONTEXT_TOKENS
from shared.protocol.directory import say_reasons
from shared.telemetry import logs
from shared.types import LoadPurpose, ModelName

log = logs.get()

#: How often a waiting caller gets a progress message; a quick load sends none.
PROGRESS_SECONDS = 0.5
#: How often a removed model is checked for its last user.
LEAVE_SECONDS = 0.1
#: How often keep-alives and overdue callers are checked.
TICK_SECONDS = 1.0
#: Remembered for each replica: about 100 long prompts.
MAX_PREFIXES = 6_400

_Answer = AdmitStep | RefuseStep
StartEngine = Callable[[ModelName, engine_messages.LoadCommand, Watcher, ModelChat], SupervisedEngine]
#: Returns what runs a model in the program of its entry; ``int`` is its queue.
StartProgram = Callable[[CatalogEntry, engine_messages.LoadCommand, int, Watcher, ModelChat], SupervisedEngine]
#: Says whether a model may be loaded, by the SHA-256 of its files as far as they are known. Never blocks.
JudgeModel = Callable[[CatalogEntry, tuple[str, ...]], Verdict]
#: Tells a caller why it waits.
SendWaiting = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ModelPrograms:
    """How the processes of a model are started."""

    engine: StartEngine
    #: Not started until the engine has loaded the model.
    chat: Callable[[], ModelChat]
    #: For a model with a program; None if this worker can't.
    start_program: StartProgram | None = None


@dataclass(slots=True, eq=False)
class Replica:
    """One engine and its number of jobs."""

    engine: SupervisedEngine
    jobs: int = 0
    #: The prefixes of the last prompts, which its slots may still hold; see `shared.api.generation`.
    prefixes: OrderedDict[bytes, None] = field(default_factory=OrderedDict)

    def known(self, prefixes: Sequence[bytes]) -> int:
        """Return how many of a prompt's prefixes it has read."""
        return next((count for count in range(len(prefixes), 0, -1) if prefixes[count - 1] in self.prefixes), 0)

    @contextmanager
    def counted(self, prefixes: Sequence[bytes]) -> Iterator[SupervisedEngine]:
        """Count a job with these prefixes for the block."""
        for prefix in prefixes:
            self.prefixes[prefix] = None
            self.prefixes.move_to_end(prefix)
        while len(self.prefixes) > MAX_PREFIXES:
            self.prefixes.popitem(last=False)
        self.jobs += 1
        try:
            yield self.engine
        finally:
            self.jobs -= 1


@dataclass(slots=True, eq=False)
class CachedModel:
    """One model of the catalog, in memory or not."""

    entry: CatalogEntry
    file: ModelFile
    limits: QueueLimits
    #: Its process runs while the model is loaded.
    chat: ModelChat
    #: Its need is known after reading the header; no job is admitted before.
    managed: ManagedModel
    adapters: tuple[AdapterFile, ...]
    #: What it is loaded for; at first as its entry says.
    purpose: LoadPurpose
    judge: JudgeModel
    #: The last verdict that was logged.
    logged: Verdict = TRUSTED
    #: None until the header is read.
    plan: LoadPlan | None = None
    #: Loaded for agents, it would have the context that they need.
    can_suit_agents: bool = False
    replicas: list[Replica] = field(default_factory=list)
    awaits_preload: bool = False
    engines_task: asyncio.Task[None] | None = None
    #: Checks the file before a failed load is retried.
    recheck: asyncio.Task[bool] | None = None
    #: Callers that have a place, wait for one, or unload it.
    users: int = 0
    #: Removed, and forgotten after its last user.
    leaves: bool = False
    #: Reads the file of an added model, or forgets a removed one.
    change: asyncio.Task[bool] | None = None

    @property
    def loaded(self) -> engine_messages.Loaded | None:
        return next((replica.engine.loaded for replica in self.replicas if replica.engine.loaded is not None), None)

    @property
    def verdict(self) -> Verdict:
        return self.judge(self.entry, self.file.hashes)

    @property
    def problem(self) -> str:
        """Why it can't be served; empty if no problem is known."""
        return self.file.problem or (self.verdict.reason if self.verdict.is_refused else "")

    @property
    def file_bytes(self) -> int:
        """The size of the files that are known, of adapters too."""
        return sum(file.checked.size for file in (self.file, *self.adapters) if file.checked is not None)

    @property
    def stamps(self) -> Stamps:
        """Return the files, as they were checked, those of adapters too."""
        return tuple(stamp for file in (self.file, *self.adapters) if file.checked is not None for stamp in file.checked.stamps)

    async def ensure_served(self) -> None:
        """Check the files, as far as a load needs it."""
        await self.file.ensure_served()
        for adapter in self.adapters:
            await adapter.ensure_checked()

    async def ensure_digests(self) -> None:
        """Compute the digests of the files, unless that was done."""
        for file in (self.file, *self.adapters):
            await file.ensure_digest()

    def adapter_number(self, model: ModelName) -> int:
        """Return the number of the adapter with this name; 0 for the model itself. Raises Unavailable if the adapter can't be used."""
        for number, adapter in enumerate(self.adapters, start=1):
            if adapter.adapter.name == model:
                if adapter.problem:
                    raise errors.Unavailable(f"{model} cannot be served here: {adapter.problem}", hint="another worker may have it")
                return number
        return 0

    def best(self, prefixes: Sequence[bytes] = ()) -> Replica:
        """Return the replica for the next job: of the ready ones that with the longest known prefix, unless it has many more jobs than
        another; then the least busy."""
        # A page that all prompts share must not send all of them to one replica.
        most = min(replica.jobs for replica in self.replicas) + self.limits.slots // (2 * len(self.replicas))

        def order(replica: Replica) -> tuple[bool, int, int]:
            known = replica.known(prefixes) if replica.jobs <= most else 0
            return replica.engine.state is not ModelState.READY, -known, replica.jobs

        return min(self.replicas, key=order)


class ModelCache:
    """Start it with ``opened``; while it is open, all methods are safe to call at any time."""

    def __init__(
        self,
        entries: Iterable[CatalogEntry],
        options: engine_messages.LoadCommand,
        queue: int,
        budget: memory.MemoryBudget,
        watcher: Watcher,
        *,
        programs: ModelPrograms,
        known: KnownDigests,
        swap_seconds: float,
        judge: JudgeModel,
    ) -> None:
        self._entries = tuple(entries)
        self._options = options
        self._budget = budget
        self._watcher = watcher
        self.restarting, self.parse_failed, self.images_encoded = watcher.restarting, watcher.parse_failed, watcher.images_encoded
        self.drafted, self.swapped, self.preempted = watcher.drafted, watcher.swapped, watcher.preempted
        self.warn = watcher.warn
        self.memory_found = watcher.memory_found
        self._programs = programs
        self._tasks: asyncio.TaskGroup
        self._numbers = itertools.count(1)
        self._callers: dict[int, asyncio.Future[_Answer]] = {}
        self._queue = queue
        self._known = known
        self._judge = judge
        #: Gets the plan of each load, if someone watches.
        self.print_line: Callable[[str], None] | None = None
        self._core = ModelCachePolicy(budget.total, swap_seconds)
        self._models: dict[ModelName, CachedModel] = {}
        #: The name of each adapter's model.
        self._bases: dict[ModelName, ModelName] = {}

    def _enter(self, entry: CatalogEntry) -> CachedModel:
        def changed() -> None:
            self._file_changed(cached)

        name = entry.name
        self._models[name] = cached = CachedModel(
            entry,
            ModelFile(entry, self._tasks, changed, self._known),
            QueueLimits(name, (entry.slots or load_plan.CPU_SLOTS) * (entry.replicas or 1), self._queue),
            self._programs.chat(),
            self._core.add(name, MemoryBytes(), entry.keep_alive_seconds, pinned=entry.pinned),
            tuple(AdapterFile(adapter, entry.file, self._tasks, changed, self._known) for adapter in entry.adapters),
            entry.purpose,
            self._judge,
            awaits_preload=entry.preload,
        )
        self._bases |= {adapter.name: name for adapter in entry.adapters}
        return cached

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["ModelCache"]:
        """Read the files, preload models, and end all engines on leaving."""
        async with lifecycle.background() as self._tasks:
            for entry in self._entries:
                self._enter(entry)
            self._tasks.create_task(tasks.keep("models", self._prepare))
            self._tasks.create_task(tasks.keep("model cache", self._tick))
            try:
                yield self
            finally:
                for cached in self._models.values():
                    for file in (cached.file, *cached.adapters):
                        file.stop()

    def all(self) -> Iterable[CachedModel]:
        """Return the models without removed ones."""
        return [cached for cached in self._models.values() if not cached.leaves]

    def has(self, model: ModelName) -> bool:
        """Whether it is known, also if it was removed and still has users."""
        return model in self._models

    def add(self, entry: CatalogEntry) -> None:
        """Serve one more model, which must not be known; its file is read in the background."""
        self._read(self._enter(entry))

    def _read(self, cached: CachedModel) -> None:
        cached.change = self._tasks.create_task(tasks.attempt("read model", cached.file.ensure_digest), name=f"read {cached.entry.name}")

    def recheck_damaged(self) -> None:
        """Look again at files that can't be served: they may still be being copied."""
        for cached in self.all():
            if cached.file.problem and (cached.change is None or cached.change.done()):
                self._read(cached)

    def remove(self, model: ModelName) -> None:
        """List the model no longer, and unload and forget it after its last user."""
        cached = self._models[model]
        cached.leaves = True
        if cached.change is not None:
            cached.change.cancel()
        cached.change = self._tasks.create_task(tasks.attempt("forget model", partial(self._forget, cached)), name=f"forget {model}")
        self._watcher.changed()

    async def _forget(self, cached: CachedModel) -> None:
        name = cached.entry.name
        cached.file.stop()
        self._core.pin(name, pinned=False)
        while cached.users or cached.managed.stage is not Stage.UNLOADED:
            self._act(self._core.unload(name))
            await asyncio.sleep(LEAVE_SECONDS)
        del self._models[name]
        self._core.remove(name)
        for task in (cached.engines_task, cached.recheck):
            if task is not None:
                task.cancel()

    def get(self, model: ModelName) -> CachedModel:
        """Return a model, or the base model of an adapter."""
        return self._models[self._bases.get(model, model)]

    @asynccontextmanager
    async def place(self, model: ModelName, send: SendWaiting | None, prefixes: Sequence[bytes] = ()) -> AsyncIterator[SupervisedEngine]:
        """Wait for a loaded engine for one job with these prefixes. Raises Unavailable."""
        with self._using(model) as cached:
            if cached.managed.stage in (Stage.UNLOADED, Stage.UNLOADING):
                await self._ensure_served(cached, send)
            await self._admit(cached, send)
            try:
                if cached.verdict.is_refused:
                    raise _cannot_serve(cached)
                if not cached.replicas:
                    raise errors.Unavailable(f"{model} just failed: {self.state(cached)[1]}", hint="try again", retry_after_seconds=1.0)
                with cached.best(prefixes).counted(prefixes) as engine:
                    yield engine
            finally:
                self._act(self._core.finished(model, time.monotonic()))

    async def load(self, model: ModelName, *, pin: bool | None, purpose: LoadPurpose | None = None) -> None:
        """Return when the model is loaded. Raises Unavailable, with the reason, and Overloaded as ``unload`` if the purpose changes."""
        self._core.reset_failures(model)
        cached = self._models[model]
        if purpose is not None and cached.entry.program is not None:
            raise errors.BadRequest(f"{model} runs in another program", hint="set the context in its command")
        if purpose not in (None, cached.purpose):
            pin = cached.managed.pinned if pin is None else pin
            await self.unload(model, purpose)
        async with self.place(model, None):
            if pin is not None:
                self._core.pin(model, pinned=pin)
        self._watcher.changed()

    async def unload(self, model: ModelName, purpose: LoadPurpose | None = None) -> None:
        """Return when the model is unloaded; the next load is for this purpose, if there is one. Raises Overloaded while it has requests
        or is loading."""
        managed = self._models[model].managed
        if managed.stage is Stage.LOADING or managed.jobs:
            raise errors.Overloaded(
                f"{model} is in use: {managed.jobs or 'it is being loaded for'} requests",
                hint="retry when they have finished; `aicli worker pause` stops new ones",
                retry_after_seconds=5.0,
            )
        self._core.pin(model, pinned=False)
        with self._using(model) as cached:
            cached.purpose = purpose or cached.purpose
            self._plan(cached)
            self._act(self._core.unload(model))
            if cached.engines_task is not None:
                await asyncio.wait([cached.engines_task])

    @contextmanager
    def _using(self, model: ModelName) -> Iterator[CachedModel]:
        """Keep a removed model known for the block."""
        cached = self._models[model]
        cached.users += 1
        try:
            yield cached
        finally:
            cached.users -= 1

    def state(self, cached: CachedModel) -> tuple[ModelState, str]:
        """Return the model's state and a detail for people."""
        if cached.problem:
            return ModelState.FAILED, cached.problem
        if cached.file.checked is None or (cached.awaits_preload and cached.managed.stage is Stage.UNLOADED):
            return ModelState.LOADING, cached.file.step
        match cached.managed.stage:
            case Stage.LOADED:
                engine = cached.best().engine
                return engine.state, engine.detail
            case Stage.LOADING:
                # In tenths, because every change is announced to the whole mesh.
                return ModelState.LOADING, _progress(cached, step=10)
            case Stage.UNLOADING:
                return ModelState.UNLOADED, "unloading"
            case Stage.UNLOADED:
                reason = self._core.unavailable_reason(cached.entry.name, time.monotonic())
                return (ModelState.FAILED, reason) if reason else (ModelState.UNLOADED, "on disk; loaded on demand")
            case stage:
                assert_never(stage)

    def changed(self) -> None:
        now = time.monotonic()
        for cached in self._models.values():
            name, stage, states = cached.entry.name, cached.managed.stage, {replica.engine.state for replica in cached.replicas}
            if (loaded := cached.loaded) is not None:
                for adapter, problem in zip(cached.adapters, loaded.adapter_problems, strict=False):
                    adapter.refused = problem
            if ModelState.READY in states and stage is Stage.LOADING:
                self._act(self._core.loaded(name, now))
            elif states == {ModelState.FAILED} and stage in (Stage.LOADING, Stage.LOADED):
                reason = cached.replicas[0].engine.detail
                cached.replicas.clear()
                self._act(self._core.load_failed(name, reason, now))
        self._watcher.changed()

    def load_changed(self) -> None:
        self._watcher.load_changed()

    async def _prepare(self) -> None:
        configured = list(self._models.values())
        for cached in configured:
            await tasks.attempt("check model", cached.file.ensure_checked)
        for cached in configured:
            if cached.entry.preload:
                await tasks.attempt("preload model", partial(self._preload, cached))
        # One after the other: a disk reads one large file faster than ten at once.
        for cached in configured:
            await tasks.attempt("read model", cached.ensure_digests)

    async def _preload(self, cached: CachedModel) -> None:
        await cached.ensure_served()
        cached.awaits_preload = False
        if not cached.problem:
            self._act(self._core.preload(cached.entry.name, time.monotonic()))
        self._watcher.changed()

    def _file_changed(self, cached: CachedModel) -> None:
        if self._models.get(cached.entry.name) is cached:
            # The plans of the others depend on its size.
            for planned in (cached,) if cached.plan is not None else self._models.values():
                self._plan(planned)
        self._watcher.changed()

    def _plan(self, cached: CachedModel) -> None:
        """Plan the next load of a model, unless it is in memory."""
        if cached.managed.stage is Stage.UNLOADED:
            self._core.set_need(cached.entry.name, self._next_need(cached))

    async def plan(self, models: Sequence[ModelFacts], defaults: Defaults) -> list[ModelFit]:
        others = [other.file_bytes for other in self.all() if other.file.checked is not None]
        entry = defaults.entry(name=ModelName("planned"), file=Path())
        return [await asyncio.to_thread(model_fit.plan, facts, entry, self._budget, others) for facts in models]

    def _next_need(self, cached: CachedModel) -> MemoryBytes:
        """Plan the next load of a model that isn't in memory any more, and return its need."""
        check, entry = cached.file.checked, cached.entry
        if entry.program is not None:
            cached.plan = load_plan.of_program(entry, self._budget)
        elif check is not None and check.header is not None:
            others = [other.file_bytes for other in self.all() if other is not cached and other.file.checked is not None]
            plan = partial(load_plan.plan, check.header, cached.file_bytes, projector_bytes=check.projector_bytes)
            cached.plan = plan(replace(entry, purpose=cached.purpose), self._budget, others)
            long = plan(replace(entry, purpose=LoadPurpose.AGENTS), self._budget, others)
            cached.can_suit_agents = long.context_tokens >= CONTEXT_TOKENS and long.total.fits(self._budget.total)
        return cached.managed.need if cached.plan is None else cached.plan.total

    async def _ensure_served(self, cached: CachedModel, send: SendWaiting | None) -> None:
        """Wait for the checks of the model's file. Raises Unavailable if it can't be served."""
        looking = self._tasks.create_task(cached.ensure_served())
        try:
            await self._report_waiting(looking, send, lambda: f"{cached.entry.name}: {cached.file.step}")
        finally:
            looking.cancel()
        if cached.problem:
            raise _cannot_serve(cached)

    async def _admit(self, cached: CachedModel, send: SendWaiting | None) -> None:
        """Wait until the model is loaded and the caller's job is counted. Raises Unavailable."""
        model, caller = cached.entry.name, next(self._numbers)
        answer = self._callers[caller] = asyncio.get_running_loop().create_future()
        self._act(self._core.wanted(model, caller, time.monotonic()))
        try:
            await self._report_waiting(answer, send, lambda: self._waits_for(cached))
        except BaseException:
            # The caller is gone, perhaps at the moment when it was admitted.
            if self._callers.pop(caller, None) is not None:
                self._act(self._core.withdrawn(caller, time.monotonic()))
            elif isinstance(answer.result(), AdmitStep):
                self._act(self._core.finished(model, time.monotonic()))
            raise
        if isinstance(refused := answer.result(), RefuseStep):
            raise errors.Unavailable(
                f"{model} cannot be loaded on this worker: {refused.reason}",
                hint="another worker may have room; `aicli models` shows which workers have it",
                retry_after_seconds=refused.retry_after_seconds,
            )

    async def _report_waiting(
        self, awaited: "asyncio.Future[_Answer] | asyncio.Task[None]", send: SendWaiting | None, describe: Callable[[], str]
    ) -> None:
        """Wait, and send the caller a message whenever the reason for the wait changes."""
        reported = ""
        while not (await asyncio.wait([awaited], timeout=PROGRESS_SECONDS))[0]:
            text = describe()
            if send is not None and text != reported:
                await send(text)
                reported = text

    def _waits_for(self, cached: CachedModel) -> str:
        name = cached.entry.name
        match cached.managed.stage:
            case Stage.LOADING:
                return _progress(cached, step=1).replace("loading", f"loading {name}", 1)
            case Stage.LOADED:
                return f"waiting for a turn of {name}: another model needs its memory first"
            case Stage.UNLOADED | Stage.UNLOADING:
                busy = ", ".join(self._core.busy_models())
                return f"waiting for memory for {name}" + (f", which {busy} uses" if busy else "")
            case stage:
                assert_never(stage)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            self._act(self._core.tick(now))
            self._watcher.warn(self._describe_thrashing(now), WarningTopic.SWAPS)
            self._apply_trust()
            self._watcher.changed()  # a state may depend on the time

    def _describe_thrashing(self, now: float) -> str:
        """Say which models are unloaded for each other too often, and what to do; empty if none is."""
        why = (
            f"swapped more than {MAX_SWAPS} times in {SWAPS_SECONDS / 60:.0f} minutes, because the models of this worker share"
            f" {self._core.budget}; raise MODEL_SWAP_SECONDS or MODEL_MEMORY, or remove a model"
        )
        return say_reasons(((name, why) for name in self._core.thrashing(now)), ": ")

    def _apply_trust(self) -> None:
        """Unload what may not be loaded any more, once its running answers have ended."""
        for cached in self.all():
            name, verdict = cached.entry.name, cached.verdict
            if verdict.is_refused:
                self._act(self._core.unload(name))
            if verdict != cached.logged:
                cached.logged = verdict
                log.warning("model_trust_changed", model=name, cause=verdict.cause, reason=verdict.reason, is_refused=verdict.is_refused)
        untrusted = ((cached.entry.name, cached.logged.reason) for cached in self.all() if cached.logged.cause is not None)
        self._watcher.warn(say_reasons(untrusted, ": "), WarningTopic.TRUST)

    def _act(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            match decision:
                case LoadModelStep(model) if self._models[model].verdict.is_refused:
                    self._act(self._core.load_failed(model, self._models[model].problem, time.monotonic()))
                case LoadModelStep(model):
                    self._start_engines(self._models[model])
                case UnloadModelStep(model, makes_room_for):
                    self._stop_engines(self._models[model], makes_room_for)
                case RecheckStep(model):
                    cached = self._models[model]
                    if cached.recheck is None or cached.recheck.done():
                        cached.recheck = self._tasks.create_task(
                            tasks.attempt("recheck model", partial(self._recheck, cached)), name=f"recheck {model}"
                        )
                case AdmitStep(caller) | RefuseStep(caller):
                    self._callers.pop(caller).set_result(decision)
                case _:
                    assert_never(decision)
        if any(not isinstance(decision, AdmitStep) for decision in decisions):
            self._watcher.changed()
        elif decisions:
            self._watcher.load_changed()

    def _stop_engines(self, cached: CachedModel, makes_room_for: ModelName | None) -> None:
        log.info("model_unloading", model=cached.entry.name, makes_room_for=makes_room_for)
        if makes_room_for is not None:
            self._watcher.swapped(cached.entry.name)
        if cached.engines_task is not None:
            cached.engines_task.cancel()

    def _start_engines(self, cached: CachedModel) -> None:
        entry, plan = cached.entry, cached.plan
        assert plan is not None, "a model is loaded after its header was read"
        load = msgspec.structs.replace(
            self._options,
            path=str(entry.file),
            slots=plan.slots,
            context_tokens=plan.context_tokens,
            gpu_layers=plan.gpu_layers,
            kv_mode=entry.kv_mode or self._options.kv_mode,
            kv_type=plan.kv_type or self._options.kv_type,
            tensor_split=entry.tensor_split,
            cpu_experts=plan.cpu_experts,
            override_tensor=entry.override_tensor,
            split_mode=entry.split_mode,
            may_fit=plan.may_fit,
            speculates=entry.speculates,
            adapters=tuple(engine_messages.LoadedAdapter(str(one.file), one.scale) for one in entry.adapters),
            projector="" if entry.projector is None else str(entry.projector),
            projector_is_optional=entry.projector_is_optional,
            embedding_tokens=plan.embedding_tokens,
            stamps=cached.stamps,
        )
        cached.limits.slots = plan.slots * len(plan.devices)
        loads = [msgspec.structs.replace(load, device=device) for device in plan.devices]
        cached.replicas = [Replica(self._engine(cached, each)) for each in loads]
        log.info("model_loading", model=entry.name, plan=plan.reasons)
        if self.print_line is not None:
            self.print_line("\n  ".join([f"loading {entry.name}", *plan.reasons]))
        cached.engines_task = self._tasks.create_task(self._run_engines(cached, cached.replicas), name=f"engine {entry.name}")

    def _engine(self, cached: CachedModel, load: engine_messages.LoadCommand) -> SupervisedEngine:
        entry = cached.entry
        if entry.program is None:
            return self._programs.engine(entry.name, load, self, cached.chat)
        assert self._programs.start_program is not None, "checked at the start"
        return self._programs.start_program(entry, load, self._queue, self, cached.chat)

    async def _recheck(self, cached: CachedModel) -> None:
        await cached.ensure_served()
        if not cached.problem and not cached.leaves:
            self._act(self._core.retry(cached.entry.name, time.monotonic()))

    async def _run_engines(self, cached: CachedModel, replicas: list[Replica]) -> None:
        try:
            async with asyncio.TaskGroup() as engines:
                for replica in replicas:
                    engines.create_task(replica.engine.run())
        finally:
            await cached.chat.close()
            if self._models.get(cached.entry.name) is cached and cached.managed.stage is Stage.UNLOADING:
                cached.replicas = []
                self._act(self._core.unloaded(cached.entry.name, self._next_need(cached), time.monotonic()))


def _cannot_serve(cached: CachedModel) -> errors.Unavailable:
    return errors.Unavailable(f"{cached.entry.name} cannot be served here: {cached.problem}", hint="another worker may have it")


def _progress(cached: CachedModel, *, step: int) -> str:
    """Describe the progress of the slowest engine, or why it restarts. ``step`` is in percent."""
    if not cached.replicas:
        return "loading"
    engine = min((replica.engine for replica in cached.replicas), key=lambda engine: engine.progress)
    if engine.detail != "loading":
        return f"loading: {engine.detail}"
    percent = int(engine.progress * 100 / step) * step
    return f"loading: {percent} %" if percent else "loading"
