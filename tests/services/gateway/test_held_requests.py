"""Requests for a model of a pool without workers, through the whole gateway."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from services.gateway.facts import model_names, model_routes
from services.gateway.idempotency.idempotent_requests import IdempotentRequests
from services.gateway.requests.repeated_request import RepeatedRequest
from services.gateway.requests.workers import Workers
from services.gateway.scheduling import dispatch, routing
from services.gateway.scheduling.dispatch import Dispatch
from services.gateway.scheduling.fair_queue import QueueSettings
from services.gateway.scheduling.worker_records import WorkerStats
from services.gateway.scheduling.worker_starts import WorkerStarts
from shared import context, errors
from shared.api.embedding import EmbeddingRequest
from shared.api.gateway import InferenceRequest
from shared.config_documents import RouteDocument, TargetDocument
from shared.types import ModelName, RequestStatus
from shared.worker_pools import WorkerPool
from tests.services.gateway import fakes
from tests.services.gateway.fakes import OWNER, FakeKeys, FakeWorker, RunningService, node_id
from tests.services.gateway.http_answers import BEARER, CHAT, events, problem
from tests.services.gateway.pulled import PulledRuns
from tests.services.gateway.requests.test_embedding_runs import EmbeddingWorker
from tests.testnet import until

BIG = ModelName("big")
POOL = WorkerPool(name="l4", models=(BIG, "huge"), min=0, max=3, start_seconds=90)


@pytest.fixture
async def service() -> AsyncIterator[RunningService]:
    """A pool without workers, next to the worker of another model."""
    async with fakes.running_service() as service:
        service.pools = (POOL,)
        yield service


@pytest.fixture
async def http(service: RunningService) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(service.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=BEARER) as client:
        yield client


async def waits(service: RunningService, number: int = 1) -> None:
    await until(lambda: service.dispatch.waiting == number)


async def ask(service: RunningService, seconds: float = 10, **fields: Any) -> str:
    context.start()
    request = InferenceRequest(**{"prompt": "hi", "model": BIG, **fields})
    async with service.pulled.run(OWNER, request, seconds=seconds) as running:
        return "".join([chunk.text async for _, chunk in running])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/inference"])
async def test_a_stream_gets_comments_and_then_its_answer(
    http: httpx.AsyncClient, service: RunningService, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "FIRST_NOTICE_SECONDS", 0.0)
    asking = asyncio.create_task(http.post(path, json={**CHAT, "model": BIG, "stream": True}))
    await waits(service)
    for _ in range(10):
        await asyncio.sleep(0)
    service.add_worker(2, FakeWorker(), BIG)
    answer = await asking
    comment, _, rest = answer.text.partition("\n\n")
    assert comment == ": waiting: a worker is starting, about 90 s"
    assert events(answer)[-1] == "[DONE]"
    assert "Hello" in rest
    assert service.store.only_row.status is RequestStatus.SUCCESS


async def test_without_a_stream_the_caller_waits_and_gets_503_when_the_time_is_up(http: httpx.AsyncClient, service: RunningService) -> None:
    service.dispatch._rules = QueueSettings(start_seconds=0.01)
    answer = await http.post("/v1/chat/completions", json={**CHAT, "model": BIG})
    problem(answer, 503, "not_started")
    assert answer.headers["retry-after"] == "90"
    assert service.store.only_row.status is RequestStatus.ERROR
    streamed = await http.post("/v1/chat/completions", json={**CHAT, "model": BIG, "stream": True})
    assert events(streamed)[-1]["error"]["aimesh_code"] == "not_started"


async def test_a_stream_that_has_begun_to_wait_gets_the_reason_as_its_last_event(
    http: httpx.AsyncClient, service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "FIRST_NOTICE_SECONDS", 0.0)
    asking = asyncio.create_task(http.post("/v1/chat/completions", json={**CHAT, "model": BIG, "stream": True}))
    await waits(service)
    for _ in range(10):
        await asyncio.sleep(0)
    service.dispatch.give_up("l4", "no GPU in us-east1", 60)
    answer = await asking
    (event,) = events(answer)
    assert (event["error"]["aimesh_code"], answer.status_code) == ("not_started", 200)
    assert "no worker of big can be started: no GPU in us-east1" in event["error"]["message"]


async def test_a_client_that_disconnects_frees_its_place(http: httpx.AsyncClient, service: RunningService) -> None:
    asking = asyncio.create_task(http.post("/v1/chat/completions", json={**CHAT, "model": BIG}))
    await waits(service)
    asking.cancel()
    await waits(service, 0)


async def test_the_wait_for_a_start_does_not_count_into_the_deadline() -> None:
    now = 1000.0
    async with fakes.running_service() as service:
        starts = WorkerStarts(SimpleNamespace(pools=(POOL,)))
        waiting = Dispatch(service.directory, random.Random(1), clock=lambda: now, worker_stats=WorkerStats(starts=starts))
        service.dispatch = waiting
        admission = replace(service.admission, search=replace(service.admission.search, dispatch=waiting))
        service.runs = service.new_runs(admission, Workers(service.rpc, waiting, clock=lambda: now))
        asking = asyncio.create_task(ask(service))
        await waits(service)
        now = 1200.0
        worker = FakeWorker()
        service.add_worker(2, worker, BIG)
        assert await asking == "Hello world!"
        assert worker.deadlines == [10.0]


async def test_a_request_under_a_key_may_wait_longer_than_its_answer_may_take(service: RunningService) -> None:
    keys = IdempotentRequests(
        FakeKeys(), service.recorders, node_id(99), items=fakes.new_items(), secret="s" * 16, most_seconds=0.01, start_seconds=30
    )
    once = PulledRuns(service.new_runs(idempotency=keys))

    async def ask_with_key() -> str:
        context.start()
        request = InferenceRequest(prompt="hi", model=BIG)
        async with once.answer(OWNER, request, seconds=10, repeat=RepeatedRequest(key="k")) as answer:
            return "".join([chunk.text async for _, chunk in answer])

    asking = asyncio.create_task(ask_with_key())
    await waits(service)
    began = asyncio.get_running_loop().time()

    await until(lambda: asyncio.get_running_loop().time() > began + 0.02)
    worker = FakeWorker()
    service.add_worker(2, worker, BIG)
    assert await asking == "Hello world!"


async def test_a_concurrency_slot_is_kept_for_the_wait_too(service: RunningService) -> None:
    asked: list[float] = []
    spend = service.quotas.spend

    async def record(*args: Any, seconds: float, **more: Any) -> Any:
        asked.append(seconds)
        return await spend(*args, seconds=seconds, **more)

    service.quotas.spend = record  # type: ignore[method-assign]
    service.add_worker(2, FakeWorker(), BIG)
    await ask(service)
    await ask(service, model=ModelName("smollm2"))
    assert asked == [310, 10]


async def test_embeddings_wait_too(service: RunningService) -> None:
    async def embed() -> int:
        context.start()
        async with service.pulled.embed(OWNER, EmbeddingRequest(("a", "b"), BIG), seconds=10) as running:
            return sum([len(item.vectors) async for _, item in running])

    asking = asyncio.create_task(embed())
    await waits(service)
    service.add_worker(2, EmbeddingWorker(), BIG, only_embeds=True)
    assert await asking == 2


async def test_a_route_waits_for_its_first_target_only_if_no_target_is_there(service: RunningService) -> None:
    def use(*models: str) -> None:
        targets = tuple(TargetDocument(name=f"t{number}", model=ModelName(model), order=number) for number, model in enumerate(models, 1))
        names = model_names.ModelNames(
            {}, None, routes={"assistant": model_routes.compile_route("assistant", 1, RouteDocument(targets=targets))}
        )
        service.config = replace(service.config, names=names)

    wait = partial(ask, service, model=ModelName("assistant"))
    use(BIG, "smollm2")
    assert await wait() == "Hello world!"
    assert len(service.worker.received) == 1, "nothing waits while another target answers"
    use("unknown", BIG, "huge")
    asking = asyncio.create_task(wait())
    await waits(service)
    service.add_worker(2, FakeWorker(("From", " the pool")), BIG)
    assert await asking == "From the pool"


async def test_names_and_policies_hold_for_models_that_can_be_started(service: RunningService) -> None:
    names = model_names.ModelNames({"large": BIG}, None)
    assert routing.resolve(ModelName("large"), (), names, startable=(BIG,)) == BIG
    assert routing.resolve(None, (), names, startable=(BIG,)) == BIG
    with pytest.raises(errors.NotReachable, match="no worker serves a model now"):
        routing.resolve(BIG, (), names, startable=(BIG,), allows=lambda _name: False)
    with pytest.raises(errors.UnknownModel, match="no worker serves the model 'unknown'"):
        await ask(service, model=ModelName("unknown"))


async def test_a_worker_that_refuses_because_it_stops_leaves_the_request_waiting(service: RunningService) -> None:
    """The last worker of its pool began to drain between the choice and the call."""
    stopping = FakeWorker(fails_with=errors.Draining("it stops"))
    service.add_worker(2, stopping, BIG)
    asking = asyncio.create_task(ask(service))
    await until(lambda: bool(stopping.received))
    service.directory.mark_gone(node_id(2), "stopped")
    await waits(service)
    service.add_worker(3, FakeWorker(), BIG)
    assert await asking == "Hello world!"
