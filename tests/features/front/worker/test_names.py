"""A worker offers a model under another name when a gateway says that its own is taken."""

import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from features.front import contract
from features.front.rules.local_servers import SharedServer
from features.front.settings import FrontSettings
from features.front.worker import part
from services.inference.announcements import Announcements
from services.inference.features import Site
from services.inference.settings import InferenceSettings
from shared import errors
from shared.types import ModelName
from tests.features.front.ollama_standin import OllamaStandIn
from tests.services.inference.standins import Node
from tests.stacks import until

SHARED = ("qwen3:8b", "gemma3:4b")


class Gateway:
    """Answers as a gateway of which the test says which names are taken."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.is_away = False
        self.asked: list[contract.NameModels] = []

    async def call(self, method: Any, request: contract.NameModels, *, deadline_seconds: float) -> contract.ModelNames:
        assert (method, deadline_seconds) == (contract.name_models, 10.0)
        self.asked.append(request)
        if self.is_away:
            raise errors.Unavailable("no gateway")
        names = (f"box/{build.name}" if build.name in self.taken else build.name for build in request.builds)
        return contract.ModelNames(tuple(map(ModelName, names)))


class MemberNode(Node):
    def __init__(self, gateway: Gateway) -> None:
        super().__init__()
        self.rpc = gateway  # type: ignore[assignment]


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), OllamaStandIn) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "_NAMES_SECONDS", 0.05)
    monkeypatch.setattr(part, "_LIST_SECONDS", 0.02)


def site_of(folder: Path, url: str, gateway: Gateway) -> Site:
    file = folder / "server.json"
    file.write_bytes(msgspec.json.encode(SharedServer(kind="ollama", url=url, models=SHARED)))
    settings = InferenceSettings(node_key_file=folder / "node.nk", backend="front", more=(FrontSettings(server_file=file),))
    node = MemberNode(gateway)
    return Site(settings=settings, node=node, watcher=Announcements(node))  # type: ignore[arg-type]


async def opened(stack: AsyncExitStack, site: Site) -> Any:
    return await stack.enter_async_context(part.PART.backends["front"](site))


async def offers(backend: Any, *names: str) -> None:
    async def found() -> bool:
        return {status.model_id for status in backend.models()} == set(names)

    await until(found, seconds=20, what=f"the worker offers {names}")


async def test_a_taken_name_gets_the_machines_name_and_stays_so(tmp_path: Path, url: str) -> None:
    gateway = Gateway()
    gateway.taken = {"qwen3:8b"}
    async with AsyncExitStack() as stack:
        backend = await opened(stack, site_of(tmp_path, url, gateway))
        await offers(backend, "box/qwen3:8b", "gemma3:4b")
        gateway.taken = set()
        asked = len(gateway.asked)

        async def has_asked_again() -> bool:
            return len(gateway.asked) >= asked + 3

        await until(has_asked_again, seconds=20, what="the worker asks again")
        assert {status.model_id for status in backend.models()} == {"box/qwen3:8b", "gemma3:4b"}
        (status,) = [each for each in backend.models() if each.model_id == "box/qwen3:8b"]
        assert (status.upstream_model, status.digest, status.quantization) == ("qwen3:8b", "1" * 64, "Q4_K_M")
    assert {(build.name, build.digest, build.quantization) for build in gateway.asked[0].builds} == {
        ("qwen3:8b", "1" * 64, "Q4_K_M"),
        ("gemma3:4b", "3" * 64, "Q4_K_M"),
    }


async def test_a_name_that_is_taken_later_changes_while_it_runs(tmp_path: Path, url: str) -> None:
    gateway = Gateway()
    async with AsyncExitStack() as stack:
        backend = await opened(stack, site_of(tmp_path, url, gateway))
        await offers(backend, "qwen3:8b", "gemma3:4b")
        gateway.taken = {"gemma3:4b"}
        await offers(backend, "qwen3:8b", "box/gemma3:4b")


async def test_without_a_gateway_models_keep_their_names(tmp_path: Path, url: str) -> None:
    gateway = Gateway()
    gateway.is_away = True
    async with AsyncExitStack() as stack:
        await offers(await opened(stack, site_of(tmp_path, url, gateway)), "qwen3:8b", "gemma3:4b")
