"""A worker that starts without a model: it waits, says why, and serves the first model that appears."""

import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from services.inference import model_pulls
from services.inference.models.model_discovery import installed, packaged
from services.inference.models.model_store import ModelStore
from services.inference.service import InferenceService
from services.inference.settings import InferenceSettings
from shared import config, errors
from shared.api import inference
from shared.api.node import FIRST_MODEL
from shared.context import new_request_id
from shared.node.lifecycle import background
from shared.rpc import StreamCall
from shared.timing.backoff import Backoff
from shared.types import ModelName
from tests.services.inference.models import fake_hub, ranged_server
from tests.services.inference.models.fake_hub import FakeHub
from tests.services.inference.standins import Node, Reader, until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_pulls, "BACKOFF", Backoff(0.01, 0.01))
    monkeypatch.setattr(model_pulls, "REPORT_SECONDS", 0.01)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub.serving() as site:
        yield site


@pytest.fixture
def node() -> Node:
    return Node()


@asynccontextmanager
async def started(node: Node, folder: Path, **given: Any) -> AsyncIterator[InferenceService]:
    """Run a worker whose state is in ``folder``."""
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240
    settings = InferenceSettings(node_key_file=folder / "worker.nk", slots=1, context_tokens=128, threads=1, model_memory="1GiB", **given)
    async with background() as node.tasks, InferenceService.open(settings, node) as service:
        yield service


async def ready(node: Node, service: InferenceService) -> None:
    await until(lambda: node.offers[-1].not_ready == "")
    assert all(check.ok or not check.needed for check in await service.checks())


async def why_not(service: InferenceService) -> str:
    """Return what /readyz says."""
    [why] = [check.detail for check in await service.checks() if check.needed and not check.ok]
    return why


async def answers(service: InferenceService, model: str) -> bool:
    prompt = inference.ProcessPrompt("Say hello", inference.ModelConfig(model=ModelName(model), max_tokens=2), new_request_id())
    generation = await service.process_prompt(prompt, cast("StreamCall[inference.Chunk]", Reader()))
    return generation.usage.completion_tokens == 2


@pytest.mark.parametrize("exists", [True, False], ids=["empty folder", "no folder yet"])
async def test_worker_with_an_empty_models_dir_waits_until_a_file_is_put_there(node: Node, tmp_path: Path, exists: bool) -> None:
    models, body = tmp_path / "models", packaged().read_bytes()
    if exists:
        models.mkdir()
    async with started(node, tmp_path / "state", models_dir=models) as service:
        await until(lambda: node.offers and node.offers[-1].not_ready.startswith("waiting for models"))
        assert await why_not(service) == f"waiting for models: run `aicli models pull`, or put a .gguf file into {models}"
        assert [check.name for check in await service.checks() if not check.ok] == [FIRST_MODEL], "`make up` doesn't wait for it"
        models.mkdir(exist_ok=True)
        copy = models / "mine.gguf"
        # While it is copied, it isn't served.
        copy.write_bytes(body[: len(body) // 2])
        await until(lambda: "truncated" in node.offers[-1].not_ready)
        with copy.open("ab") as file:
            file.write(body[len(body) // 2 :])
        await ready(node, service)
        assert await answers(service, "mine")
        copy.unlink()
        await until(lambda: node.offers[-1].not_ready.startswith("waiting for models"))


async def test_the_share_of_the_stores_quota_in_use_is_measured(node: Node, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "a" / "models")
    store.ensure_folders()
    (store.blob("ab" * 32)).write_bytes(bytes(1000))
    async with started(node, tmp_path / "a", models_dir=tmp_path / "empty", model_store_quota="4kB"):
        assert node.metrics.registry.get_sample_value("ai_platform_model_store_used_ratio") == 0.25


async def test_files_of_the_settings_are_served_once(node: Node, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    for name in ("first", "named"):
        (models / f"{name}.gguf").symlink_to(packaged())
    (tmp_path / "models.yaml").write_text("- {name: other, file: models/named.gguf}\n")
    async with started(node, tmp_path / "state", models_dir=models, models_yaml=tmp_path / "models.yaml") as service:
        await ready(node, service)
        (models / "later.gguf").symlink_to(packaged())
        (models / "a=b.gguf").symlink_to(packaged())
        await until(lambda: len(node.offers[-1].models) > 2)
        assert [offer.name for offer in node.offers[-1].models] == ["other", "first", "later"]


async def test_models_pull_is_served_instead_of_the_packaged_model_and_says_what_is_missing(
    node: Node, hub: FakeHub, tmp_path: Path
) -> None:
    body = installed().read_bytes()
    hub.add_repository("org/tiny", {"tiny-Q4_1.gguf": body})
    hub.statuses["/api/models/org/tiny"] = [404] * 3
    hub.add_repository("org/page", {"page.gguf": b"<html>"})
    sources = ("hf:org/gone", "hf:org/page", "hf:org/tiny:Q4_1")
    async with started(node, tmp_path / "state", models_pull=sources, hub_url=hub.url) as service:
        await until(lambda: "hf:org/gone: there is no" in node.offers[-1].not_ready)
        assert (await why_not(service)).startswith("waiting for models: ")
        await ready(node, service)
        assert [offer.name for offer in node.offers[-1].models] == ["tiny-Q4_1"]
        assert await answers(service, "tiny-Q4_1")
        # The other source is still tried.
        before = hub.paths().count("/api/models/org/gone?blobs=true")
        await until(lambda: hub.paths().count("/api/models/org/gone?blobs=true") > before)
        # What is no model is not.
        assert sum("page.gguf" in path for path in hub.paths()) == 1


async def test_a_restarted_worker_resumes_its_pull_and_then_serves_without_the_server(node: Node, tmp_path: Path) -> None:
    state, body = tmp_path / "state", installed().read_bytes()
    with ranged_server.serving(body, pause_at=40_000_000) as server:
        server.gate.clear()
        given = {"models_pull": (f"{server.url}#sha256={server.digest}",)}
        async with started(node, state, **given) as service:
            # `make up` waits as long as this changes.
            waits = f"waiting for models: pulling {server.url}: {100 * 40_000_000 // len(body)} %"
            await until(lambda: node.offers and node.offers[-1].not_ready == waits)
            assert await why_not(service) == waits
            assert FIRST_MODEL not in [check.name for check in await service.checks()]
        server.gate.set()
        async with started(node, state, **given) as service:
            await ready(node, service)
        assert server.ranges()[-1] not in (None, "bytes=0-")
        assert server.sent_bytes < len(body) + 1_000_000
    [model] = ModelStore(state / "models").models()
    assert model.digest == hashlib.sha256(body).hexdigest()
    async with started(node, state, **given) as service:
        await ready(node, service)
        assert await answers(service, model.name)


async def test_a_worker_whose_models_pull_changed_serves_only_the_new_model(node: Node, hub: FakeHub, tmp_path: Path) -> None:
    for name in ("old", "new"):
        hub.add_repository(f"org/{name}", {f"{name}-Q4_1.gguf": installed().read_bytes()})
    given = {"hub_url": hub.url, "model_store": tmp_path / "volume"}
    async with started(node, tmp_path / "state", models_pull=("hf:org/old",), **given) as service:
        await ready(node, service)
    hub.statuses["/api/models/org/new"] = [404]
    changed = Node()
    async with started(changed, tmp_path / "state", models_pull=("hf:org/new",), **given) as service:
        await ready(changed, service)
    assert [offer.name for offer in changed.offers[-1].models] == ["new-Q4_1"]
    assert "old-Q4_1" not in {offer.name for offers in changed.offers for offer in offers.models}


async def test_two_workers_with_one_store_download_a_model_once(tmp_path: Path) -> None:
    nodes = (Node(), Node())
    with ranged_server.serving(ranged_server.model_bytes(3_000_000), pause_at=1_000_000) as server:
        server.gate.clear()
        given = {"models_pull": (server.url,), "model_store": tmp_path / "shared"}
        async with started(nodes[0], tmp_path / "a", **given), started(nodes[1], tmp_path / "b", **given):
            await until(lambda: all(node.offers and node.offers[-1].pulls for node in nodes))
            server.gate.set()
            await until(lambda: all(node.offers[-1].models for node in nodes))
            await until(lambda: not any(node.offers[-1].pulls for node in nodes))
        assert server.sent_bytes == len(server.body)


def test_a_source_that_no_pull_understands_is_a_mistake_of_the_settings() -> None:
    environment = {"NODE_KEY_FILE": "x", "MODELS_PULL": "hf:org/tiny:Q8_0,ollama:gemma3:4b,tiny,hf:no"}
    with pytest.raises(errors.BadSettings) as refused:
        config.load(InferenceSettings, environment)
    assert "MODELS_PULL: tiny: " in refused.value.message
    assert "MODELS_PULL: hf:no: " in refused.value.message
    assert "gemma3" not in refused.value.message
    good = config.load(InferenceSettings, {**environment, "MODELS_PULL": "hf:org/tiny:Q8_0, ollama:gemma3:4b"})
    assert good.models_pull == ("hf:org/tiny:Q8_0", "ollama:gemma3:4b")
