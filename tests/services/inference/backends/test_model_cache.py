"""The `llama` backend with engines that a test controls: which models are loaded, who waits, and what callers see."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.inference.backend_interface import AnswersEnded, Sink, VectorSink, Watcher
from services.inference.backends import llama, model_cache
from services.inference.backends.llama import LlamaBackend
from services.inference.backends.model_cache import JudgeModel, ModelPrograms
from services.inference.chat.model_chat import ModelChat
from services.inference.engine import engine_messages, file_stamps
from services.inference.engine.engine_messages import KvMode, KvType, KvTypes
from services.inference.engine_speed import EngineSpeed
from services.inference.jobs import GenerationJob
from services.inference.models import catalog, model_cache_policy, model_files
from services.inference.models.catalog import Catalog, CatalogEntry
from services.inference.models.memory import MemoryBudget
from shared import errors
from shared.api.embedding import Embed, Embedded, Vectors
from shared.api.generation import GenerationEnd, Usage
from shared.api.inference import Chunk, ModelState
from shared.models.trust_rules import TRUSTED
from shared.timing.backoff import Backoff
from shared.types import FinishReason, ModelName
from tests import gguf_files
from tests.services.inference.standins import PlainChat, Reader, Watch, job, until
from tests.services.inference.vector_reader import VectorReader, texts_for

A, B, C = ModelName("a"), ModelName("b"), ModelName("c")
OPTIONS = engine_messages.LoadCommand("", 1, 1, 1, -1)
GENERATION = GenerationEnd(FinishReason.STOP, Usage(1, 1))


class FakeEngine:
    """Loads and answers only when the site allows it."""

    def __init__(self, load: engine_messages.LoadCommand, watcher: Watcher, site: "Site") -> None:
        self.load = load
        self.state = ModelState.LOADING
        self.detail = "loading"
        self.progress = 0.0
        self.pid: int | None = 7
        self.loaded: engine_messages.Loaded | None = None
        self.answered = 0
        self._watcher = watcher
        self._site = site
        self._over = asyncio.Event()

    def figures(self) -> EngineSpeed:
        return EngineSpeed()

    async def run(self) -> None:
        try:
            await self._site.may_load.wait()
            if self._site.fails:
                self.become(ModelState.FAILED, self._site.fails)
                return
            self.loaded = engine_messages.Loaded("a fake", 99, "", "", "", adapter_problems=self._site.adapter_problems)
            self.become(ModelState.READY, "")
            await self._over.wait()
        finally:
            # The process takes time to end.
            await asyncio.sleep(0)
            self._site.running.remove(self)

    def become(self, state: ModelState, detail: str) -> None:
        self.state, self.detail = state, detail
        self._watcher.changed()

    def die(self, detail: str) -> None:
        self.become(ModelState.FAILED, detail)
        self._over.set()

    async def generate(self, job: GenerationJob, sink: Sink) -> GenerationEnd:
        self.answered += 1
        self._site.jobs.append(job)
        await self._site.may_answer.wait()
        with suppress(AnswersEnded):
            await sink.send(Chunk("", (1,), finish=FinishReason.STOP))
        return GENERATION

    async def embed(self, job: Embed, sink: VectorSink) -> Embedded:
        self.answered += 1
        await sink.send(Vectors((b"1234",) * len(job.inputs)))
        return Embedded(1, 2)


class Site:
    """A folder of small model files, and every engine that was started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.may_load, self.may_answer = asyncio.Event(), asyncio.Event()
        self.may_load.set()
        self.may_answer.set()
        #: Why the next load fails.
        self.fails = ""
        self.adapter_problems: tuple[str, ...] = ()
        self.jobs: list[GenerationJob] = []
        self.engines: list[FakeEngine] = []
        self.running: list[FakeEngine] = []
        self.watch, self.gpus = Watch(), ()
        self.digests_file = folder / "node.digests"
        self.judge: JudgeModel = lambda entry, hashes: TRUSTED

    def start(self, model: ModelName, load: engine_messages.LoadCommand, watcher: Watcher, chat: ModelChat, /) -> FakeEngine:
        engine = FakeEngine(load, watcher, self)
        self.engines.append(engine)
        self.running.append(engine)
        return engine

    @property
    def names(self) -> list[str]:
        """Return the models of all engines so far, in order."""
        return [Path(engine.load.path).stem for engine in self.engines]

    def entry(self, name: ModelName, *, context: int = 64, architecture: str = "llama", **fields: Any) -> CatalogEntry:
        file = self.folder / f"{name}.gguf"
        pairs = {"general.architecture": gguf_files.text(architecture), f"{architecture}.context_length": gguf_files.single("u32", context)}
        file.write_bytes(gguf_files.joined(gguf_files.file(pairs, [])))
        return CatalogEntry(**{"name": name, "file": file, "memory_bytes": 4, "slots": 2, **fields})

    @asynccontextmanager
    async def backend(self, *entries: CatalogEntry, budget: int = 10, swap_seconds: float = 0.0) -> AsyncIterator[LlamaBackend]:
        room, programs = MemoryBudget(budget, "a test", self.gpus), ModelPrograms(self.start, PlainChat)
        opened = llama.opened(
            Catalog(entries),
            OPTIONS,
            3,
            room,
            self.watch,
            programs=programs,
            digests_file=self.digests_file,
            swap_seconds=swap_seconds,
            judge=lambda entry, hashes: self.judge(entry, hashes),  # noqa: PLW0108 - tests change it
        )
        async with asyncio.timeout(30), opened as backend:
            yield backend
        assert not self.running, "an engine outlived its worker"


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(model_cache, "PROGRESS_SECONDS", 0.001)
    monkeypatch.setattr(model_cache, "TICK_SECONDS", 0.002)
    monkeypatch.setattr(model_cache, "LEAVE_SECONDS", 0.002)
    return Site(tmp_path)


async def generate(backend: LlamaBackend, model: ModelName) -> Reader:
    reader = Reader()
    assert await backend.generate(job(model=model), reader) == GENERATION
    return reader


def waits_of(reader: Reader) -> list[str]:
    return [chunk.waiting for chunk in reader.chunks if chunk.waiting]


def states(backend: LlamaBackend) -> dict[str, ModelState]:
    return {status.model_id: status.state for status in backend.models()}


async def test_model_is_loaded_by_its_first_job_and_stays(site: Site) -> None:
    types = KvTypes(KvType.Q8_0)
    options: dict[str, Any] = {"gpu_layers": 3, "device": 1, "tensor_split": (1.0,), "kv_type": types, "speculates": False}
    async with site.backend(site.entry(A, context_tokens=32, **options)) as backend:
        await until(lambda: states(backend) == {A: ModelState.UNLOADED})
        assert not site.engines
        await generate(backend, A)
        await generate(backend, A)
        assert [engine.answered for engine in site.engines] == [2]
        file = site.folder / "a.gguf"
        expected = engine_messages.LoadCommand(
            str(file), 2, 32, 1, 3, KvMode.EXACT, types, (1.0,), 1, speculates=False, stamps=file_stamps.stamps_of([file])
        )
        assert site.engines[0].load == expected
        assert states(backend) == {A: ModelState.READY}


async def test_status_before_and_after_the_load(site: Site) -> None:
    async with site.backend(site.entry(A, context=16, aliases=(C,), replicas=2)) as backend:
        await until(lambda: backend.models()[0].digest)
        before = backend.models()[0]
        assert (before.context_tokens, before.slots, before.aliases, before.memory_bytes, before.pinned) == (16, 4, (C,), 8, False)
        assert before.digest == hashlib.sha256((site.folder / "a.gguf").read_bytes()).hexdigest()
        await generate(backend, A)
        assert backend.models()[0].context_tokens == 99


async def test_embedding_model_is_announced_as_such_before_and_after_its_load(site: Site) -> None:
    async with site.backend(site.entry(A, architecture="nomic-bert"), site.entry(B)) as backend:
        assert not any(status.only_embeds for status in backend.models())
        await until(lambda: set(states(backend).values()) == {ModelState.UNLOADED})
        assert [status.only_embeds for status in backend.models()] == [True, False]
        await generate(backend, B)
        (engine,) = site.engines
        assert engine.loaded is not None
        engine.loaded = msgspec.structs.replace(engine.loaded, only_embeds=True)
        assert [status.only_embeds for status in backend.models()] == [True, True]


async def test_models_that_fit_stay_loaded_and_the_least_recently_used_is_evicted(site: Site) -> None:
    async with site.backend(site.entry(A), site.entry(B), site.entry(C)) as backend:
        for model in (A, B, A, C, A):
            await generate(backend, model)
        assert site.names == ["a", "b", "c"]
        assert len(site.running) == 2
        assert states(backend) == {A: ModelState.READY, B: ModelState.UNLOADED, C: ModelState.READY}


async def test_old_engine_ends_before_the_new_one_starts(site: Site) -> None:
    async with site.backend(site.entry(A), site.entry(B), budget=4) as backend:
        for model in (A, B, A, B):
            await generate(backend, model)
            assert len(site.running) == 1


async def test_callers_of_a_cold_model_share_one_load_and_get_its_progress(site: Site) -> None:
    site.may_load.clear()
    async with site.backend(site.entry(A)) as backend, asyncio.TaskGroup() as tasks:
        readers = [Reader(), Reader()]
        for reader in readers:
            tasks.create_task(backend.generate(job(model=A), reader))
        await until(lambda: all("loading a" in waits_of(reader) for reader in readers))
        site.engines[0].progress = 0.468
        await until(lambda: all("loading a: 46 %" in waits_of(reader) for reader in readers))
        assert backend.models()[0].detail == "loading: 40 %"
        site.engines[0].detail = "the engine was killed by signal 9; restarting"
        await until(lambda: all("signal 9" in waits_of(reader)[-1] for reader in readers))
        assert states(backend) == {A: ModelState.LOADING}
        site.may_load.set()
    assert len(site.engines) == 1
    for reader in readers:
        # The caller may have received a progress message about reading the file.
        assert [waits for waits in waits_of(reader) if "file" not in waits] == [
            "loading a",
            "loading a: 46 %",
            "loading a: the engine was killed by signal 9; restarting",
        ]
        assert not reader.text


async def test_embedding_request_loads_its_model_and_gets_its_progress(site: Site) -> None:
    site.may_load.clear()
    async with site.backend(site.entry(A)) as backend, asyncio.TaskGroup() as tasks:
        reader = VectorReader()
        embedding = tasks.create_task(backend.embed(texts_for(A, ("one", "two")), reader))
        await until(lambda: any("loading a" in waited for waited in reader.waited))
        assert backend.models()[0].running == 1
        site.may_load.set()
        assert await embedding == Embedded(1, 2)
        assert len(reader.vectors) == 2
        assert backend.models()[0].running == 0


async def test_caller_waiting_for_memory_sees_which_model_holds_it(site: Site) -> None:
    site.may_answer.clear()
    async with site.backend(site.entry(A), site.entry(B), budget=4) as backend, asyncio.TaskGroup() as tasks:
        tasks.create_task(generate(backend, A))
        await until(lambda: site.engines and site.engines[0].answered)
        reader = Reader()
        tasks.create_task(backend.generate(job(model=B), reader))
        await until(lambda: "waiting for memory for b, which a uses" in waits_of(reader))
        site.may_answer.set()
    assert site.names == ["a", "b"]


async def test_failed_load_reaches_all_waiting_callers_and_a_manual_load_retries(site: Site) -> None:
    site.may_load.clear()
    site.fails = "llama.cpp cannot load it: no memory"
    async with site.backend(site.entry(A)) as backend:
        waiting = [asyncio.ensure_future(generate(backend, A)) for _ in range(2)]
        await until(lambda: site.engines)
        site.may_load.set()
        refused = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in refused] == [errors.Unavailable] * 2
        assert "no memory" in str(refused[0])
        with pytest.raises(errors.Unavailable, match="no memory") as again:
            await generate(backend, A)
        assert again.value.retry_after_seconds is not None
        assert len(site.engines) == 1
        assert (backend.models()[0].state, backend.models()[0].detail) == (ModelState.FAILED, site.fails)
        site.fails = ""
        assert (await backend.load(A)).state is ModelState.READY
        await generate(backend, A)


async def test_model_with_a_failed_load_is_offered_again_only_once_loaded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_cache_policy, "LOAD_BACKOFF", Backoff(0.005, 0.005))
    site.fails = "llama.cpp cannot load it"
    async with site.backend(site.entry(A)) as backend:
        with pytest.raises(errors.Unavailable, match="cannot load it"):
            await generate(backend, A)
        seen: set[ModelState] = set()

        def is_tried_again() -> bool:
            seen.add(states(backend)[A])
            return len(site.engines) >= 3

        await until(is_tried_again)
        assert seen <= {ModelState.FAILED, ModelState.LOADING}
        site.fails = ""
        await until(lambda: states(backend) == {A: ModelState.READY})


async def test_replaced_file_is_not_loaded_after_a_failed_load(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_cache_policy, "LOAD_BACKOFF", Backoff(0.02, 300))
    sound = site.entry(A).file.read_bytes()
    entry = site.entry(A, digest=hashlib.sha256(sound).hexdigest())
    site.fails = "llama.cpp cannot load it"
    async with site.backend(entry) as backend:
        with pytest.raises(errors.Unavailable, match="cannot load it"):
            await generate(backend, A)
        await until(lambda: len(site.engines) == 2)
        entry.file.write_bytes(sound + bytes(32))
        await until(lambda: "not the file in the catalog" in backend.models()[0].detail)
        started = len(site.engines)
        assert states(backend) == {A: ModelState.FAILED}
        site.fails = ""
        entry.file.write_bytes(sound)
        await until(lambda: states(backend) == {A: ModelState.READY})
        assert len(site.engines) == started + 1


async def test_preloaded_model_is_not_offered_before_it_is_loaded(site: Site) -> None:
    seen: list[ModelState] = []
    async with site.backend(site.entry(A, preload=True)) as backend:
        site.watch.changed = lambda: seen.append(states(backend)[A])  # type: ignore[method-assign]  # called at each change
        await until(lambda: ModelState.READY in seen)
    assert set(seen[: seen.index(ModelState.READY)]) == {ModelState.LOADING}


async def test_model_larger_than_the_machine_fails_before_any_request(site: Site) -> None:
    async with site.backend(site.entry(A, memory_bytes=2**31), budget=2**30) as backend:
        await until(lambda: states(backend) == {A: ModelState.FAILED})
        assert backend.models()[0].detail == "needs 2.0 GiB, but models may use 1.0 GiB on this machine"
        with pytest.raises(errors.Unavailable, match=r"needs 2\.0 GiB"):
            await generate(backend, A)
        assert not site.engines


async def test_file_with_a_wrong_digest_is_never_loaded(site: Site) -> None:
    entry = site.entry(A, digest="ab" * 32, preload=True)
    right = hashlib.sha256(entry.file.read_bytes()).hexdigest()
    async with site.backend(entry) as backend:
        await until(lambda: states(backend) == {A: ModelState.FAILED})
        assert f"its SHA-256 is {right}, but should be {'ab' * 32}" in backend.models()[0].detail
        for order in (generate(backend, A), backend.load(A)):
            with pytest.raises(errors.Unavailable, match="not the file in the catalog"):
                await order
        assert not site.engines
    mended = site.entry(B)
    wanted = hashlib.sha256(mended.file.read_bytes()).hexdigest()
    sound = mended.file.read_bytes()
    mended.file.write_bytes(sound + bytes(32))
    async with site.backend(CatalogEntry(name=B, file=mended.file, digest=wanted, memory_bytes=4)) as backend:
        await until(lambda: states(backend) == {B: ModelState.FAILED})
        mended.file.write_bytes(sound)
        await generate(backend, B)
        assert site.names == ["b"]


async def test_digest_is_known_to_the_next_worker_without_reading_the_file(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # Treat files that were just written as settled.
    monkeypatch.setattr(model_files, "TICK_NS", 0)
    entry = site.entry(A)
    right = hashlib.sha256(entry.file.read_bytes()).hexdigest()
    async with site.backend(entry) as backend:
        await until(lambda: backend.models()[0].digest == right)
    other = "cd" * 32
    site.digests_file.write_text(site.digests_file.read_text().replace(right, other))
    async with site.backend(entry) as backend:
        await until(lambda: backend.models()[0].digest)
        assert backend.models()[0].digest == other


async def test_invalid_or_missing_file_fails_with_its_reason(site: Site) -> None:
    noise, gone = site.entry(A), site.entry(B)
    noise.file.write_bytes(b"GGUF" + b"\xff" * 100)
    gone.file.unlink()
    async with site.backend(noise, gone) as backend:
        await until(lambda: set(states(backend).values()) == {ModelState.FAILED})
        assert "a.gguf is not a usable model" in backend.models()[0].detail
        assert "b.gguf is not a usable model: there is no such file" in backend.models()[1].detail
        with pytest.raises(errors.Unavailable, match="not a usable model"):
            await generate(backend, A)


async def test_canceled_caller_leaves_the_load_to_the_others(site: Site) -> None:
    site.may_load.clear()
    async with site.backend(site.entry(A)) as backend:
        going, staying = asyncio.ensure_future(generate(backend, A)), asyncio.ensure_future(generate(backend, A))
        await until(lambda: site.engines)
        going.cancel()
        await asyncio.wait([going])
        site.may_load.set()
        await staying
        assert (len(site.engines), site.engines[0].answered) == (1, 1)
        assert backend.models()[0].running == 0


async def test_caller_canceled_while_being_admitted_holds_no_slot(site: Site) -> None:
    site.may_load.clear()
    async with site.backend(site.entry(A)) as backend:
        going = asyncio.ensure_future(generate(backend, A))
        await until(lambda: site.engines)
        # This call admits the caller, whose task hasn't run since.
        site.engines[0].become(ModelState.READY, "")
        going.cancel()
        await asyncio.wait([going])
        assert (await backend.unload(A)).state is ModelState.UNLOADED


async def test_idle_model_is_unloaded_after_keep_alive(site: Site) -> None:
    async with site.backend(site.entry(A, keep_alive_seconds=0.0), site.entry(B, keep_alive_seconds=0.0, pinned=True)) as backend:
        await generate(backend, A)
        await generate(backend, B)
        await until(lambda: states(backend)[A] is ModelState.UNLOADED and len(site.running) == 1)
        assert states(backend)[B] is ModelState.READY


async def test_load_pin_and_unload_on_request(site: Site) -> None:
    async with site.backend(site.entry(A), site.entry(B), budget=4) as backend:
        status = await backend.load(A, pin=True)
        assert (status.state, status.pinned) == (ModelState.READY, True)
        with pytest.raises(errors.Unavailable, match="a is pinned"):
            await generate(backend, B)
        assert (await backend.load(A)).pinned, "saying nothing of the pin leaves it"
        status = await backend.unload(A)
        assert (status.state, status.pinned, site.running) == (ModelState.UNLOADED, False, [])
        await generate(backend, B)
        assert (await backend.unload(A)).state is ModelState.UNLOADED


async def test_busy_model_is_not_unloaded(site: Site) -> None:
    site.may_answer.clear()
    async with site.backend(site.entry(A)) as backend:
        asking = asyncio.ensure_future(generate(backend, A))
        await until(lambda: site.engines and site.engines[0].answered)
        with pytest.raises(errors.Overloaded, match="a is in use: 1 requests"):
            await backend.unload(A)
        site.may_answer.set()
        await asking
        await backend.unload(A)


async def test_replicas_share_the_jobs(site: Site) -> None:
    site.may_answer.clear()
    async with site.backend(site.entry(A, replicas=2)) as backend, asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(generate(backend, A))
        await until(lambda: [engine.answered for engine in site.engines] == [2, 2])
        assert (backend.models()[0].running, backend.models()[0].queued) == (4, 0)
        site.may_answer.set()


async def test_as_many_replicas_start_as_fit(site: Site) -> None:
    async with site.backend(site.entry(A, replicas=5)) as backend:
        await generate(backend, A)
        assert len(site.engines) == 2
        assert (backend.models()[0].slots, backend.models()[0].memory_bytes) == (4, 8)


async def test_models_marked_for_preload_are_loaded_at_start_if_they_fit(site: Site) -> None:
    async with site.backend(
        *(site.entry(name, preload=name != B) for name in (A, B, C)), site.entry(ModelName("d"), preload=True)
    ) as backend:
        await until(lambda: all(status.digest for status in backend.models()))
        assert site.names == ["a", "c"]
        await until(lambda: sum(state is ModelState.READY for state in states(backend).values()) == 2)


async def test_engine_that_is_given_up_frees_memory_and_is_reported(site: Site) -> None:
    async with site.backend(site.entry(A), site.entry(B), budget=4) as backend:
        await generate(backend, A)
        site.engines[0].die("the engine crashed 5 times")
        assert backend.models()[0].detail == "the engine crashed 5 times"
        await generate(backend, B)
        assert states(backend) == {A: ModelState.FAILED, B: ModelState.READY}


async def test_remaining_replica_takes_over_the_work(site: Site) -> None:
    async with site.backend(site.entry(A, replicas=2)) as backend:
        await generate(backend, A)
        site.engines[0].die("the engine crashed 5 times")
        for _ in range(3):
            await generate(backend, A)
        assert [engine.answered for engine in site.engines] == [1, 3]
        assert states(backend) == {A: ModelState.READY}


async def test_queue_counts_callers_waiting_for_a_load(site: Site) -> None:
    site.may_load.clear()
    async with site.backend(site.entry(A)) as backend, asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(generate(backend, A))
        await until(lambda: site.engines)
        with pytest.raises(errors.Overloaded):
            await generate(backend, A)
        site.may_load.set()


async def test_shutdown_in_the_middle_of_everything_ends_everything(site: Site) -> None:
    site.may_load.clear()
    async with site.backend(site.entry(A), site.entry(B, preload=True)) as backend:
        waiting = asyncio.ensure_future(generate(backend, A))
        await until(lambda: len(site.engines) == 2)
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_shutdown_does_not_wait_for_a_digest(site: Site) -> None:
    entry = site.entry(A)
    # A sparse file; reading all of it takes minutes.
    os.truncate(entry.file, 2**38)
    async with site.backend(entry) as backend:
        await until(lambda: states(backend) == {A: ModelState.UNLOADED})
        await generate(backend, A)
    assert not backend.models()[0].digest


async def test_waiting_for_a_busy_model_times_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_cache_policy, "PATIENCE_SECONDS", 0.0)
    site.may_answer.clear()
    async with site.backend(site.entry(A), site.entry(B), budget=4) as backend, asyncio.TaskGroup() as tasks:
        tasks.create_task(generate(backend, A))
        await until(lambda: site.engines and site.engines[0].answered)
        second, late = Reader(), Reader()
        tasks.create_task(backend.generate(job(model=B), second))
        await until(lambda: any("waiting for memory" in waits for waits in waits_of(second)))
        tasks.create_task(backend.generate(job(model=A), late))
        await until(lambda: any("another model needs its memory first" in waits for waits in waits_of(late)))
        site.may_answer.set()
    assert site.names == ["a", "b", "a"]


async def test_added_model_is_served_and_a_removed_one_is_unloaded(site: Site) -> None:
    async with site.backend(site.entry(A)) as backend:
        added = site.entry(B)
        await backend.update([added])
        await until(lambda: states(backend) == {A: ModelState.UNLOADED, B: ModelState.UNLOADED})
        await generate(backend, B)
        assert states(backend)[B] is ModelState.READY
        await backend.update([])
        assert list(states(backend)) == [A], "it is listed no longer at once"
        await until(lambda: not site.running)
        await until(lambda: not backend._cache.has(B))
        await generate(backend, A)
        await backend.update([added])
        await generate(backend, B)


async def test_removed_models_finish_their_requests_first(site: Site) -> None:
    async with site.backend(budget=4) as backend, asyncio.TaskGroup() as tasks:
        await backend.update([site.entry(A), site.entry(B)])
        site.may_answer.clear()
        waiting = Reader()
        running = tasks.create_task(backend.generate(job(model=A), Reader()))
        await until(lambda: site.engines and site.engines[0].answered)
        tasks.create_task(backend.generate(job(model=B), waiting))
        await until(lambda: any("waiting for memory" in waits for waits in waits_of(waiting)))
        await backend.update([])
        site.may_answer.set()
        assert await running == GENERATION
    assert site.names == ["a", "b"]


async def test_pinned_and_failing_models_can_be_removed(site: Site) -> None:
    async with site.backend() as backend:
        await backend.update([site.entry(A), site.entry(B)])
        await backend.load(A, pin=True)
        site.fails = "it is broken"
        with pytest.raises(errors.Unavailable, match="broken"):
            await backend.load(B)
        await backend.update([])
        await until(lambda: not (site.running or backend._cache.has(A) or backend._cache.has(B)))


async def test_model_with_a_new_file_replaces_the_old_one(site: Site) -> None:
    async with site.backend() as backend:
        await backend.update([site.entry(A, context=16)])
        await generate(backend, A)
        changed = site.entry(A, context=32, context_tokens=32)

        async def replaced() -> bool:
            await backend.update([changed])
            return [status.context_tokens for status in backend.models()] == [32]

        async with asyncio.timeout(30):
            while not await replaced():  # noqa: ASYNC110 - the worker polls the store like this
                await asyncio.sleep(0.005)
        assert not site.running


async def test_configured_models_win_over_pulled_ones_of_the_same_name(site: Site) -> None:
    configured = site.entry(A, aliases=(C,))
    async with site.backend(configured) as backend:
        await backend.update([site.entry(A, context=16), site.entry(C), site.entry(B)])
        assert [cached.entry.name for cached in backend._cache.all()] == [A, B]
        assert backend._cache.get(A).entry is configured


async def test_no_more_models_are_served_than_can_be_announced(site: Site) -> None:
    async with site.backend(site.entry(A)) as backend:
        await backend.update([site.entry(ModelName(f"m{number}")) for number in range(70)])
        assert len(backend.models()) == catalog.MAX_NAMES
