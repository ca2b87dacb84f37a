"""A worker tells which servers and models of its machine are new, and shares none of them."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from features.front.rules.local_servers import LocalProgram, SharedServer
from features.front.rules.sharing import ServersFile
from features.front.settings import FrontSettings
from features.front.worker import background, look
from services.inference import features
from services.inference.announcements import Announcements
from services.inference.backends.echo import EchoBackend
from services.inference.features import Site
from services.inference.settings import InferenceSettings
from shared.node import lifecycle
from tests.services.inference.fake_http import Answer, serving
from tests.services.inference.standins import Node, until
from tests.testnet import free_port

VLLM = {
    "/version": Answer(['{"version": "0.11.0"}']),
    "/v1/models": lambda _: Answer([json.dumps({"data": [{"id": name, "owned_by": "vllm"} for name in MODELS]})]),
}
MODELS = ["big"]


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """The only port where a server may be."""
    programs = [LocalProgram("vllm", "vLLM", free_port())]
    for module in (background, look):
        monkeypatch.setattr(module, "PROGRAMS", programs)
    return programs[0].port


@pytest.fixture
def choice(tmp_path: Path) -> Path:
    return tmp_path / "servers.json"


def keep(choice: Path, body: bytes) -> None:
    choice.write_bytes(body)


@asynccontextmanager
async def watching(choice: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Announcements, Node]]:
    monkeypatch.setattr(background, "_PAUSE_SECONDS", 0.01)
    node = Node()
    watcher = Announcements(node)  # type: ignore[arg-type]
    watcher.backend = EchoBackend(0, 1, watcher)
    settings = InferenceSettings(
        node_key_file=choice.with_name("node.nk"), mesh_state_file=choice.with_name("mesh.json"), more=(FrontSettings(choice_file=choice),)
    )
    site = Site(settings=settings, node=node, watcher=watcher)  # type: ignore[arg-type]
    (task,) = [each for each in features.tasks() if each.name == "new servers"]
    async with lifecycle.background() as tasks:
        tasks.create_task(task.run(site))
        yield watcher, node


async def test_a_server_that_starts_later_is_told_until_it_ends(choice: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async with watching(choice, monkeypatch) as (watcher, node):
        async with serving(VLLM, port):
            await until(lambda: watcher.notices)
            assert node.offers[-1].notice == "Not shared yet: vLLM. See aicli worker status there"
            assert "vLLM runs here and isn't shared" in watcher.notices[0]
            # The models of the worker are the same.
            assert [offer.name for offer in node.offers[-1].models] == ["echo"]
        await until(lambda: not watcher.notices)
        assert node.offers[-1].notice == ""


async def test_a_new_model_of_a_shared_server_is_told(choice: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "MODELS", ["big"])
    kept = ServersFile(servers=(SharedServer(kind="vllm", url="u", models=("big",)),), seen={"vllm": ("big",)})
    keep(choice, msgspec.json.encode(kept))
    async with watching(choice, monkeypatch) as (watcher, node), serving(VLLM, port) as server:
        await until(lambda: server.times_asked("/v1/models") == 2)
        assert (watcher.notices, node.offers) == ((), [])
        MODELS.append("bigger")
        await until(lambda: watcher.notices)
        assert "vLLM has new models, not shared yet: bigger." in watcher.notices[0]


async def test_a_declined_server_is_not_told(choice: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(choice, msgspec.json.encode(ServersFile(declined=("vllm",))))
    async with watching(choice, monkeypatch) as (watcher, _), serving(VLLM, port) as server:
        await until(lambda: server.times_asked("/v1/models") == 2)
        assert watcher.notices == ()


async def test_a_damaged_choice_does_not_end_the_worker(choice: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(choice, b"{")
    async with watching(choice, monkeypatch) as (watcher, _), serving(VLLM, port):
        await until(lambda: watcher.notices)
        assert "cannot read" in watcher.notices[0]


async def test_a_worker_without_the_setting_looks_for_nothing(tmp_path: Path) -> None:
    settings = InferenceSettings(node_key_file=tmp_path / "node.nk", more=(FrontSettings(),))
    node = Node()
    await background.PART.run(Site(settings=settings, node=node, watcher=Announcements(node)))  # type: ignore[arg-type]
