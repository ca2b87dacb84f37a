"""Loading and unloading models, with a fake mesh."""

from collections.abc import Callable
from typing import Any

import pytest

from services.gateway.facts.config_snapshot import ConfigSnapshot
from services.gateway.facts.model_names import ModelNames
from services.gateway.model_orders import ATTEMPTS, ModelOrders
from shared import errors
from shared.api import auth, gateway, inference
from shared.api.gateway import ModelPlace
from shared.api.inference import ModelState, ModelStatus
from shared.protocol.directory import WorkerLoad
from shared.rpc.audit_reporting import AuditReporting
from shared.types import LoadPurpose, ModelName, NodeId, Tier, UserRole
from tests.services.gateway.fakes import USER, FakeDirectory, FakeRpc, FixedConfig, node_id, rpc_call

ADMIN = auth.Principal(USER, "root", UserRole.ADMIN, Tier.FREE)
M = ModelName("m")


class Rpc(FakeRpc):
    """Records the calls of each node; ``refuse`` has the errors of some nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.received: list[tuple[str, NodeId | None, Any]] = []
        self.refuse: dict[NodeId, errors.AimeshError] = {}

    async def call(self, method: Any, request: Any, *, to: NodeId | None = None, **_more: Any) -> Any:
        self.received.append((method.name, to, request))
        if to in self.refuse:
            raise self.refuse[to]
        state = ModelState.READY if method is inference.load_model else ModelState.UNLOADED
        return ModelStatus(request.model_id, state, "", "llama", 2048, 4, 0, 0, pinned=True, memory_bytes=9)


class ModelOrdersHarness:
    def __init__(self, *workers: tuple[str, ...]) -> None:
        self.rpc, self.nodes = Rpc(), FakeDirectory()
        for number, models in enumerate(workers):
            # The first is the least loaded, so it is asked first.
            self.nodes.worker(number, *models, load=WorkerLoad(slots=1, running=number))
        self.orders = ModelOrders(
            self.rpc, self.nodes, FixedConfig(ConfigSnapshot(names=ModelNames({"alias": "m"}, None))), AuditReporting(self.rpc)
        )

    async def load(
        self, model: str = "m", worker: str | None = None, pin: bool | None = None, purpose: LoadPurpose | None = None
    ) -> tuple[ModelPlace, ...]:
        request = gateway.LoadOnWorker(ModelName(model), None if worker is None else NodeId(worker), pin, purpose)
        return (await self.orders.load(request, rpc_call(ADMIN))).places

    async def unload(self, model: str = "m", worker: str | None = None) -> tuple[ModelPlace, ...]:
        request = gateway.UnloadOnWorkers(ModelName(model), None if worker is None else NodeId(worker))
        return (await self.orders.unload(request, rpc_call(ADMIN))).places

    @property
    def called_nodes(self) -> list[NodeId | None]:
        return [node for _, node, _ in self.rpc.received]


async def test_the_least_busy_worker_with_the_model_loads_it() -> None:
    harness = ModelOrdersHarness(("other",), ("m",), ("m",))
    assert await harness.load(pin=True) == (ModelPlace(node_id(1), M, "ready", "", True, 9, 2048),)
    assert harness.rpc.received == [("inference.loadModel", node_id(1), inference.LoadModel(M, True))]


async def test_another_worker_is_tried_if_one_has_no_memory_and_the_last_error_is_returned() -> None:
    harness = ModelOrdersHarness(("m",), ("m",))
    harness.rpc.refuse[node_id(0)] = errors.Unavailable("no room")
    assert [place.worker for place in await harness.load()] == [node_id(1)]
    harness = ModelOrdersHarness(*[("m",)] * 5)
    for number in range(5):
        harness.rpc.refuse[node_id(number)] = errors.Unavailable(f"no room {number}")
    with pytest.raises(errors.Unavailable, match=f"no room {ATTEMPTS - 1}"):
        await harness.load()
    assert harness.called_nodes == [node_id(number) for number in range(ATTEMPTS)]


async def test_every_worker_unloads_the_model_even_if_one_refuses() -> None:
    harness = ModelOrdersHarness(("m",), ("m",), ("other",))
    harness.rpc.refuse[node_id(0)] = errors.Overloaded("m is in use")
    assert set(await harness.unload()) == {
        ModelPlace(node_id(0), M, "", "m is in use"),
        ModelPlace(node_id(1), M, "unloaded", "", True, 9, 2048),
    }


async def test_every_worker_loads_the_model_for_a_purpose_unless_one_is_named() -> None:
    harness = ModelOrdersHarness(("m",), ("m",), ("other",))
    harness.rpc.refuse[node_id(0)] = errors.Overloaded("m is in use")
    assert set(await harness.load(purpose=LoadPurpose.AGENTS)) == {
        ModelPlace(node_id(0), M, "", "m is in use"),
        ModelPlace(node_id(1), M, "ready", "", True, 9, 2048),
    }
    assert await harness.load(worker=node_id(1), purpose=LoadPurpose.CHATS)
    purposes = [LoadPurpose.AGENTS, LoadPurpose.AGENTS, LoadPurpose.CHATS]
    assert [request for _, _, request in harness.rpc.received] == [inference.LoadModel(M, None, purpose) for purpose in purposes]


async def test_the_only_workers_error_is_returned() -> None:
    harness = ModelOrdersHarness(("m",))
    harness.rpc.refuse[node_id(0)] = errors.Overloaded("m is in use")
    with pytest.raises(errors.Overloaded, match="m is in use"):
        await harness.unload()


async def test_a_worker_is_chosen_by_a_prefix_of_its_id() -> None:
    harness = ModelOrdersHarness(("m",), ("m",))
    await harness.load(worker=node_id(1))
    await harness.unload(worker=node_id(1))
    assert harness.called_nodes == [node_id(1), node_id(1)]


@pytest.mark.parametrize(
    ("order", "error"),
    [
        pytest.param(lambda harness: harness.load("x"), errors.UnknownModel, id="a model that nobody has"),
        pytest.param(lambda harness: harness.unload("x"), errors.UnknownModel, id="nothing to unload"),
        pytest.param(lambda harness: harness.load(worker="Z"), errors.NotFound, id="no such worker"),
        pytest.param(lambda harness: harness.load(worker="U"), errors.NotFound, id="several workers"),
    ],
)
async def test_an_ambiguous_or_unknown_worker_is_refused(
    order: Callable[[ModelOrdersHarness], Any], error: type[errors.AimeshError]
) -> None:
    harness = ModelOrdersHarness(("m",), ("m",))
    with pytest.raises(error):
        await order(harness)
    assert not harness.rpc.received


async def test_aliases_work_and_workers_that_are_not_ready_are_included() -> None:
    harness = ModelOrdersHarness()
    harness.nodes.worker(0, "m", not_ready="m: it failed")
    await harness.load("alias")
    assert harness.rpc.received == [("inference.loadModel", node_id(0), inference.LoadModel(M, None))]


async def test_a_stopping_worker_is_not_asked() -> None:
    harness = ModelOrdersHarness()
    harness.nodes.worker(0, "m", draining=True)
    with pytest.raises(errors.UnknownModel):
        await harness.load()
