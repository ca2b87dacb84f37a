"""POOLS_FILE in a whole gateway on a real mesh, with real PostgreSQL and Valkey."""

from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from services.gateway.service import GatewayService
from shared import errors
from shared.api import gateway
from shared.api.gateway import GiveUpPool, InferenceRequest, ProcessInferenceRequest
from shared.node import Node
from shared.protocol.directory import ModelOffer, WorkerLoad
from shared.types import ModelName, Role
from tests.services.gateway.fakes import KEY
from tests.services.gateway.test_service import GatewayMesh, StandInWorker, mesh
from tests.testnet import NodeService, RunningNode, until

__all__ = ["mesh"]

POOLS = "pools:\n  - {name: l4, models: [big], min: 0, max: 3, start_seconds: 90}\n"


class StandInMetrics(NodeService):
    role: ClassVar[Role] = Role.METRICS


class BigWorker(StandInWorker):
    def __init__(self, node: Node) -> None:
        super().__init__(node)
        node.offer(models=(ModelOffer(ModelName("big"), 2048),), load=WorkerLoad(slots=4))


@pytest.fixture
def pools_file(tmp_path: Path) -> Path:
    path = tmp_path / "pools.yaml"
    path.write_text(POOLS, encoding="utf-8")
    return path


@pytest.fixture
async def pooled(mesh: GatewayMesh, pools_file: Path) -> RunningNode:
    """A second gateway, which has the pools."""
    settings = msgspec.structs.replace(mesh.settings, node_key_file=mesh.net.server.key("gateway2", Role.GATEWAY), pools_file=pools_file)
    started = await mesh.net.start(GatewayService, settings)
    await until(lambda: started.node.directory.usable(Role.AUTH) and len(mesh.client.directory.usable(Role.GATEWAY)) == 2)
    return started


def ask(mesh: GatewayMesh, pooled: RunningNode) -> Any:
    request = ProcessInferenceRequest(InferenceRequest(prompt="hi", model=ModelName("big")))
    return mesh.client.rpc.stream(gateway.process_inference_request, request, to=pooled.node.id, credential=KEY)


async def test_a_request_waits_for_a_worker_until_it_starts_or_metrics_gives_up(mesh: GatewayMesh, pooled: RunningNode) -> None:
    metrics = (await mesh.net.start(StandInMetrics)).node
    await until(lambda: len(metrics.directory.usable(Role.GATEWAY)) == 2)
    with pytest.raises(errors.NotStarted, match="no worker of big can be started: no GPU in us-east1"):
        async with ask(mesh, pooled) as answer:
            assert (await anext(aiter(answer))).waiting == "waiting: a worker is starting, about 90 s"
            with pytest.raises(errors.NotFound, match="there is no pool 'a100'"):
                await metrics.rpc.call(gateway.give_up_pool, GiveUpPool("a100", "no GPU", 60), to=pooled.node.id)
            await metrics.rpc.call(gateway.give_up_pool, GiveUpPool("l4", "no GPU in us-east1", 60), to=pooled.node.id)
            await anext(aiter(answer))
    await metrics.rpc.call(gateway.give_up_pool, GiveUpPool("l4", "", 0), to=pooled.node.id)
    async with ask(mesh, pooled) as answer:
        assert (await anext(aiter(answer))).waiting
        await mesh.net.start(BigWorker)
        assert "".join([chunk.text async for chunk in answer]) == "Hello world"
    with pytest.raises(errors.WrongRole, match="giveUpPool"):
        await mesh.client.rpc.call(gateway.give_up_pool, GiveUpPool("l4", "", 60), to=pooled.node.id)


def rewrite(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


async def test_a_faulty_file_is_refused_at_start_with_its_line_and_later_changes_nothing(
    mesh: GatewayMesh, pooled: RunningNode, pools_file: Path
) -> None:
    service: GatewayService = pooled.service  # type: ignore[assignment]
    rewrite(pools_file, POOLS.replace("min: 0", "min: 4"))
    await service.parts.scheduling.reload_pools()
    assert [pool.name for pool in service.parts.scheduling.pools.pools] == ["l4"]
    settings = msgspec.structs.replace(mesh.settings, pools_file=pools_file)
    with pytest.raises(errors.BadSettings, match="line 2: min 4 is more than max 3"):
        async with GatewayService.open(settings, mesh.nodes["gateway"].node):
            pass
    rewrite(pools_file, POOLS.replace("l4", "t4"))
    await service.parts.scheduling.reload_pools()
    assert [pool.name for pool in service.parts.scheduling.pools.pools] == ["t4"]
