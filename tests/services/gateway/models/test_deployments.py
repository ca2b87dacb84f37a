"""Deployments on a real mesh: two gateways, and workers whose store is a set of names."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from services.gateway.models import catalog, deployments
from services.gateway.models.deployment_store import DeploymentSession
from services.gateway.models.deployments import Deployments
from services.gateway.service import GatewayService
from services.gateway.settings import GatewaySettings
from shared import errors
from shared.api import deployments as api
from shared.api import inference
from shared.api.deployments import CopyState, Deployment
from shared.api.inference import EnsuredModel, ModelState, ModelStatus
from shared.api.method import Nothing
from shared.config_documents import DeploymentDocument
from shared.node.client_node import ClientNode
from shared.node.member import Node
from shared.protocol.directory import ModelOffer, ModelPull, WorkerLoad
from shared.rpc import RpcCall, serves
from shared.types import Credential, ModelName, NodeId, Role
from tests.services.gateway.fakes import TOKEN
from tests.services.gateway.test_service import ADMIN_TOKEN, StandInAuth
from tests.stopwatch import HANG_SECONDS
from tests.testnet import MESH, NodeService, RunningNode, TestNet, testnet, until

QWEN = ModelName("qwen3")
SOURCE = "hf:Qwen/Qwen3-8B-GGUF"


class StandInWorker(NodeService):
    role: ClassVar[Role] = Role.WORKER

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.node = node
        self.stored: dict[ModelName, inference.EnsureModel] = {}
        self.loaded: set[ModelName] = set()
        #: Orders, with repetitions.
        self.ensured: list[ModelName] = []
        self.problem = ""
        self.refused: tuple[ModelName, ...] = ()
        self.is_slow = False
        #: Why it can't load what it has.
        self.unloadable = ""
        self.memory_bytes = 10**12
        self.has_engine = True
        #: What it was asked to plan.
        self.planned: list[inference.ModelFacts] = []
        self.offer()

    def offer(self) -> None:
        coming = self.stored.keys() if self.is_slow else set()
        self.node.offer(
            models=tuple(
                ModelOffer(name, 2048, loaded=name in self.loaded, ready=not self.unloadable, problem=self.unloadable)
                for name in self.stored
                if name not in coming
            ),
            load=WorkerLoad(slots=1, accepts_models=True),
            assigned=tuple(self.stored),
            refused=self.refused,
            pulls=tuple(ModelPull(name, 3_000_000, 5_000_000, 1e6) for name in coming),
        )

    @serves(inference.ensure_model)
    async def ensure(self, request: inference.EnsureModel, _call: RpcCall) -> EnsuredModel:
        self.ensured.append(request.name)
        if request.name in self.refused:
            raise errors.NotAllowed(f"{request.name} was removed from this worker")
        if self.problem:
            return EnsuredModel(is_stored=False, problem=self.problem)
        self.stored[request.name] = request
        self.offer()
        return EnsuredModel(is_stored=not self.is_slow)

    @serves(inference.plan_models)
    async def plan(self, request: inference.PlanModels, _call: RpcCall) -> inference.ModelFits:
        if not self.has_engine:
            raise errors.BadRequest("the models of the backend ollama are loaded by another program")
        self.planned += request.models

        def fit(facts: inference.ModelFacts) -> inference.ModelFit:
            if facts.file_bytes <= self.memory_bytes:
                return inference.ModelFit(fit=inference.Fit.YES)
            return inference.ModelFit(fit=inference.Fit.NO, detail=f"needs {facts.file_bytes} bytes, has {self.memory_bytes}")

        return inference.ModelFits(tuple(map(fit, request.models)))

    @serves(inference.remove_model)
    async def remove(self, request: inference.RemoveModel, _call: RpcCall) -> Nothing:
        del self.stored[request.name]
        self.loaded.discard(request.name)
        self.offer()
        return Nothing()

    @serves(inference.load_model)
    async def load(self, request: inference.LoadModel, _call: RpcCall) -> ModelStatus:
        self.loaded.add(request.model_id)
        self.offer()
        return ModelStatus(request.model_id, ModelState.READY, "", "llama", 2048, 1, 0, 0)


class Mesh:
    def __init__(self, net: TestNet, settings: GatewaySettings) -> None:
        self.net, self.settings = net, settings
        self.workers: list[StandInWorker] = []
        self.gateways: list[RunningNode] = []
        self.client: ClientNode

    async def add_worker(self, kind: type[StandInWorker] = StandInWorker, *, problem: str = "") -> StandInWorker:
        running = await self.net.start(kind)
        worker = running.service
        assert isinstance(worker, StandInWorker)
        worker.problem = problem
        self.workers.append(worker)
        return worker

    async def add_gateway(self) -> RunningNode:
        key = self.net.server.key(f"gateway-{len(self.gateways)}", Role.GATEWAY)
        running = await self.net.start(GatewayService, msgspec.structs.replace(self.settings, node_key_file=key))
        await until(lambda: running.node.directory.usable(Role.AUTH))
        self.gateways.append(running)
        return running

    async def deploy(self, document: DeploymentDocument, name: ModelName = QWEN, *, credential: Credential = ADMIN_TOKEN) -> None:
        await self.client.rpc.call(api.deploy_model, api.DeployModel(name, document), credential=credential)

    async def read(self, name: ModelName = QWEN) -> Deployment | None:
        found = (await self.client.rpc.call(api.list_deployments, api.ListDeployments(name), credential=TOKEN)).deployments
        return found[0] if found else None

    async def become(self, condition: Callable[[Deployment], bool], name: ModelName = QWEN) -> Deployment:
        async with asyncio.timeout(HANG_SECONDS):
            while (found := await self.read(name)) is None or not condition(found):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            return found

    def sample(self, name: str, model: ModelName = QWEN) -> float | None:
        return self.gateways[0].node.metrics.registry.get_sample_value(name, {"model": model})

    def holders(self, name: ModelName = QWEN) -> set[NodeId]:
        return {worker.node.id for worker in self.workers if name in worker.stored}


@pytest.fixture
async def mesh(postgres_url: str, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mesh]:
    monkeypatch.setattr(deployments, "ROUND_SECONDS", 0.02)
    monkeypatch.setattr(deployments, "PAUSE_SECONDS", 0.0)
    async with testnet() as net:
        settings = GatewaySettings(
            mesh=MESH, nats_url=net.server.url, node_key_file=net.server.key("unused", Role.GATEWAY), database_url=postgres_url,
            redis_url=valkey_url, prompt_hash_secret="s" * 32, model_aliases={}, model_origin=str(tmp_path / "origin"),
            tier_free=dict.fromkeys(("requests_per_minute", "requests_per_hour", "concurrency"), "unlimited"),
        )  # fmt: skip
        found = Mesh(net, settings)
        await net.start(StandInAuth)
        await found.add_gateway()
        found.client = await net.client()
        await until(lambda: found.client.directory.usable(Role.GATEWAY))
        yield found


async def test_a_model_is_put_on_as_many_machines_as_wanted_and_taken_away(mesh: Mesh) -> None:
    for _ in range(3):
        await mesh.add_worker()
    await mesh.deploy(DeploymentDocument(source=SOURCE, copies=2, context=4096))
    done = await mesh.become(lambda found: found.is_done)
    assert [copy.state for copy in done.copies] == [CopyState.STORED] * 2
    assert {copy.node for copy in done.copies} == mesh.holders()
    (order,) = {worker.stored[QWEN] for worker in mesh.workers if worker.stored}
    assert order == inference.EnsureModel(QWEN, SOURCE, inference.Assignment(context_tokens=4096))
    before = mesh.holders()
    await mesh.deploy(DeploymentDocument(source=SOURCE, copies=3, preload=True))
    await mesh.become(lambda found: found.is_done and len(found.copies) == 3)
    assert all(QWEN in worker.loaded for worker in mesh.workers)
    await mesh.deploy(DeploymentDocument(source=SOURCE, copies=1))
    await until(lambda: len(mesh.holders()) == 1)
    assert before & mesh.holders()
    await mesh.client.rpc.call(api.undeploy_model, api.UndeployModel(QWEN), credential=ADMIN_TOKEN)
    await until(lambda: not mesh.holders())
    assert await mesh.read() is None
    await until(lambda: mesh.sample("ai_platform_missing_copies") is None)
    with pytest.raises(errors.NotFound):
        await mesh.client.rpc.call(api.undeploy_model, api.UndeployModel(QWEN), credential=ADMIN_TOKEN)


async def test_another_machine_takes_what_one_refuses_and_the_reason_is_told(mesh: Mesh) -> None:
    full = await mesh.add_worker(problem="the disk is full: 5.0 GB more are needed, 1.0 GB can be used")
    fits = await mesh.add_worker()
    await mesh.deploy(DeploymentDocument(source=SOURCE, copies=2))
    found = await mesh.become(lambda found: {copy.state for copy in found.copies} == {CopyState.REFUSED, CopyState.STORED})
    assert {copy.node: copy.state for copy in found.copies} == {full.node.id: CopyState.REFUSED, fits.node.id: CopyState.STORED}
    assert (found.short, [copy.reason for copy in found.copies if copy.reason]) == (1, [full.problem])
    await until(lambda: mesh.sample("ai_platform_missing_copies") == 1)
    assert mesh.sample("ai_platform_copy_failures_total") == 1
    third = await mesh.add_worker()
    await mesh.become(lambda found: found.is_done)
    await until(lambda: mesh.sample("ai_platform_missing_copies") == 0)
    assert mesh.holders() == {fits.node.id, third.node.id}


async def test_what_an_owner_removed_comes_back_when_they_accept_it_again(mesh: Mesh) -> None:
    worker = await mesh.add_worker()
    await mesh.deploy(DeploymentDocument(source=SOURCE))
    await mesh.become(lambda found: found.is_done)
    worker.refused = (QWEN,)
    # The gateway orders it again, before it knows.
    del worker.stored[QWEN]
    worker.node.offer(load=WorkerLoad(slots=1))
    await until(lambda: len(worker.ensured) > 1)
    worker.offer()
    found = await mesh.become(lambda found: found.short == 1 and bool(found.copies))
    assert [copy.reason for copy in found.copies] == ["ask its owner: the model was removed there"]
    worker.refused = ()
    worker.offer()
    await mesh.become(lambda found: found.is_done)


async def test_a_machine_without_memory_for_it_gets_no_byte_of_it(mesh: Mesh) -> None:
    small, large = await mesh.add_worker(), await mesh.add_worker()
    small.memory_bytes = 10**9
    (source,) = {model.source for name, model in catalog.load().items() if name == "qwen3:8b"}
    await mesh.deploy(DeploymentDocument(source=source, copies=2))
    found = await mesh.become(lambda found: {copy.state for copy in found.copies} == {CopyState.REFUSED, CopyState.STORED})
    (reason,) = [copy.reason for copy in found.copies if copy.node == small.node.id]
    assert "needs 5036850000 bytes" in reason
    assert "has 1000000000" in reason
    assert (small.ensured, mesh.holders()) == ([], {large.node.id})


async def test_progress_is_told_and_what_is_there_is_not_ordered_again(mesh: Mesh) -> None:
    worker = await mesh.add_worker()
    worker.is_slow = True
    await mesh.deploy(DeploymentDocument(source=SOURCE))
    found = await mesh.become(lambda found: bool(found.copies and found.copies[0].done_bytes))
    (copy,) = found.copies
    assert (copy.state, copy.done_bytes, copy.total_bytes, copy.bytes_per_second) == (CopyState.COMING, 3_000_000, 5_000_000, 1e6)
    worker.is_slow = False
    worker.offer()
    await mesh.become(lambda found: found.is_done)
    orders = len(worker.ensured)
    await mesh.deploy(DeploymentDocument(source=SOURCE, preload=True))
    await mesh.become(lambda found: found.is_done)
    assert (len(worker.ensured), worker.loaded) == (orders, {QWEN})


async def test_a_copy_that_cannot_be_loaded_says_why(mesh: Mesh) -> None:
    worker = await mesh.add_worker()
    worker.unloadable = "nobody has signed it"
    await mesh.deploy(DeploymentDocument(source=SOURCE))
    found = await mesh.become(lambda found: bool(found.copies and found.copies[0].reason))
    (copy,) = found.copies
    assert (copy.state, copy.reason, found.is_done) == (CopyState.REFUSED, "nobody has signed it", False)
    worker.unloadable = ""
    worker.offer()
    await mesh.become(lambda found: found.is_done)


async def test_nothing_happens_while_a_deployment_is_paused(mesh: Mesh) -> None:
    worker = await mesh.add_worker()
    await mesh.deploy(DeploymentDocument(source=SOURCE, paused=True))
    await mesh.deploy(DeploymentDocument(source=SOURCE), ModelName("other"))
    await until(lambda: worker.ensured)
    assert set(worker.ensured) == {"other"}
    await mesh.deploy(DeploymentDocument(source=SOURCE))
    await until(lambda: QWEN in worker.stored)


async def test_a_round_begins_with_a_change_and_many_changes_make_few_rounds(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = list[None]()
    step = Deployments.step

    async def count(self: Deployments, session: DeploymentSession) -> None:
        rounds.append(None)
        await step(self, session)

    monkeypatch.setattr(Deployments, "step", count)
    monkeypatch.setattr(deployments, "ROUND_SECONDS", 100 * HANG_SECONDS)
    worker = await mesh.add_worker()
    await mesh.deploy(DeploymentDocument(source=SOURCE, preload=True))
    await mesh.become(lambda found: found.is_done)
    assert worker.loaded == {QWEN}
    await mesh.client.rpc.call(api.undeploy_model, api.UndeployModel(QWEN), credential=ADMIN_TOKEN)
    await until(lambda: not worker.stored)
    # What no deployment depends on.
    before = len(rounds)
    for running in range(1, 20):
        worker.node.offer(load=WorkerLoad(slots=1, running=running, accepts_models=True))
    (gateway,) = mesh.gateways
    await until(lambda: any(entry.announcement.load.running == 19 for entry in gateway.node.directory.entries(Role.WORKER)))
    assert len(rounds) <= before + 1
    monkeypatch.setattr(deployments, "PAUSE_SECONDS", 100 * HANG_SECONDS)
    before = len(rounds)
    for copies in range(1, 21):
        await mesh.deploy(DeploymentDocument(source=SOURCE, copies=copies))
    assert len(rounds) <= before + 1


async def test_a_second_gateway_goes_on_when_the_first_is_killed(mesh: Mesh) -> None:
    await mesh.add_gateway()
    one, two = await mesh.add_worker(), await mesh.add_worker()
    await mesh.deploy(DeploymentDocument(source=SOURCE))
    await mesh.become(lambda found: found.is_done)
    (holder,) = [worker for worker in (one, two) if worker.stored]
    await mesh.gateways[0].cut()
    mesh.client = await mesh.net.client()
    await until(lambda: mesh.client.directory.usable(Role.GATEWAY))
    await mesh.deploy(DeploymentDocument(source=SOURCE, copies=2))
    await mesh.become(lambda found: found.is_done and len(found.copies) == 2)
    assert set(holder.ensured) == {QWEN}


async def test_only_administrators_deploy(mesh: Mesh) -> None:
    with pytest.raises(errors.NotAllowed):
        await mesh.deploy(DeploymentDocument(source=SOURCE), credential=TOKEN)
    with pytest.raises(errors.BadRequest):
        await mesh.deploy(DeploymentDocument(source=SOURCE), ModelName("no such name"))
