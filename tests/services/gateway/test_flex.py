"""Flex requests: behind live ones, at half the price, and named in the answer."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import msgspec
import pytest

from services.gateway.billing.prices import Price
from services.gateway.facts.policies import Policies
from services.gateway.facts.reader import Reader
from services.gateway.facts.request_record import ReservationState
from services.gateway.facts.tiers import LimitRules
from shared import context, errors
from shared.api import inference
from shared.api.gateway import InferenceRequest
from shared.api.generation import GenerationEnd
from shared.api.inference import Chunk
from shared.api.ledger import MICRO, ModelPrice
from shared.config_documents import Flex, PolicyDocument
from shared.protocol.directory import ModelOffer
from shared.types import MicroCredits, ModelName, RequestStatus
from tests.services.gateway.fakes import OWNER, FakeWorker, RunningService, announcement, node_id
from tests.services.gateway.http_answers import CHAT, events, problem
from tests.services.gateway.requests.test_embedding_runs import EmbeddingWorker

YIELDING = ModelName("yielding")
MESSAGES = {**CHAT, "max_tokens": 50}
#: Path -> body, and where the answer names the tier.
DIALECTS: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/chat/completions": (CHAT, "flex"),
    "/v1/completions": ({"prompt": "hi"}, "flex"),
    "/v1/responses": ({"input": "hi"}, "flex"),
    "/v1/messages": (MESSAGES, "batch"),
}


def tiers_in(body: Any) -> set[str]:
    """Return the tiers that an answer or event names."""
    if isinstance(body, dict):
        own = {body["service_tier"]} if isinstance(body.get("service_tier"), str) else set()
        return own.union(*map(tiers_in, body.values()))
    return set().union(*map(tiers_in, body)) if isinstance(body, list) else set()


@pytest.mark.parametrize("path", DIALECTS)
async def test_flex_request_is_a_batch_at_half_the_price_and_says_so(
    http: httpx.AsyncClient, running_service: RunningService, path: str
) -> None:
    body, named = DIALECTS[path]
    answer = await http.post(path, json={**body, "service_tier": "flex"})
    assert answer.status_code == 200, answer.text
    assert tiers_in(answer.json()) == {named}
    assert "service_tier" not in answer.headers.get("x-aimesh-ignored", "")
    (prompt,) = running_service.worker.received
    assert prompt.batch
    row = running_service.store.only_row
    assert row.cost_micro == -(-(row.prompt_tokens + 2 * row.completion_tokens) // 2)
    (reserved,) = running_service.books.reserved
    assert (reserved.price.price.input_micro_per_million, reserved.price.price.output_micro_per_million) == (500_000, 1_000_000)


@pytest.mark.parametrize("path", DIALECTS)
async def test_stream_names_its_tier(http: httpx.AsyncClient, path: str) -> None:
    body, named = DIALECTS[path]
    answer = await http.post(path, json={**body, "service_tier": "flex", "stream": True})
    assert tiers_in([event for event in events(answer) if event != "[DONE]"]) == {named}


@pytest.mark.parametrize("tier", ["auto", "default", "priority", "standard_only", None])
@pytest.mark.parametrize("path", DIALECTS)
async def test_other_tiers_are_live(http: httpx.AsyncClient, running_service: RunningService, path: str, tier: str | None) -> None:
    body, _ = DIALECTS[path]
    answer = await http.post(path, json={**body, "service_tier": tier})
    assert answer.status_code == 200, answer.text
    assert tiers_in(answer.json()) <= {"default"}
    assert not running_service.worker.received[0].batch
    row = running_service.store.only_row
    assert row.cost_micro == row.prompt_tokens + 2 * row.completion_tokens


async def test_flex_embeddings(http: httpx.AsyncClient, running_service: RunningService) -> None:
    worker = EmbeddingWorker()
    running_service.add_worker(9, worker, "embedder", only_embeds=True)
    answer = await http.post("/v1/embeddings", json={"input": "hi", "model": "embedder", "service_tier": "flex"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["service_tier"] == "flex"
    assert worker.received[0].batch
    live = await http.post("/v1/embeddings", json={"input": "hi", "model": "embedder"})
    assert "service_tier" not in live.json()


async def test_flex_request_without_a_deadline_has_an_hour_and_a_live_one_has_not(
    http: httpx.AsyncClient, running_service: RunningService
) -> None:
    await http.post("/v1/chat/completions", json={**CHAT, "service_tier": "flex"})
    await http.post("/v1/chat/completions", json=CHAT)
    flex, live = running_service.worker.deadlines
    assert flex > 3000 > live


async def test_flex_request_that_waits_until_its_deadline_costs_nothing(running_service: RunningService) -> None:
    running_service.worker.hangs_after = 0
    context.start()
    async with running_service.pulled.run(OWNER, InferenceRequest(prompt="live"), seconds=5):
        await running_service.worker.is_hanging.wait()
        context.start()
        with pytest.raises(errors.ResourceUnavailable):
            await running_service.runs.run(OWNER, InferenceRequest(prompt="hi", flex=True), Reader(), seconds=1.02)
    row = next(iter(running_service.store.rows.values()))
    assert (row.status, row.error_code, row.cost_micro) == (RequestStatus.ERROR, "resource_unavailable", 0)
    assert row.reservation is ReservationState.RELEASED


class Yields(FakeWorker):
    """Makes way for live requests after its first word, once."""

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[Chunk | GenerationEnd]:
        async for item in super().run(prompt):
            if prompt.delivered and isinstance(item, Chunk) and item.token_ids[0] <= len(prompt.delivered):
                continue
            yield item
            if not prompt.delivered and isinstance(item, Chunk):
                raise errors.Preempted("live requests need the worker")


async def test_flex_answer_that_made_way_continues_where_it_was(running_service: RunningService) -> None:
    worker = Yields()
    running_service.rpc.workers[node_id(5)] = worker
    offer = ModelOffer(YIELDING, 2048, "d" * 64, slots=1, yields=True)
    running_service.directory.apply_announcement(msgspec.structs.replace(announcement(5), models=(offer,)), "nats")
    context.start()
    request = InferenceRequest(prompt="hi", model=YIELDING, flex=True)
    text = ""
    async with running_service.pulled.run(OWNER, request, seconds=60) as answer:
        async for _, piece in answer:
            text += piece.text
    assert text == "Hello world!"
    assert [prompt.delivered for prompt in worker.received] == [(), (1,)]
    assert running_service.store.only_row.status is RequestStatus.SUCCESS


class NeverRuns(FakeWorker):
    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[Chunk | GenerationEnd]:
        raise errors.Preempted("live requests need the worker")
        yield


@pytest.mark.parametrize(("flex", "times"), [(True, 7), (False, 1)])
async def test_worker_that_always_makes_way_is_not_asked_forever(running_service: RunningService, flex: bool, times: int) -> None:
    worker = NeverRuns()
    running_service.add_worker(5, worker, "lazy")
    context.start()
    with pytest.raises(errors.Preempted):
        await running_service.runs.run(OWNER, InferenceRequest(prompt="hi", model=ModelName("lazy"), flex=flex), Reader(), seconds=60)
    assert len(worker.received) == times


# --- rules -------------------------------------------------------------------------------------------------------------------------


def use(service: RunningService, policy: str | None = None, plan: str | None = None) -> None:
    document = PolicyDocument(external=("*",), flex=None if policy is None else Flex(policy))
    plans = {name: replace(found, flex=Flex(plan or "allowed")) for name, found in service.config.limits.plans.items()}
    service.config = replace(
        service.config,
        limits=LimitRules(plans),
        policies=Policies({"mesh": document, "default": PolicyDocument(external=("*",))}),
    )


async def test_caller_that_may_only_send_flex_requests_needs_not_name_them(
    http: httpx.AsyncClient, running_service: RunningService
) -> None:
    use(running_service, policy="only")
    assert (await http.post("/v1/chat/completions", json=CHAT)).json()["service_tier"] == "flex"
    assert (await http.post("/v1/chat/completions", json={**CHAT, "service_tier": "auto"})).json()["service_tier"] == "flex"
    problem(await http.post("/v1/chat/completions", json={**CHAT, "service_tier": "default"}), 403, "policy_forbidden")
    row = list(running_service.store.rows.values())[-1]
    assert (row.error_code, row.cost_micro) == ("policy_forbidden", 0)


async def test_plan_may_exclude_flex_requests(http: httpx.AsyncClient, running_service: RunningService) -> None:
    use(running_service, plan="never")
    assert (await http.post("/v1/chat/completions", json=CHAT)).json()["service_tier"] == "default"
    error = problem(await http.post("/v1/chat/completions", json={**CHAT, "service_tier": "flex"}), 403, "policy_forbidden")
    assert "level: plan" in error["message"]


# --- seconds of compute ------------------------------------------------------------------------------------------------------------


class Parked(FakeWorker):
    """Says how long it computed, which is less than its answer took."""

    def __init__(self, computed: float | None) -> None:
        super().__init__()
        self.computed = computed

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[Chunk | GenerationEnd]:
        async for item in super().run(prompt):
            yield msgspec.structs.replace(item, computed_seconds=self.computed) if isinstance(item, GenerationEnd) else item


@pytest.mark.parametrize(
    ("flex", "computed", "is_free"), [(True, 0.0, True), (True, -5.0, True), (True, None, False), (True, 1e9, False), (False, 0.0, False)]
)
async def test_seconds_are_those_that_the_worker_says_and_no_more_than_it_took(
    running_service: RunningService, flex: bool, computed: float | None, is_free: bool
) -> None:
    second = MicroCredits(MICRO * MICRO)
    running_service.books.prices = (Price(1, ModelPrice(None, MicroCredits(0), MicroCredits(0), compute_second_micro=second)),)
    await running_service.ledger.refresh_prices()
    running_service.add_worker(3, Parked(computed), "parked")
    await running_service.runs.run(OWNER, InferenceRequest(prompt="hi", model=ModelName("parked"), flex=flex), Reader(), seconds=60)
    cost = running_service.store.only_row.cost_micro
    assert (cost == 0) is is_free
    assert cost < 10 * second
