"""Orders to pull models, with a fake mesh."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.gateway import pull_orders
from services.gateway.pull_orders import PullOrders
from shared import errors
from shared.api import auth
from shared.api.gateway import Consented, ConsentOnWorker, PulledPlace, PullOnWorkers, RemoveFromWorker, WorkerPull
from shared.api.inference import PulledModel, PullModel, PullProgress, RemoveModel, SetModelConsent
from shared.types import ModelName, NodeId, Tier, UserRole
from tests.services.gateway.fakes import USER, FakeDirectory, node_id

ADMIN = auth.Principal(USER, "root", UserRole.ADMIN, Tier.FREE)
ALICE = auth.Principal(USER, "alice", UserRole.NODE_OWNER, Tier.FREE)
DONE = PulledModel(ModelName("m"), "ab", 3)
SOURCE = "https://me:pw@example.org/m.gguf?signature=secret#sha256=00"


class FakeAnswer:
    def __init__(self, run: Callable[[], Any]) -> None:
        self._run = run
        self.end = DONE

    async def __aiter__(self) -> AsyncIterator[PullProgress]:
        yield PullProgress("downloading", 1, 3)
        await self._run()


class Rpc:
    """Workers that pull; ``refuse`` has the errors of some, and ``gate`` delays all."""

    def __init__(self) -> None:
        self.received: list[tuple[NodeId, PullModel]] = []
        self.orders: list[tuple[NodeId, SetModelConsent | RemoveModel]] = []
        self.refuse: dict[NodeId, errors.AimeshError] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.left: list[NodeId] = []

    async def call(self, method: Any, request: SetModelConsent | RemoveModel, *, to: NodeId, deadline_seconds: float) -> None:
        assert deadline_seconds == 99.0
        assert isinstance(request, method.request)
        if to in self.refuse:
            raise self.refuse[to]
        self.orders.append((to, request))

    @asynccontextmanager
    async def stream(self, method: Any, request: PullModel, *, to: NodeId, deadline_seconds: float) -> AsyncIterator[FakeAnswer]:
        assert (method.name, deadline_seconds) == ("inference.pullModel", 99.0)
        self.received.append((to, request))
        if to in self.refuse:
            raise self.refuse[to]
        try:
            yield FakeAnswer(self.gate.wait)
        finally:
            self.left.append(to)


class Audit:
    def __init__(self) -> None:
        self.actions: list[tuple[str, str, dict[str, str]]] = []

    def report_action(self, action: str, by: auth.Principal, *, target: str, **details: str) -> None:
        assert by in (ADMIN, ALICE)
        self.actions.append((action, target, details))


class Stream:
    def __init__(self, principal: auth.Principal = ADMIN) -> None:
        self.principal = principal
        self.items: list[WorkerPull] = []

    def remaining_seconds(self) -> float:
        return 99.0

    async def send(self, item: WorkerPull) -> None:
        self.items.append(item)


class PullHarness:
    def __init__(self, *labels: dict[str, str]) -> None:
        self.rpc, self.nodes, self.audit, self.stream = Rpc(), FakeDirectory(), Audit(), Stream()
        for number, each in enumerate(labels):
            self.nodes.worker(number, "other", labels=each)
        self.orders = PullOrders(self.rpc, self.nodes, self.audit)  # type: ignore[arg-type]

    async def consent(self, worker: str, by: auth.Principal = ADMIN) -> Consented:
        return await self.orders.set_consent(ConsentOnWorker(NodeId(worker), accepts_models=True), Stream(by))  # type: ignore[arg-type]

    async def remove(self, worker: str, by: auth.Principal) -> None:
        await self.orders.remove_model(RemoveFromWorker(NodeId(worker), ModelName("m")), Stream(by))  # type: ignore[arg-type]

    async def pull(self, worker: str | None = None, **labels: str) -> tuple[PulledPlace, ...]:
        request = PullOnWorkers(SOURCE, None if worker is None else NodeId(worker), labels, ModelName("m"), insecure=True)
        return (await self.orders.pull(request, self.stream)).places  # type: ignore[arg-type]


async def test_one_worker_pulls_and_reports_its_progress() -> None:
    harness = PullHarness({}, {})
    assert await harness.pull(node_id(1)) == (PulledPlace(node_id(1), DONE),)
    assert harness.rpc.received == [(node_id(1), PullModel(SOURCE, ModelName("m"), insecure=True))]
    assert harness.stream.items == [WorkerPull(node_id(1), PullProgress("downloading", 1, 3))]
    assert harness.audit.actions == [("model.pull", "https://example.org/m.gguf", {"workers": node_id(1)})], "without what may be secret"


async def test_all_workers_with_the_labels_pull_and_one_that_fails_does_not_stop_the_others() -> None:
    harness = PullHarness({"room": "3", "gpu": "a"}, {"room": "3"}, {"room": "3", "gpu": "a"}, {})
    harness.rpc.refuse[node_id(2)] = errors.TooLarge("the disk is too full")
    places = await harness.pull(room="3", gpu="a")
    assert places == (PulledPlace(node_id(0), DONE), PulledPlace(node_id(2), None, "the disk is too full"))


async def test_error_of_the_only_worker_is_raised() -> None:
    harness = PullHarness({})
    harness.rpc.refuse[node_id(0)] = errors.NotAllowed("the owner of this worker does not allow pulls")
    with pytest.raises(errors.NotAllowed, match="the owner of this worker"):
        await harness.pull(node_id(0))


@pytest.mark.parametrize(
    ("order", "kind", "why"),
    [
        ({}, errors.BadRequest, "names no worker"),
        ({"worker": "nobody"}, errors.NotFound, "no worker matches"),
        ({"worker": "U"}, errors.NotFound, "several workers match"),
        ({"room": "4"}, errors.NotFound, "no worker matches"),
        ({"room": "3"}, errors.BadRequest, "at most 1 can pull at once"),
    ],
)
async def test_order_without_clear_workers_is_refused(
    order: dict[str, str], kind: type[errors.AimeshError], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_orders, "MAX_WORKERS", 1)
    harness = PullHarness({"room": "3"}, {"room": "3"})
    with pytest.raises(kind, match=why):
        await harness.pull(**order)
    assert (harness.rpc.received, harness.audit.actions) == ([], [])


async def test_the_worker_is_asked_whether_an_administrator_may_consent() -> None:
    harness = PullHarness({}, {})
    assert await harness.consent(node_id(1)) == Consented(node_id(1), accepts_models=True)
    assert harness.rpc.orders == [(node_id(1), SetModelConsent(USER, accepts_models=True, is_administrator=True))]
    assert harness.audit.actions == [("node.accept_models", node_id(1), {"accepts": "true"})]
    harness.rpc.refuse[node_id(0)] = errors.NotAllowed("only the owner of a machine decides")
    with pytest.raises(errors.NotAllowed, match="only the owner"):
        await harness.consent(node_id(0))
    with pytest.raises(errors.NotFound, match="several workers match"):
        await harness.consent("U")
    assert len(harness.audit.actions) == 1, "what was refused is not reported as done"


async def test_owners_order_their_own_machines_alone() -> None:
    harness = PullHarness({})
    harness.nodes.worker(1, owner=str(USER))
    await harness.consent(node_id(1), ALICE)
    await harness.remove(node_id(1), ALICE)
    await harness.remove(node_id(0), ADMIN)
    assert harness.rpc.orders == [
        (node_id(1), SetModelConsent(USER, accepts_models=True)),
        (node_id(1), RemoveModel(ModelName("m"), USER)),
        (node_id(0), RemoveModel(ModelName("m"), USER, is_administrator=True)),
    ]
    assert harness.audit.actions[1:] == [("node.remove_model", node_id(node), {"model": "m"}) for node in (1, 0)]
    for order in (harness.consent, harness.remove):
        with pytest.raises(errors.NotFound, match="no worker matches"):
            await order(node_id(0), ALICE)
    assert len(harness.rpc.orders) == 3


async def test_draining_and_dead_workers_are_left_out() -> None:
    harness = PullHarness({"room": "3"})
    harness.nodes.worker(1, labels={"room": "3"}, draining=True)
    harness.nodes.worker(2, labels={"room": "3"})
    harness.nodes.mark_gone(node_id(2), "silent")
    assert [place.worker for place in await harness.pull(room="3")] == [node_id(0)]


@pytest.mark.parametrize("workers", [1, 2])
async def test_canceled_order_ends_the_pulls(workers: int) -> None:
    harness = PullHarness(*[{"room": "3"}] * workers)
    harness.rpc.gate.clear()
    task = asyncio.create_task(harness.pull(room="3"))
    while len(harness.stream.items) < workers:  # noqa: ASYNC110 - one turn of the loop each
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(harness.rpc.left) == [node_id(number) for number in range(workers)]
