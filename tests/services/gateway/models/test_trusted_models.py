"""A whole gateway and a worker with real engines: which versions are loaded as keys sign them, rules change and versions are revoked."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from services.gateway.service import GatewayService
from services.gateway.settings import GatewaySettings
from services.inference import model_trust as worker_trust
from services.inference.service import InferenceService
from services.inference.settings import InferenceSettings
from shared import errors
from shared.api import configuration, deployments, gateway, inference, model_trust, models
from shared.api.configuration import ConfigDocument
from shared.api.gateway import InferenceRequest, ModelPlace, ProcessInferenceRequest
from shared.api.model_copies import VERSION_SOURCE
from shared.config_documents import ConfigKind, DeploymentDocument, Document, TrustDocument, TrustMode
from shared.node.client_node import ClientNode
from shared.protocol.directory import Announcement
from shared.types import FinishReason, ModelName, Role
from tests.services.gateway.models import registries
from tests.services.gateway.models.registries import LLAMA, push_of
from tests.services.gateway.models.test_pushed_models import KEYS, Auth, Site, push
from tests.shared.models.publishers import Publisher
from tests.testnet import MESH, RunningNode, testnet, until

ADA, EVE = Publisher(), Publisher()
ADMIN = KEYS["admin"]
ONE, TWO = ModelName("llama3@1"), ModelName("llama3@2")


@dataclass
class Mesh:
    site: Site
    client: ClientNode
    gateway: RunningNode
    worker: RunningNode

    async def get(self, seed: int, folder: Path) -> str:
        """Push a version, and let the worker get it. Return its digest."""
        version = await push(self.site, "admin", push_of({"model.gguf": registries.gguf(folder, seed, layers=1)}), LLAMA)
        assert version["state"] == "ready", version
        name = f"llama3@{version['version']}"
        await self.apply(ConfigKind.DEPLOYMENT, name, DeploymentDocument(source=VERSION_SOURCE + version["digest"]))
        await until(lambda: any(offer.name == name for offer in self.announced.models))
        return str(version["digest"])

    @property
    def announced(self) -> Announcement:
        """What the gateway has heard of the worker."""
        (entry,) = self.gateway.node.directory.entries(Role.WORKER)
        return entry.announcement

    def statuses(self) -> dict[str, inference.ModelStatus]:
        return {status.model_id: status for status in self.worker.service._backend.models()}  # type: ignore[attr-defined]

    async def sign(self, number: int, digest: str, publisher: Publisher) -> None:
        request = model_trust.SignModelVersion(LLAMA, number, publisher.sign(digest))
        await self.client.rpc.call(model_trust.sign_model_version, request, credential=ADMIN)

    async def trust(self, mode: TrustMode, *publishers: Publisher) -> None:
        body = TrustDocument(mode=mode, keys=tuple(each.public for each in publishers))
        await self.apply(ConfigKind.TRUST, "llama*", body)

    async def apply(self, kind: ConfigKind, name: str, body: Document) -> None:
        document = ConfigDocument(kind, name, msgspec.json.encode(body).decode())
        await self.client.rpc.call(configuration.apply_config, configuration.ApplyConfig(documents=(document,)), credential=ADMIN)

    async def load(self, name: ModelName) -> ModelPlace:
        request = gateway.LoadOnWorker(name, self.worker.node.id)
        (place,) = (await self.client.rpc.call(gateway.load_model, request, credential=ADMIN, deadline_seconds=30)).places
        return place

    async def is_refused(self, name: ModelName, why: str) -> None:
        await until(lambda: (status := self.statuses()[name]).state is inference.ModelState.FAILED and why in status.detail)
        with pytest.raises(errors.Unavailable, match=re.escape(f"{name} cannot be served here: {why}")):
            await self.load(name)

    @property
    def metrics(self) -> list[str]:
        registry = self.worker.node.metrics.registry
        found = [sample for family in registry.collect() for sample in family.samples if sample.name == "ai_platform_model_untrusted"]
        return sorted(f"{sample.labels['model']} {sample.labels['reason']}" for sample in found)


@pytest.fixture
async def mesh(postgres_url: str, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mesh]:
    monkeypatch.setattr(worker_trust, "ASK_SECONDS", 0.2)
    monkeypatch.setattr(worker_trust, "LOOK_SECONDS", 0.1)
    async with testnet() as net:
        settings = GatewaySettings(
            mesh=MESH, nats_url=net.server.url, node_key_file=net.server.key("gateway", Role.GATEWAY), database_url=postgres_url,
            redis_url=valkey_url, prompt_hash_secret="s" * 32, model_origin=str(tmp_path / "origin"), model_aliases={},
        )  # fmt: skip
        await net.start(Auth)
        own = {"model_store": tmp_path / "store", "model_memory": "1GiB", "threads": 1, "slots": 1, "context_tokens": 2048, "gpu_layers": 0}
        key = net.server.key("worker", Role.WORKER)
        (tmp_path / "none").mkdir()
        worker = await net.start(
            InferenceService,
            InferenceSettings(mesh=MESH, nats_url=net.server.url, node_key_file=key, models_dir=tmp_path / "none", **own),  # type: ignore[arg-type]
        )
        running = await net.start(GatewayService, settings)
        client, directory = await net.client(), running.node.directory
        await until(lambda: directory.usable(Role.AUTH) and directory.entries(Role.WORKER))
        await until(lambda: client.directory.usable(Role.GATEWAY) and worker.node.directory.usable(Role.GATEWAY))
        yield Mesh(Site(net, settings, [running], client), client, running, worker)


async def test_with_enforce_version_1_is_loaded_and_2_is_refused(mesh: Mesh, tmp_path: Path) -> None:
    first, second = await mesh.get(1, tmp_path), await mesh.get(2, tmp_path)
    # By default nothing needs a signature.
    assert (await mesh.load(TWO)).state == "ready"
    await mesh.sign(1, first, ADA)
    await mesh.sign(2, second, EVE)
    await mesh.trust(TrustMode.ENFORCE, ADA)
    await mesh.is_refused(TWO, "no trusted key has signed it; the mesh's rule for llama* wants a signature by one of its 1 keys")
    assert (await mesh.load(ONE)).state == "ready"
    assert mesh.metrics == ["llama3@2 other_key"]
    listing = deployments.ListDeployments(TWO)
    (deployed,) = (await mesh.client.rpc.call(deployments.list_deployments, listing, credential=ADMIN)).deployments
    (copy,) = deployed.copies
    assert copy.state is deployments.CopyState.REFUSED
    assert copy.reason.startswith("no trusted key has signed it")
    # What the page Models and `aicli models` show.
    await until(lambda: mesh.announced.warning and all(offer.ready for offer in mesh.announced.models if offer.name == ONE))
    listed = await mesh.client.rpc.call(gateway.list_models, gateway.ListModels(), credential=ADMIN)
    assert "llama3@2: no trusted key has signed it" in listed.warning
    # A warning is enough.
    await mesh.trust(TrustMode.WARN, ADA)
    await until(lambda: mesh.statuses()[TWO].state is inference.ModelState.UNLOADED)
    assert (await mesh.load(TWO)).state == "ready"
    assert mesh.metrics == ["llama3@2 other_key"]
    # The key was stolen.
    await mesh.trust(TrustMode.ENFORCE, EVE)
    await mesh.is_refused(ONE, "no trusted key has signed it")
    assert (await mesh.load(TWO)).state == "ready"
    # Signed again, by the new key.
    await mesh.sign(1, first, EVE)
    await until(lambda: mesh.statuses()[ONE].state is not inference.ModelState.FAILED)
    assert (await mesh.load(ONE)).state == "ready"
    assert mesh.metrics == []


async def test_a_revoked_version_ends_its_answer_and_is_unloaded(mesh: Mesh, tmp_path: Path) -> None:
    await mesh.get(1, tmp_path)
    await mesh.get(2, tmp_path)
    assert (await mesh.load(ONE)).state == (await mesh.load(TWO)).state == "ready"
    await until(lambda: all(offer.loaded and offer.ready for offer in mesh.announced.models))
    request = ProcessInferenceRequest(InferenceRequest(prompt="hi", model=TWO, max_tokens=1500), fresh=True)
    async with mesh.client.rpc.stream(gateway.process_inference_request, request, credential=ADMIN, deadline_seconds=60) as answer:
        stream = aiter(answer)
        await anext(stream)
        revoked = models.RevokeModelVersion(LLAMA, 2, "it leaks")
        await mesh.client.rpc.call(models.revoke_model_version, revoked, credential=ADMIN)
        await until(lambda: mesh.statuses()[TWO].detail == "it was revoked: it leaks")
        _ = [chunk async for chunk in stream]
    # `test_untrusted_models` has an answer that runs for certain.
    assert answer.end.finish_reason in {FinishReason.STOP, FinishReason.LENGTH}
    cached = mesh.worker.service._backend._cache.get(TWO)  # type: ignore[attr-defined]
    await until(lambda: not cached.replicas)
    await mesh.is_refused(TWO, "it was revoked: it leaks")
    assert mesh.metrics == ["llama3@2 revoked"]
    assert mesh.statuses()[ONE].state is inference.ModelState.READY
