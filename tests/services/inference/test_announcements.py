"""What a worker announces: its models, its load, and whether its owner has paused it."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from prometheus_client import generate_latest

from services.inference import announcements
from services.inference.announcements import Announcements
from services.inference.backend_interface import WarningTopic
from services.inference.backends.echo import EchoBackend
from services.inference.engine_speed import EngineSpeed
from services.inference.models import catalog
from shared.api.inference import ModelState, ModelStatus
from shared.api.servers import NO_SERVER
from shared.protocol import directory
from shared.types import Ability, ModelName
from tests.services.inference.standins import Node, until
from tests.shared.protocol.test_directory import make_announcement


def test_pause_survives_a_restart(tmp_path: Path) -> None:
    (tmp_path / "paused").touch()
    assert Announcements(Node(), tmp_path / "paused").is_paused
    assert not Announcements(Node(), tmp_path / "none").is_paused
    assert not Announcements(Node()).is_paused


async def test_pause_and_resume_are_announced_once_each(tmp_path: Path) -> None:
    node, file = Node(), tmp_path / "paused"
    watcher = Announcements(node, file)
    watcher.backend = EchoBackend(0, 1, watcher)
    watching = asyncio.create_task(watcher.follow_pause(0.001))
    file.touch()
    await until(lambda: len(node.offers) == 1)
    file.unlink()
    await until(lambda: len(node.offers) == 2)
    watching.cancel()
    await asyncio.wait({watching})
    assert [offer.not_ready for offer in node.offers] == ["paused by its owner", ""]


async def test_an_unused_gpu_is_announced_and_hides_nothing() -> None:
    node = Node()
    watcher = Announcements(node)
    # The devices are searched before there is a backend.
    watcher.warn("the GPU is not used", WarningTopic.DEVICES)
    watcher.backend = EchoBackend(0, 1, watcher)
    watcher.changed()
    (offer,) = node.offers
    assert (offer.warning, offer.not_ready) == ("the GPU is not used", "")
    watcher.warn("a swaps", WarningTopic.SWAPS)
    assert node.offers[-1].warning == "the GPU is not used; a swaps"
    watcher.warn("", WarningTopic.DEVICES)
    assert node.offers[-1].warning == "a swaps"


async def test_news_for_the_owner_is_no_warning_and_reaches_the_mesh_in_short() -> None:
    node = Node()
    watcher = Announcements(node)
    watcher.backend = EchoBackend(0, 1, watcher)
    watcher.inform("Not shared yet: LM Studio", ("LM Studio has private-model",))
    (offer,) = node.offers
    assert (offer.notice, offer.warning, watcher.notices) == ("Not shared yet: LM Studio", "", ("LM Studio has private-model",))
    watcher.inform("Not shared yet: LM Studio", ("LM Studio has another-model",))
    assert len(node.offers) == 1


async def test_why_there_is_no_model_is_announced() -> None:
    node = Node()
    watcher = Announcements(node)
    watcher.backend = NoModels(0, 1, watcher)
    watcher.changed()
    watcher.lack_models(NO_SERVER)
    assert [offer.not_ready for offer in node.offers] == ["it has no model to serve", NO_SERVER]


class NoModels(EchoBackend):
    def models(self) -> tuple[ModelStatus, ...]:
        return ()


@pytest.mark.parametrize(("backend", "is_paused", "free"), [(NoModels, False, 12 * 10**9), (NoModels, True, 0), (EchoBackend, False, 0)])
def test_only_a_worker_without_models_announces_its_memory(backend: type[EchoBackend], free: int, *, is_paused: bool) -> None:
    async def announced() -> directory.WorkerLoad:
        node = Node()
        watcher = Announcements(node, accepts_models=lambda: False)
        watcher.is_paused, watcher.backend = is_paused, backend(0, 1, watcher)
        watcher.memory_found(12 * 10**9)
        return node.offers[-1].load

    load = asyncio.run(announced())
    assert (load.free_bytes, load.accepts_models) == (free, False)


async def test_without_a_file_there_is_no_pause_to_follow() -> None:
    await Announcements(Node()).follow_pause()


def test_as_many_adapters_as_there_may_be_fit_an_announcement() -> None:
    long = ModelName("m" * (catalog.MAX_NAME_CHARACTERS - 5))
    status = ModelStatus(long, ModelState.READY, "", "llama", 32_768, 32, 32, 999, digest="d" * 64, abilities=tuple(Ability), parent=long)
    offers = tuple(announcements._offer(ModelName(f"{long}:{number:04}"), status) for number in range(catalog.MAX_NAMES))
    announced = make_announcement(models=offers)
    assert directory.decode(directory.encode(announced)).models == offers
    assert {offer.parent for offer in offers} == {long}


async def test_a_worker_with_hundreds_of_models_announces_those_that_other_nodes_read() -> None:
    """A provider may list 400 models. Nodes drop an announcement that is too large, and the worker with it."""
    node = Node()
    watcher = Announcements(node)
    watcher.warn("w" * 1000, WarningTopic.DEVICES)
    watcher.inform("n" * 1000, ())
    watcher.backend = ProviderOfModels(0, 1, watcher)
    watcher.changed()
    (offer,) = node.offers
    announced = make_announcement(
        models=offer.models, load=offer.load, not_ready=offer.not_ready, warning=offer.warning, notice=offer.notice
    )
    assert directory.decode(directory.encode(announced)) == announced
    assert [model.name for model in offer.models] == [
        f"provider/model-of-this-year-{number:03}:free" for number in range(len(offer.models))
    ]
    assert len(offer.models) >= 140


class ProviderOfModels(EchoBackend):
    def models(self) -> tuple[ModelStatus, ...]:
        (status,) = super().models()
        named = msgspec.structs.replace(status, digest="", state=ModelState.LOADING, detail="the server does not answer: " + "x" * 300)
        names = [ModelName(f"provider/model-of-this-year-{number:03}:free") for number in range(256)]
        listed = {"provider": "openrouter", "abilities": ("tools", "reasoning", "images")}
        return tuple(msgspec.structs.replace(named, model_id=name, **listed) for name in names)


async def test_removed_model_leaves_no_gauges() -> None:
    node = Node()
    watcher = Announcements(node)
    watcher.backend = backend = ShrinkingBackend(0, 1, watcher)
    watcher.changed()
    assert 'ai_platform_worker_up{model="echo"' in exposed(node)
    for line in (
        'model_cpu_seconds{model="echo"} 1.5',
        'model_memory_bytes{model="echo"} 2.0',
        'model_vram_bytes{model="echo"} 3.0',
        'prompt_cache_bytes{model="echo"} 4.0',
        'prompt_cache_hits{model="echo"} 5.0',
    ):
        assert f"ai_platform_{line}" in exposed(node)
    assert 'ai_platform_drafted_tokens_total{model="echo",result="accepted"} 0.0' in exposed(node), "before the first one"
    watcher.drafted(ModelName("echo"), 16, 13)
    assert 'ai_platform_drafted_tokens_total{model="echo",result="accepted"} 13.0' in exposed(node)
    assert 'ai_platform_drafted_tokens_total{model="echo",result="rejected"} 3.0' in exposed(node)
    watcher.preempted(ModelName("echo"), 2)
    assert 'ai_platform_batch_preempted_total{model="echo"} 2.0' in exposed(node)
    backend.is_empty = True
    watcher.changed()
    await until(lambda: node.offers[-1].models == ())
    assert 'ai_platform_worker_up{model="echo"' not in exposed(node)
    assert 'ai_platform_worker_slots{model="echo"' not in exposed(node)
    assert [line for line in exposed(node).splitlines() if "_bytes{" in line or "cache_hits{" in line] == []


async def test_adapters_are_offered_and_share_the_slots_of_their_model() -> None:
    node = Node()
    watcher = Announcements(node)
    watcher.backend = backend = BackendWithAdapter(0, 1, watcher)
    watcher.changed()
    base = backend.models()[0]
    assert [(offer.name, offer.parent, offer.slots) for offer in node.offers[-1].models] == [
        ("echo", None, base.slots),
        ("echo:sql", "echo", base.slots),
    ]
    assert node.offers[-1].load.slots == base.slots
    assert 'ai_platform_worker_up{model="echo:sql"} 1.0' in exposed(node)
    assert 'ai_platform_worker_slots{model="echo:sql"' not in exposed(node)
    backend.is_empty = True
    watcher.changed()
    await until(lambda: 'ai_platform_worker_up{model="echo:sql"' not in exposed(node))


async def test_changes_of_a_busy_backend_share_an_offer_and_the_last_one_counts() -> None:
    node = Node()
    watcher = Announcements(node)
    watcher.backend = backend = ShrinkingBackend(0, 1, watcher)
    for _ in range(100):
        watcher.load_changed()
    backend.is_empty = True
    await until(lambda: len(node.offers) > 1)
    assert [len(offer.models) for offer in node.offers] == [1, 0]


async def test_a_state_is_offered_at_once_after_changes_of_the_load() -> None:
    node = Node()
    watcher = Announcements(node)
    watcher.backend = backend = ShrinkingBackend(0, 1, watcher)
    for _ in range(3):
        watcher.load_changed()
    backend.is_empty = True
    watcher.changed()
    assert [len(offer.models) for offer in node.offers] == [1, 0]
    backend.is_empty = False
    watcher.load_changed()
    assert len(node.offers) == 2, "changes of the load wait after any update"
    await until(lambda: len(node.offers) > 2)


class ShrinkingBackend(EchoBackend):
    has_engines = True
    is_empty = False

    def figures(self, _: ModelName) -> EngineSpeed:
        return EngineSpeed(cpu_seconds=1.5, ram_bytes=2, vram_bytes=3, cache_bytes=4, cache_hits=5)

    def models(self) -> tuple[ModelStatus, ...]:
        return () if self.is_empty else super().models()


class BackendWithAdapter(ShrinkingBackend):
    def models(self) -> tuple[ModelStatus, ...]:
        return tuple(
            each
            for status in super().models()
            for each in (status, msgspec.structs.replace(status, model_id=ModelName("echo:sql"), parent=status.model_id))
        )


def exposed(node: Node) -> str:
    return generate_latest(node.metrics.registry).decode()


async def test_swaps_are_counted_by_model() -> None:
    node = Node()
    watcher = Announcements(node)
    for _ in range(2):
        watcher.swapped(ModelName("a"))
    assert 'ai_platform_model_swaps_total{model="a"} 2.0' in exposed(node)


async def test_a_scrape_tells_which_models_are_not_trusted() -> None:
    node = Node()
    watcher = Announcements(node)
    watcher.backend = backend = DistrustedBackend(0, 1, watcher)
    for backend.distrust, expected in (("unsigned", 'reason="unsigned"} 1.0'), ("revoked", 'reason="revoked"} 1.0'), ("", "")):
        watcher.changed()
        shown = [line for line in exposed(node).splitlines() if line.startswith("ai_platform_model_untrusted{")]
        assert [line.partition(",")[2] for line in shown] == ([expected] if expected else [])
    backend.state = ModelState.FAILED
    watcher.changed()
    assert node.offers[-1].models[0].problem == ("it was revoked: " + 200 * "x")[: directory.MAX_PROBLEM_CHARACTERS]
    assert node.offers[0].models[0].problem == ""


class DistrustedBackend(EchoBackend):
    distrust = ""
    state = ModelState.READY

    def models(self) -> tuple[ModelStatus, ...]:
        detail = "it was revoked: " + 200 * "x"
        return tuple(
            msgspec.structs.replace(status, distrust=self.distrust, state=self.state, detail=detail) for status in super().models()
        )


async def test_downloads_assigned_models_and_what_is_missing_are_announced_when_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "ANNOUNCE_SECONDS", 0.001)
    node = Node()
    watcher = Announcements(node)
    watcher.backend = EchoBackend(0, 1, watcher)
    pulls, assigned = (directory.ModelPull("qwen", 1, 2, 0.5),), (ModelName("qwen"),)

    looks = 0

    def read_pulls() -> tuple[directory.ModelPull, ...]:
        nonlocal looks
        looks += 1
        return pulls if looks < 5 else ()

    def read_missing() -> str:
        return "a library is missing" if looks < 9 else ""

    work = watcher.follow_machine(read_pulls, lambda: assigned if looks >= 7 else (), lambda: assigned if looks >= 11 else (), read_missing)
    following = asyncio.create_task(work)
    await until(lambda: len(node.offers) > 4 and looks > 14)
    following.cancel()
    await asyncio.wait({following})
    assert [(offer.pulls, offer.assigned, offer.refused, offer.warning) for offer in node.offers] == [
        (pulls, (), (), "a library is missing"),
        ((), (), (), "a library is missing"),
        ((), assigned, (), "a library is missing"),
        ((), assigned, (), ""),
        ((), assigned, assigned, ""),
    ]
