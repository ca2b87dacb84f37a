"""The models of this worker and their engines: does what `model_cache_policy` decides, and tells it what came of it.

All of it happens in the loop's thread and between two awaits, so the decisions are carried out before the next fact comes.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, assert_never

import msgspec

from services.inference.engine import engine_messages
from services.inference.jobs.backend_interface import Sink, Watcher
from services.inference.jobs.embedding_interface import VectorSink
from services.inference.jobs.embedding_job import EmbeddingJob
from services.inference.jobs.engine_speed import EngineSpeed
from services.inference.jobs.generation_job import GenerationJob
from services.inference.jobs.queue_limits import QueueLimits
from services.inference.models import memory
from services.inference.models.catalog import CatalogEntry
from services.inference.models.digests import KnownDigests
from services.inference.models.model_cache_policy import (
    AdmitStep,
    CacheTerms,
    Decision,
    LoadModelStep,
    ModelCachePolicy,
    RecheckStep,
    RefuseStep,
    Stage,
    UnloadModelStep,
)
from services.inference.models.model_files import ModelFile
from shared import errors
from shared.api.embedding import Embedded
from shared.api.generation import Generation
from shared.api.inference import Chunk, ModelState
from shared.telemetry import logs
from shared.types import ModelName

log = logs.get()

#: How often a waiting caller is told how far it is; also after how long the first time, so that a quick load says nothing.
PROGRESS_SECONDS = 0.5
#: Between two looks at keep-alives and at who has waited long enough.
TICK_SECONDS = 1.0

_Answer = AdmitStep | RefuseStep


class EngineInterface(Protocol):
    """As `engine_supervisor.SupervisedEngine`; tests bring others."""

    state: ModelState
    detail: str
    #: Of the loading, from 0 to 1.
    progress: float
    loaded: engine_messages.Loaded | None
    pid: int | None

    async def run(self) -> None: ...

    async def generate(self, job: GenerationJob, sink: Sink) -> Generation: ...

    def figures(self) -> EngineSpeed: ...

    async def embed(self, job: EmbeddingJob, sink: VectorSink) -> Embedded: ...


class StartEngine(Protocol):
    def __call__(self, model: ModelName, load: engine_messages.LoadCommand, watcher: Watcher, /) -> EngineInterface: ...


@dataclass(slots=True, eq=False)
class Replica:
    """One engine and how many jobs it has."""

    engine: EngineInterface
    jobs: int = 0


@dataclass(slots=True, eq=False)
class CachedModel:
    """One model of the catalogue, in memory or not."""

    entry: CatalogEntry
    file: ModelFile
    intake: QueueLimits
    replicas: list[Replica] = field(default_factory=list)
    #: The start has not come to loading it yet.
    awaits_preload: bool = False
    #: Runs the engines; None while there are none.
    stay: asyncio.Task[None] | None = None
    #: Checks its file before a load that failed is tried again.
    recheck: asyncio.Task[None] | None = None

    def best(self) -> Replica:
        """The replica for the next job: one that runs, and of those the least busy one."""
        return min(self.replicas, key=lambda replica: (replica.engine.state is not ModelState.READY, replica.jobs))


class ModelCache:
    """Opened by ``opened``. Everything else is safe to call at any time while it is open."""

    def __init__(
        self,
        entries: Iterable[CatalogEntry],
        options: engine_messages.LoadCommand,
        queue: int,
        budget: memory.Budget,
        watcher: Watcher,
        *,
        start: StartEngine,
        known: KnownDigests,
    ) -> None:
        self._options = options
        self._budget = budget
        self._watcher = watcher
        self._start_engine = start
        self._tasks = asyncio.TaskGroup()
        self._numbers = itertools.count(1)
        self._callers: dict[int, asyncio.Future[_Answer]] = {}
        self._residents = {
            entry.name: CachedModel(
                entry,
                ModelFile(entry, self._tasks, partial(self._file_changed, entry.name), known),
                QueueLimits(entry.name, entry.slots * entry.replicas, queue),
                awaits_preload=entry.preload,
            )
            for entry in entries
        }
        # What a model needs is known when its header has been read; nobody is let in before.
        unknown = {name: CacheTerms(need_bytes=0, keep_alive_seconds=None) for name in self._residents}
        self._core = ModelCachePolicy(budget.bytes, unknown)
        for resident in self._residents.values():
            self._core.pin(resident.entry.name, pinned=resident.entry.pinned)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["ModelCache"]:
        """Reads the files, loads what is to be loaded at start, and ends all engines on leaving."""
        async with self._tasks as tasks:
            background = [tasks.create_task(self._prepare(), name="models"), tasks.create_task(self._tick(), name="residency")]
            try:
                yield self
            finally:
                for resident in self._residents.values():
                    resident.file.stop()
                    background += [task for task in (resident.stay, resident.recheck) if task is not None]
                for task in background:
                    task.cancel()

    # --- what callers want --------------------------------------------------------------------------------------------------

    def all(self) -> Iterable[CachedModel]:
        return self._residents.values()

    def get(self, model: ModelName) -> CachedModel:
        return self._residents[model]

    @asynccontextmanager
    async def place(self, model: ModelName, sink: Sink | None) -> AsyncIterator[EngineInterface]:
        """A loaded engine for one job; waits for its turn and for the load, of which ``sink`` hears. Raises Unavailable."""
        resident = self._residents[model]
        if self._core.stage(model) in (Stage.UNLOADED, Stage.UNLOADING):
            await self._served(resident, sink)
        await self._admitted(model, sink)
        replica = resident.best() if resident.replicas else None
        try:
            if replica is None:
                raise errors.Unavailable(f"{model} has just failed: {self.state(resident)[1]}", hint="try again", retry_after_seconds=1.0)
            replica.jobs += 1
            yield replica.engine
        finally:
            if replica is not None:
                replica.jobs -= 1
            self._act(self._core.finished(model, time.monotonic()))

    async def load(self, model: ModelName, *, pin: bool | None) -> None:
        """Have it in memory when this returns; raises Unavailable, with the reason."""
        self._core.forgive(model)
        async with self.place(model, None):
            if pin is not None:
                self._core.pin(model, pinned=pin)
        self._watcher.changed()

    async def unload(self, model: ModelName) -> None:
        """Have it out of memory when this returns; raises Overloaded while it has requests, or is being loaded."""
        if self._core.stage(model) is Stage.LOADING or self._core.jobs(model):
            raise errors.Overloaded(
                f"{model} is in use: {self._core.jobs(model) or 'it is loaded for'} requests",
                hint="ask again when they have ended; `aicli worker pause` lets no new ones come",
                retry_after_seconds=5.0,
            )
        self._core.pin(model, pinned=False)
        stay = self._residents[model].stay
        self._act(self._core.unload(model))
        if stay is not None:
            await asyncio.wait([stay])

    # --- how they are ---------------------------------------------------------------------------------------------------------

    def state(self, resident: CachedModel) -> tuple[ModelState, str]:
        """For announcements and for people."""
        name = resident.entry.name
        if resident.file.problem:
            return ModelState.FAILED, resident.file.problem
        if resident.file.look is None or (resident.awaits_preload and self._core.stage(name) is Stage.UNLOADED):
            return ModelState.LOADING, "its file is looked at"
        match self._core.stage(name):
            case Stage.LOADED:
                engine = resident.best().engine
                return engine.state, engine.detail
            case Stage.LOADING:
                # In tenths: what changes here is announced to the whole mesh.
                return ModelState.LOADING, _progress(resident, step=10)
            case Stage.UNLOADING:
                return ModelState.UNLOADED, "on its way out of memory"
            case Stage.UNLOADED:
                why_not = self._core.why_not(name, time.monotonic())
                return (ModelState.FAILED, why_not) if why_not else (ModelState.UNLOADED, "on disk; loaded when it is asked for")
            case stage:
                assert_never(stage)

    def is_pinned(self, resident: CachedModel) -> bool:
        return self._core.is_pinned(resident.entry.name)

    def need_bytes(self, resident: CachedModel) -> int:
        return self._core.need_bytes(resident.entry.name)

    # --- as the watcher of its engines ----------------------------------------------------------------------------------------

    def changed(self) -> None:
        now = time.monotonic()
        for resident in self._residents.values():
            name, states = resident.entry.name, {replica.engine.state for replica in resident.replicas}
            if ModelState.READY in states and self._core.stage(name) is Stage.LOADING:
                self._act(self._core.loaded(name, now))
            elif states == {ModelState.FAILED} and self._core.stage(name) in (Stage.LOADING, Stage.LOADED):
                reason = resident.replicas[0].engine.detail
                resident.replicas.clear()
                self._act(self._core.load_failed(name, reason, now))
        self._watcher.changed()

    def restarting(self, model: ModelName) -> None:
        self._watcher.restarting(model)

    # --- files ------------------------------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        """What is known of the files without anybody asking; then the models that are to be there from the start."""
        for resident in self._residents.values():
            await resident.file.ensure_looked()
        for resident in self._residents.values():
            if resident.entry.preload:
                await resident.file.ensure_served()
                resident.awaits_preload = False
                if not resident.file.problem:
                    self._act(self._core.preload(resident.entry.name, time.monotonic()))
                self._watcher.changed()
        # One after the other: a disk reads one large file faster than ten.
        for resident in self._residents.values():
            await resident.file.ensure_digest()

    def _file_changed(self, model: ModelName) -> None:
        resident = self._residents[model]
        look = resident.file.look
        if look is not None and look.header is not None:
            entry = resident.entry
            need = memory.need_bytes(look.header, entry, look.size) * self._replicas(resident)
            self._core.learn(model, CacheTerms(need_bytes=need, keep_alive_seconds=entry.keep_alive_seconds))
        self._watcher.changed()

    def _replicas(self, resident: CachedModel) -> int:
        """As many as were asked for, or as have room."""
        look = resident.file.look
        if look is None or look.header is None:
            return 1
        each = memory.need_bytes(look.header, resident.entry, look.size)
        return max(1, min(resident.entry.replicas, self._budget.bytes // max(1, each)))

    async def _served(self, resident: CachedModel, sink: Sink | None) -> None:
        """Wait for what must be known of its file; raises Unavailable for what may not be served."""
        looking = self._tasks.create_task(resident.file.ensure_served())
        try:
            await self._tell(looking, sink, lambda: f"checking the file of {resident.entry.name}")
        finally:
            looking.cancel()
        if problem := resident.file.problem:
            raise errors.Unavailable(f"{resident.entry.name} cannot be served here: {problem}", hint="another worker may have it")

    # --- turns ------------------------------------------------------------------------------------------------------------------

    async def _admitted(self, model: ModelName, sink: Sink | None) -> None:
        """Wait until the model is there and the caller's job is counted; raises Unavailable."""
        caller = next(self._numbers)
        answer = self._callers[caller] = asyncio.get_running_loop().create_future()
        self._act(self._core.wanted(model, caller, time.monotonic()))
        is_here = False
        try:
            await self._tell(answer, sink, lambda: self._waits_for(self._residents[model]))
            is_here = True
        finally:
            if not is_here:
                self._withdraw(model, caller, answer)
        if isinstance(refused := answer.result(), RefuseStep):
            raise errors.Unavailable(
                f"{model} cannot be loaded on this worker: {refused.reason}",
                hint="another worker may have room; `aicli models` shows who has it",
                retry_after_seconds=refused.retry_after_seconds,
            )

    def _withdraw(self, model: ModelName, caller: int, answer: "asyncio.Future[_Answer]") -> None:
        """The caller has gone; perhaps in the moment in which it was let in."""
        self._callers.pop(caller, None)
        now = time.monotonic()
        if not answer.done():
            self._act(self._core.withdrawn(caller, now))
        elif isinstance(answer.result(), AdmitStep):
            self._act(self._core.finished(model, now))

    async def _tell(self, awaited: "asyncio.Future[_Answer] | asyncio.Task[None]", sink: Sink | None, say: Callable[[], str]) -> None:
        """Wait, and tell the caller what for whenever that is new."""
        told = ""
        while not (await asyncio.wait([awaited], timeout=PROGRESS_SECONDS))[0]:
            text = say()
            if sink is not None and text != told:
                await sink.send(Chunk("", (), waiting=text))
                told = text

    def _waits_for(self, resident: CachedModel) -> str:
        name = resident.entry.name
        match self._core.stage(name):
            case Stage.LOADING:
                return _progress(resident, step=1).replace("loading", f"loading {name}", 1)
            case Stage.LOADED:
                return f"waiting for a turn of {name}: another model needs its memory first"
            case Stage.UNLOADED | Stage.UNLOADING:
                busy = ", ".join(self._core.in_the_way())
                return f"waiting for memory for {name}" + (f", which {busy} has" if busy else "")
            case stage:
                assert_never(stage)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._act(self._core.tick(time.monotonic()))
            self._watcher.changed()  # a state may depend on the time alone

    # --- decisions ----------------------------------------------------------------------------------------------------------------

    def _act(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            match decision:
                case LoadModelStep():
                    self._begin(self._residents[decision.model])
                case UnloadModelStep():
                    self._end(self._residents[decision.model])
                case RecheckStep():
                    self._begin_recheck(self._residents[decision.model])
                case AdmitStep() | RefuseStep():
                    self._callers.pop(decision.caller).set_result(decision)
                case _:
                    assert_never(decision)
        if decisions:
            self._watcher.changed()

    def _begin(self, resident: CachedModel) -> None:
        entry = resident.entry
        load = msgspec.structs.replace(
            self._options,
            path=str(entry.file),
            slots=entry.slots,
            context_tokens=entry.context_tokens,
            gpu_layers=entry.gpu_layers,
            kv_mode=entry.kv_mode or self._options.kv_mode,
            kv_type=entry.kv_type or self._options.kv_type,
            device=entry.device,
            tensor_split=entry.tensor_split,
        )
        count = self._replicas(resident)
        resident.intake.slots = entry.slots * count
        resident.replicas = [Replica(self._start_engine(entry.name, load, self)) for _ in range(count)]
        log.info("model_loading", model=entry.name, replicas=count, counted_bytes=self._core.need_bytes(entry.name))
        resident.stay = self._tasks.create_task(self._stay(resident, resident.replicas), name=f"engine {entry.name}")

    def _end(self, resident: CachedModel) -> None:
        log.info("model_unloading", model=resident.entry.name)
        if resident.stay is not None:
            resident.stay.cancel()

    def _begin_recheck(self, resident: CachedModel) -> None:
        if resident.recheck is None or resident.recheck.done():
            resident.recheck = self._tasks.create_task(self._recheck(resident), name=f"recheck {resident.entry.name}")

    async def _recheck(self, resident: CachedModel) -> None:
        await resident.file.ensure_served()
        if not resident.file.problem:
            self._act(self._core.retry(resident.entry.name, time.monotonic()))

    async def _stay(self, resident: CachedModel, replicas: list[Replica]) -> None:
        """A model's time in memory, to the end of its processes."""
        try:
            async with asyncio.TaskGroup() as engines:
                for replica in replicas:
                    engines.create_task(replica.engine.run())
        finally:
            if self._core.stage(resident.entry.name) is Stage.UNLOADING:
                resident.replicas = []
                self._act(self._core.unloaded(resident.entry.name, time.monotonic()))


def _progress(resident: CachedModel, *, step: int) -> str:
    """How far the slowest engine is, to so many hundredths; or why it begins again."""
    if not resident.replicas:
        return "loading"
    engine = min((replica.engine for replica in resident.replicas), key=lambda engine: engine.progress)
    if engine.detail != "loading":
        return f"loading: {engine.detail}"
    percent = int(engine.progress * 100 / step) * step
    return f"loading: {percent} %" if percent else "loading"
