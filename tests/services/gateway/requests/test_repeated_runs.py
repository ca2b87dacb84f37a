"""Idempotency keys through the whole pipeline, in a real PostgreSQL, with a fake worker."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from services.gateway.facts.reader import Reader
from services.gateway.http_api import answer_delivery
from services.gateway.idempotency.idempotency_store import IdempotencyStore
from services.gateway.idempotency.idempotent_requests import IdempotentRequests
from services.gateway.idempotency.recorder import Recorders
from services.gateway.requests.repeated_request import NO_REPEAT, RepeatedRequest
from services.gateway.store import opened
from shared import context, errors
from shared.api.gateway import InferenceRequest, InferenceResult, Rest
from shared.types import NodeId
from tests.services.gateway import fakes
from tests.services.gateway.fakes import OWNER, RunningService
from tests.services.gateway.pulled import PulledAnswer, PulledRuns
from tests.testnet import until

KEY = RepeatedRequest(key="k")


@dataclass
class ReceivedAnswer:
    numbers: list[int] = field(default_factory=list)
    text: str = ""
    answer: PulledAnswer | None = None
    result: InferenceResult | None = None


class Caller:
    def __init__(self, keys: IdempotentRequests, running_service: RunningService) -> None:
        self.pulled, self.running_service = PulledRuns(running_service.new_runs(idempotency=keys)), running_service

    async def ask(
        self, repeat: RepeatedRequest = NO_REPEAT, *, stops_after: int | None = None, whole: bool = False, **fields: Any
    ) -> ReceivedAnswer:
        context.start()  # as an HTTP route does
        request = InferenceRequest(**{"prompt": "hi", **fields})
        received = ReceivedAnswer()
        async with self.pulled.answer(OWNER, request, seconds=10, repeat=repeat, whole=whole) as answer:
            received.answer = answer
            async for number, chunk in answer:
                received.numbers.append(number)
                received.text += chunk.text
                if number == stops_after:
                    return received
        received.result = answer.result
        return received

    @property
    def runs(self) -> int:
        return len(self.running_service.worker.received)


@pytest.fixture
async def caller(postgres_url: str) -> AsyncIterator[Caller]:
    async with fakes.running_service() as running_service, opened(postgres_url) as database, Recorders().running() as recorders:
        keys = IdempotentRequests(
            IdempotencyStore(database), recorders, NodeId("Uone"), items=fakes.new_items(), secret="s" * 16, most_seconds=10
        )
        async with keys.running():
            yield Caller(keys, running_service)


async def test_without_a_key_requests_run_independently(caller: Caller) -> None:
    first, second = await caller.ask(), await caller.ask()
    assert first.text == second.text == "Hello world!"
    assert first.numbers == [1, 2, 3]
    assert first.answer is not None
    assert not first.answer.is_repeat
    assert first.answer.head.allowance is not None
    assert (caller.runs, len(caller.running_service.store.rows)) == (2, 2)


async def test_without_a_key_a_request_ends_with_its_reader(caller: Caller) -> None:
    await caller.ask(stops_after=1)
    assert caller.running_service.worker.left_early == 1
    with pytest.raises(errors.BadRequest, match="Last-Event-ID"):
        await caller.ask(RepeatedRequest(rest=Rest(1)))


async def test_with_a_key_a_request_runs_is_limited_and_is_written_once(caller: Caller) -> None:
    first, again = await caller.ask(KEY), await caller.ask(KEY)
    assert (first.text, first.numbers, first.result) == (again.text, again.numbers, again.result)
    assert first.answer is not None
    assert again.answer is not None
    assert (first.answer.is_repeat, again.answer.is_repeat) == (False, True)
    names = [{name for name, _ in answer_delivery.headers(each.answer.head, is_repeat=each.answer.is_repeat)} for each in (first, again)]
    assert [b"x-ratelimit-limit-requests" in found for found in names] == [True, False]
    heads = first.answer.head, again.answer.head
    assert heads[0].request_id == heads[1].request_id == caller.running_service.store.only_row.id
    assert (heads[0].model, heads[0].began_at) == (heads[1].model, heads[1].began_at)
    assert caller.runs == 1


async def test_a_caller_that_lost_its_stream_gets_the_rest(caller: Caller) -> None:
    caller.running_service.worker.hangs_after = 2
    cut = await caller.ask(KEY, stops_after=1)
    assert cut.answer is not None
    await caller.running_service.worker.is_hanging.wait()
    reading = asyncio.create_task(caller.ask(RepeatedRequest(key="k", rest=Rest(1)), stops_after=2))
    received = await reading
    assert (received.numbers, received.text) == ([2], " world")
    assert caller.running_service.worker.left_early == 0


async def test_a_caller_may_read_the_whole_answer_again(caller: Caller) -> None:
    cut = await caller.ask(KEY)
    assert cut.answer is not None
    rest = RepeatedRequest(key="k", rest=Rest(2))
    assert (await caller.ask(rest)).text == "!"
    assert (await caller.ask(rest, whole=True)).text == "Hello world!"


async def test_a_refusal_reaches_the_caller_and_frees_the_key(caller: Caller) -> None:
    with pytest.raises(errors.BadRequest):
        await caller.ask(KEY, system="with messages", prompt=None)
    caller.running_service.worker.fails_with = errors.ModelCrashed("gone")
    with pytest.raises(errors.AimeshError):
        await caller.ask(KEY)
    caller.running_service.worker.fails_with = None
    assert (await caller.ask(KEY)).text == "Hello world!"


async def test_a_canceled_request_costs_what_was_generated(caller: Caller) -> None:
    worker = caller.running_service.worker
    worker.hangs_after = 2
    asking = asyncio.create_task(caller.ask(KEY))
    await worker.is_hanging.wait()
    await caller.pulled.runs.cancel(OWNER, "k")
    with pytest.raises(errors.Cancelled):
        await asking
    row = caller.running_service.store.only_row
    assert (row.status, row.completion_tokens, row.cost_micro) == ("cancelled", 2, 7 + 2 * 2)


async def test_an_unstreamed_answer_under_a_key_ends_if_its_caller_can_take_no_more(caller: Caller) -> None:
    class Full(Reader[Any, Any]):
        async def take(self, number: int, piece: Any, at: Any) -> bool:
            raise errors.TooLarge("for this API")

    worker = caller.running_service.worker
    worker.hangs_after = 2
    context.start()
    with pytest.raises(errors.TooLarge):
        await caller.pulled.runs.answer(OWNER, InferenceRequest(prompt="hi"), Full(), seconds=10, repeat=KEY, streamed=False)
    await until(lambda: caller.running_service.store.rows)
    assert (worker.left_early, caller.running_service.store.only_row.status) == (1, "cancelled")


async def test_a_different_body_is_a_conflict(caller: Caller) -> None:
    await caller.ask(KEY)
    with pytest.raises(errors.IdempotencyConflict):
        await caller.ask(KEY, prompt="ho")


async def test_the_seed_is_fixed_by_the_first_request(caller: Caller) -> None:
    await caller.ask(KEY)
    (prompt,) = caller.running_service.worker.received
    assert prompt.model_config.seed is not None
    await caller.ask(RepeatedRequest(key="other"), seed=5)
    assert caller.running_service.worker.received[1].model_config.seed == 5


async def test_a_request_handed_over_by_a_stopping_gateway_has_one_row(postgres_url: str) -> None:
    async with fakes.running_service() as running_service, opened(postgres_url) as database:
        store = IdempotencyStore(database)
        running_service.worker.hangs_after = 1
        async with Recorders().running() as recorders:
            keys = IdempotentRequests(store, recorders, NodeId("Uone"), items=fakes.new_items(), secret="s" * 16, most_seconds=10)
            assert (await Caller(keys, running_service).ask(KEY, stops_after=1)).text == "Hello"
        assert running_service.store.rows == {}
        running_service.worker.hangs_after = None
        async with Recorders().running() as recorders:
            keys = IdempotentRequests(store, recorders, NodeId("Utwo"), items=fakes.new_items(), secret="s" * 16, most_seconds=10)
            received = await Caller(keys, running_service).ask(KEY)
        assert received.text == "Hello world!"
        assert received.result is not None
        assert (running_service.store.only_row.id, running_service.store.only_row.status) == (received.result.request_id, "success")
