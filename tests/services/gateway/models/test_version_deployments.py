"""Pushed models on machines: a channel serves another version only when that is loaded wherever the channel is deployed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from services.gateway.models import catalog
from services.gateway.models.deployments import FactsOfRound
from shared import errors
from shared.api import deployments, gateway, inference, models
from shared.api.deployments import CopyState, Deployment
from shared.api.gateway import InferenceRequest, ProcessInferenceRequest
from shared.api.generation import GenerationEnd, Usage
from shared.api.inference import ModelStatus
from shared.api.model_copies import VERSION_SOURCE
from shared.api.models import ModelVersion
from shared.config_documents import DeploymentDocument
from shared.node.member import Node
from shared.protocol.directory import ModelOffer, WorkerLoad
from shared.rpc import RpcCall, StreamCall, serves
from shared.stores import objects
from shared.types import FinishReason, ModelName, NodeId
from tests.services.auth import by_hand
from tests.services.gateway.fakes import TOKEN
from tests.services.gateway.models import registries, test_deployments
from tests.services.gateway.models.registries import ADMIN, LLAMA, push_of, small
from tests.services.gateway.models.test_deployments import Mesh
from tests.services.gateway.test_service import ADMIN_TOKEN
from tests.testnet import until

mesh = test_deployments.mesh
ONE, TWO, THREE = (ModelName(f"llama3@{number}") for number in (1, 2, 3))


class Worker(test_deployments.StandInWorker):
    """Answers with the name of the version."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        #: Loads wait for it.
        self.can_load = asyncio.Event()
        self.can_load.set()
        self.answers = 0

    @serves(inference.load_model)
    async def load(self, request: inference.LoadModel, _call: RpcCall) -> ModelStatus:
        await self.can_load.wait()
        return await super().load(request, _call)

    @serves(inference.process_prompt)
    async def process(self, request: inference.ProcessPrompt, stream: StreamCall[inference.Chunk]) -> GenerationEnd:
        if request.model_config.model not in self.stored:
            raise errors.UnknownModel(f"this worker has no {request.model_config.model}")
        for position in range(3):
            await stream.send(inference.Chunk(f"{request.model_config.model} ", (position,)))
            await asyncio.sleep(0.01)
        self.answers += 1
        return GenerationEnd(FinishReason.STOP, Usage(1, 3))


@pytest.fixture
async def workers(mesh: Mesh, postgres_url: str, tmp_path: Path) -> AsyncIterator[list[Worker]]:
    """Start two workers, and push three versions, of which the first is stable."""
    async with registries.running(postgres_url, objects.open_store(str(tmp_path / "origin"), {})) as registry:
        for seed in (1, 2, 3):
            await registry.push(ADMIN, push_of({"a": small(seed)}))
    await promote(mesh, 1)
    found = [await mesh.add_worker(Worker) for _ in range(2)]
    yield [each for each in found if isinstance(each, Worker)]
    for each in mesh.workers:
        if isinstance(each, Worker):
            each.can_load.set()


async def promote(mesh: Mesh, version: int) -> ModelVersion:
    return await mesh.client.rpc.call(models.promote_model, models.PromoteModel(LLAMA, version), credential=ADMIN_TOKEN)


async def rollback(mesh: Mesh) -> ModelVersion:
    return await mesh.client.rpc.call(models.rollback_model, models.RollbackModel(LLAMA), credential=ADMIN_TOKEN)


async def read(mesh: Mesh, version: int) -> ModelVersion:
    request = models.ListModelVersions(LLAMA, version)
    (found,) = (await mesh.client.rpc.call(models.list_model_versions, request, credential=ADMIN_TOKEN)).versions
    return found


async def serves_stable(mesh: Mesh, version: int) -> None:
    while not (await read(mesh, version)).channels:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def ask(mesh: Mesh) -> str:
    """Return the version that answered, all of the answer."""
    request = ProcessInferenceRequest(InferenceRequest(prompt="hi", model=LLAMA), fresh=True)
    async with mesh.client.rpc.stream(gateway.process_inference_request, request, credential=TOKEN, deadline_seconds=30) as answer:
        said = "".join([chunk.text async for chunk in answer]).split()
    assert len(said) == 3
    (version,) = set(said)
    return version


def has(state: CopyState, *names: ModelName) -> Callable[[Deployment], bool]:
    """Return whether two copies of each version have the state, and no other is to be served."""
    wanted = sorted(name for name in names for _ in range(2))
    return lambda found: sorted(copy.model for copy in found.copies if copy.state is state and not copy.is_spare) == wanted


async def test_a_channel_serves_another_version_once_it_is_loaded_everywhere(mesh: Mesh, workers: list[Worker]) -> None:
    await mesh.deploy(DeploymentDocument(copies=2, preload=True), LLAMA)
    await mesh.become(has(CopyState.LOADED, ONE), LLAMA)
    workers[1].can_load.clear()
    promoted = await promote(mesh, 2)
    assert (promoted.channels, promoted.next_of) == ((), ("stable",))
    await until(lambda: TWO in workers[0].loaded and TWO in workers[1].stored)
    assert await ask(mesh) == ONE
    assert (await promote(mesh, 2)).next_of == ("stable",), "it may be said again"
    workers[1].can_load.set()
    await serves_stable(mesh, 2)
    assert all(TWO in worker.loaded for worker in workers)
    found = await mesh.become(has(CopyState.LOADED, TWO), LLAMA)
    assert {copy.model for copy in found.copies if copy.is_spare} == {ONE}
    while await ask(mesh) != TWO:
        pass
    await rollback(mesh)
    await serves_stable(mesh, 1)
    assert {copy.model for copy in (await mesh.become(has(CopyState.LOADED, ONE), LLAMA)).copies if copy.is_spare} == {TWO}


async def test_a_version_before_the_last_is_removed_and_the_last_goes_to_no_other_machine(mesh: Mesh, workers: list[Worker]) -> None:
    await mesh.deploy(DeploymentDocument(copies=2), LLAMA)
    for number in (2, 3):
        await promote(mesh, number)
        await serves_stable(mesh, number)
    await until(lambda: all(set(worker.stored) == {TWO, THREE} for worker in workers))
    await mesh.deploy(DeploymentDocument(copies="all"), LLAMA)
    third = await mesh.add_worker(Worker)
    await until(lambda: set(third.stored) == {THREE})


async def test_a_rollback_takes_back_what_is_not_loaded_yet(mesh: Mesh, workers: list[Worker]) -> None:
    await mesh.deploy(DeploymentDocument(copies=2), LLAMA)
    await mesh.become(has(CopyState.STORED, ONE), LLAMA)
    workers[0].can_load.clear()
    await promote(mesh, 2)
    await promote(mesh, 3)
    assert [(await read(mesh, number)).next_of for number in (2, 3)] == [(), ("stable",)]
    with pytest.raises(errors.AlreadyExists, match="channel stable"):
        await mesh.client.rpc.call(models.retire_model_version, models.RetireModelVersion(LLAMA, 3), credential=ADMIN_TOKEN)
    back = await rollback(mesh)
    assert (back.version, back.channels) == (1, ("stable",))
    assert (await read(mesh, 3)).next_of == ()
    await until(lambda: all(set(worker.stored) == {ONE} for worker in workers))


async def test_a_revoked_version_is_never_served_and_leaves_the_machines(mesh: Mesh, workers: list[Worker]) -> None:
    await mesh.deploy(DeploymentDocument(copies=2), LLAMA)
    await mesh.become(has(CopyState.STORED, ONE), LLAMA)
    workers[0].can_load.clear()
    await promote(mesh, 2)
    await until(lambda: all(TWO in worker.stored for worker in workers))
    await mesh.client.rpc.call(models.revoke_model_version, models.RevokeModelVersion(LLAMA, 2, "leaked"), credential=ADMIN_TOKEN)
    await until(lambda: all(set(worker.stored) == {ONE} for worker in workers))
    workers[0].can_load.set()
    assert await ask(mesh) == ONE
    assert ((await read(mesh, 1)).channels, (await read(mesh, 2)).next_of) == (("stable",), ())


async def test_no_stream_fails_during_promotions_and_rollbacks(mesh: Mesh, workers: list[Worker]) -> None:
    await mesh.deploy(DeploymentDocument(copies=2, preload=True), LLAMA)
    await mesh.become(has(CopyState.LOADED, ONE), LLAMA)
    seen, is_over = set[str](), False

    async def stream() -> None:
        while not is_over:
            seen.add(await ask(mesh))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(50):
            tasks.create_task(stream())
        for _ in range(10):
            await promote(mesh, 2)
            await serves_stable(mesh, 2)
            await rollback(mesh)
            await serves_stable(mesh, 1)
        is_over = True
    assert seen == {ONE, TWO}
    assert sum(worker.answers for worker in workers) > 50


async def test_a_name_without_a_source_is_a_pushed_model_or_one_of_the_catalog(mesh: Mesh, workers: list[Worker]) -> None:
    for name in ("llama3", "llama3@stable", "llama3@2"):
        await mesh.deploy(DeploymentDocument(), ModelName(name))
        found = await mesh.read(ModelName(name))
        assert found is not None
        assert (found.document.source, found.problem) == ("", "")
    await until(lambda: all(set(worker.stored) <= {ONE, TWO} for worker in workers) and len({*workers[0].stored, *workers[1].stored}) == 2)
    (name, known), *_ = catalog.load().items()
    await mesh.deploy(DeploymentDocument(), ModelName(name))
    found = await mesh.read(ModelName(name))
    assert found is not None
    assert found.document.source == known.source
    with pytest.raises(errors.UnknownModel, match="no model is called 'lama4'"):
        await mesh.deploy(DeploymentDocument(), ModelName("lama4"))
    with pytest.raises(errors.UnknownModel):
        await mesh.deploy(DeploymentDocument(), ModelName("llama3@9"))


class Witness(Worker):
    """Sees when it gets an order whether the mesh has written it."""

    url = ""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.seen: list[bool] = []

    @serves(inference.ensure_model)
    async def ensure(self, request: inference.EnsureModel, _call: RpcCall) -> inference.EnsuredModel:
        self.seen.append(request.source.removeprefix(VERSION_SOURCE) in await orders_of(self.url, self.node.id))
        return await super().ensure(request, _call)


async def orders_of(url: str, node: NodeId) -> set[str]:
    found = await by_hand.value(url, "SELECT array_agg(digest::text) FROM gateway.model_orders WHERE node = $1", node)
    return set(found or ())


async def test_an_order_is_written_before_it_leaves_and_ends_with_its_deployment(
    mesh: Mesh, workers: list[Worker], postgres_url: str
) -> None:
    first, second = [(await read(mesh, number)).digest for number in (1, 2)]
    witness = await mesh.add_worker(type("Witness", (Witness,), {"url": postgres_url}))
    assert isinstance(witness, Witness)
    leaving = await mesh.net.start(Worker)
    await mesh.deploy(DeploymentDocument(copies="all"), LLAMA)
    await until(lambda: ONE in witness.stored)
    assert set(witness.seen) == {True}
    # The version before stays for a rollback.
    await promote(mesh, 2)
    await serves_stable(mesh, 2)
    assert set(witness.seen) == {True}
    for each in (*workers, witness, leaving):
        assert await orders_of(postgres_url, each.node.id) == {first, second}
    # A machine that is away keeps what is deployed still.
    away = leaving.node.id
    await leaving.stop()
    await until(lambda: not mesh.gateways[0].node.directory.find(away).alive)  # type: ignore[union-attr]
    await mesh.deploy(DeploymentDocument(copies="all"), TWO)
    await mesh.client.rpc.call(deployments.undeploy_model, deployments.UndeployModel(LLAMA), credential=ADMIN_TOKEN)
    await until(lambda: set(witness.stored) == {TWO})
    while await orders_of(postgres_url, witness.node.id) != {second}:
        pass
    assert await orders_of(postgres_url, away) == {second}
    await mesh.client.rpc.call(deployments.undeploy_model, deployments.UndeployModel(TWO), credential=ADMIN_TOKEN)
    while await by_hand.value(postgres_url, "SELECT count(*) FROM gateway.model_orders"):
        pass


async def test_a_machine_without_consent_gets_no_order_by_a_models_name(mesh: Mesh, workers: list[Worker], postgres_url: str) -> None:
    liar = workers[1]
    liar.node.offer(models=(ModelOffer(ONE, 2048),), load=WorkerLoad(slots=1, accepts_models=False), assigned=(ONE,))
    directory = mesh.gateways[0].node.directory
    await until(lambda: (entry := directory.find(liar.node.id)) is not None and not entry.announcement.load.accepts_models)
    await mesh.deploy(DeploymentDocument(copies="all", paused=True), LLAMA)
    await mesh.deploy(DeploymentDocument(copies="all"), TWO)
    await until(lambda: TWO in workers[0].stored)
    digest = (await read(mesh, 2)).digest
    assert await orders_of(postgres_url, workers[0].node.id) == {digest}, "a paused deployment orders nothing"
    assert await orders_of(postgres_url, liar.node.id) == set()


async def test_a_machine_that_runs_no_engine_or_has_no_room_gets_no_order(mesh: Mesh, postgres_url: str, tmp_path: Path) -> None:
    model = registries.gguf(tmp_path, layers=1)
    made = push_of({"mmproj-a.gguf": registries.gguf(tmp_path, 2, layers=1), "model.gguf": model})
    async with registries.running(postgres_url, objects.open_store(str(tmp_path / "origin"), {})) as registry:
        assert (await registry.push(ADMIN, made)).state == "ready"
    without, small_one, fits = [await mesh.add_worker() for _ in range(3)]
    without.has_engine, small_one.memory_bytes = False, 1000
    await mesh.deploy(DeploymentDocument(copies="all"), LLAMA)
    found = await mesh.become(lambda found: found.short == 2 and len(found.copies) == 3, LLAMA)
    size = (await read(mesh, 1)).size
    assert {copy.node: copy.reason for copy in found.copies} == {
        without.node.id: "the models of the backend ollama are loaded by another program",
        small_one.node.id: f"needs {size} bytes, has 1000",
        fits.node.id: "",
    }
    assert (without.ensured, small_one.ensured, set(fits.ensured)) == ([], [], {ONE})
    assert {facts.file_bytes for facts in fits.planned} == {size}
    assert {facts.header for facts in fits.planned} == {model[: inference.MAX_HEADER_BYTES]}
    # Nor for a model that the catalog doesn't know.
    await mesh.deploy(DeploymentDocument(source="hf:org/other", copies="all"), ModelName("other"))
    await mesh.become(lambda found: found.short == 1 and len(found.copies) == 3, ModelName("other"))
    assert without.ensured == []


async def test_deploying_a_pushed_name_without_a_stable_version_names_promote(mesh: Mesh, postgres_url: str, tmp_path: Path) -> None:
    async with registries.running(postgres_url, objects.open_store(str(tmp_path / "origin"), {})) as registry:
        await registry.push(ADMIN, push_of({"a": small(1)}), channel="canary")
    await mesh.deploy(DeploymentDocument(paused=True), ModelName("llama3@canary"))
    for name, hint in ((LLAMA, "aicli models promote llama3"), (ModelName("llama3@beta"), "aicli models promote llama3 --channel beta")):
        with pytest.raises(errors.UnknownModel, match=f"no version of {name} is promoted") as refused:
            await mesh.deploy(DeploymentDocument(), name)
        assert refused.value.hint == hint
    with pytest.raises(errors.UnknownModel, match="llama3 has no version 9"):
        await mesh.deploy(DeploymentDocument(), ModelName("llama3@9"))


async def test_a_withdrawn_model_leaves_requests_and_keeps_its_copies_for_a_rollback(mesh: Mesh, workers: list[Worker]) -> None:
    await mesh.deploy(DeploymentDocument(copies=2), LLAMA)
    await mesh.become(has(CopyState.STORED, ONE), LLAMA)
    assert await ask(mesh) == ONE
    await mesh.client.rpc.call(models.withdraw_model, models.WithdrawModel(LLAMA), credential=ADMIN_TOKEN)
    with pytest.raises(errors.UnknownModel) as refused:
        while True:
            await ask(mesh)
    assert refused.value.hint == "let requests use a version of it: aicli models promote llama3"
    found = await mesh.become(lambda found: all(copy.is_spare for copy in found.copies), LLAMA)
    assert {copy.model for copy in found.copies} == {ONE}
    await rollback(mesh)
    while True:
        try:
            assert await ask(mesh) == ONE
            break
        except errors.UnknownModel:
            pass
    # A revocation doesn't fall back to the version before.
    await promote(mesh, 2)
    await serves_stable(mesh, 2)
    await mesh.client.rpc.call(models.revoke_model_version, models.RevokeModelVersion(LLAMA, 2, "leaked"), credential=ADMIN_TOKEN)
    assert [(await read(mesh, number)).channels for number in (1, 2)] == [(), ()]
    with pytest.raises(errors.UnknownModel):
        while True:
            await ask(mesh)
    await mesh.client.rpc.call(models.delete_model_version, models.DeleteModelVersion(LLAMA, 2), credential=ADMIN_TOKEN)
    assert (await rollback(mesh)).channels == ("stable",)


async def test_the_error_of_an_undeployed_model_names_deploy(mesh: Mesh, workers: list[Worker]) -> None:
    await mesh.deploy(DeploymentDocument(source="hf:org/other"), ModelName("other"))
    await mesh.become(lambda found: found.is_done, ModelName("other"))
    digest = (await read(mesh, 2)).digest
    for name, deployed in (("llama3", "llama3"), ("llama3@2", "llama3@2"), (f"llama3@{digest}", "llama3@2")):
        request = ProcessInferenceRequest(InferenceRequest(prompt="hi", model=ModelName(name)), fresh=True)
        with pytest.raises(errors.UnknownModel) as refused:
            async with mesh.client.rpc.stream(gateway.process_inference_request, request, credential=TOKEN) as answer:
                _ = [chunk async for chunk in answer]
        assert refused.value.hint == f"put it on machines, or ask an administrator to: aicli models deploy {deployed}"


async def test_the_facts_of_a_model_are_read_once_in_a_round_and_again_after_a_failure() -> None:
    asked = list[str]()

    async def find(source: str) -> inference.ModelFacts | None:
        asked.append(source)
        await asyncio.sleep(0)
        if len(asked) == 1:
            raise ValueError(source)
        return None

    facts = FactsOfRound(find)
    found = await asyncio.gather(*(facts.read("a") for _ in range(3)), facts.read("b"), return_exceptions=True)
    assert [type(one) for one in found] == [ValueError, type(None), type(None), type(None)]
    assert asked == ["a", "a", "b"]
