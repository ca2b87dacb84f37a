"""What requests reserve and cost in the pipeline. Here an input token costs 1 micro-credit, an output token 2."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from services.gateway.billing.prices import Price
from services.gateway.billing.reservations import HeldCredits, InsufficientCredits
from services.gateway.facts.reader import Reader
from services.gateway.facts.request_record import ReservationState
from services.gateway.idempotency.idempotency_keys import KeyUse, NewKeyUse
from shared import errors
from shared.api import inference
from shared.api.gateway import InferenceRequest
from shared.api.generation import GenerationEnd, Usage
from shared.api.ledger import MICRO, ModelPrice
from shared.protocol.directory import WorkerLoad
from shared.types import FinishReason, MicroCredits, RequestStatus
from tests.services.gateway import fakes
from tests.services.gateway.fakes import OWNER, FakeWorker, RunningService
from tests.services.gateway.requests.admitted_runs import MODEL, admitted_run
from tests.services.gateway.requests.test_runs import ask
from tests.testnet import until


async def test_an_answer_costs_what_was_delivered_and_not_what_was_reserved(running_service: RunningService) -> None:
    _, result = await ask(running_service, max_tokens=50)
    (wanted,) = running_service.books.reserved
    assert (wanted.request_id, wanted.max_tokens, wanted.answers) == (result.request_id, 50, 1)
    assert running_service.store.only_row.cost_micro == result.cost_micro == 7 + 2 * 3
    assert running_service.store.only_row.reservation is ReservationState.SETTLED
    assert result.clamped_to is None
    assert not running_service.ledger._open, "its lease is not extended any more"


async def test_low_credits_shorten_the_answer_with_a_notice(running_service: RunningService) -> None:
    running_service.books.most_tokens = 20
    _, result = await ask(running_service, max_tokens=50)
    assert running_service.worker.received[0].model_config.max_tokens == 20
    assert result.clamped_to == 20


async def test_insufficient_credits_are_a_402_before_any_worker_is_called(running_service: RunningService) -> None:
    running_service.books.refuses = InsufficientCredits(0)
    with pytest.raises(errors.BudgetExhausted):
        await ask(running_service)
    assert not running_service.worker.received
    row = running_service.store.only_row
    assert (row.status, row.error_code, row.reservation) == (RequestStatus.REJECTED, "budget_exhausted", ReservationState.RELEASED)


async def test_without_postgresql_no_request_runs(running_service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.billing.ledger.RESERVE_SECONDS", 0.01)
    running_service.books.away = True
    with pytest.raises(errors.Unavailable, match="ledger"):
        await ask(running_service)
    assert not running_service.worker.received


async def test_a_request_that_fails_before_its_first_token_is_free(running_service: RunningService) -> None:
    running_service.worker.fails_with = errors.BadRequest("no such thing")
    with pytest.raises(errors.BadRequest):
        await ask(running_service)
    assert (running_service.store.only_row.cost_micro, running_service.store.only_row.reservation) == (0, ReservationState.RELEASED)


async def test_tokens_delivered_before_a_cancellation_are_billed() -> None:
    async with (
        fakes.running_service() as running_service,
        running_service.pulled.run(OWNER, InferenceRequest(prompt="hi"), seconds=10) as running,
    ):
        async for _ in running:
            break
    assert (running_service.store.only_row.cost_micro, running_service.store.only_row.status) == (7 + 2, RequestStatus.CANCELLED)


@pytest.mark.parametrize("error", [errors.DeadlineExceeded("too late"), errors.ModelCrashed("gone")])
@pytest.mark.parametrize(("streamed", "cost", "state"), [(True, 7 + 2, ReservationState.SETTLED), (False, 0, ReservationState.RELEASED)])
async def test_an_unstreamed_answer_that_fails_is_free(
    running_service: RunningService, error: errors.AimeshError, streamed: bool, cost: int, state: ReservationState
) -> None:
    """One of our proxies once cut off a whole answer, and its caller paid for 1,524 tokens that it never saw."""
    running_service.worker.fails_with, running_service.worker.fails_after = error, 1
    with pytest.raises(errors.AimeshError):
        async with running_service.pulled.run(OWNER, InferenceRequest(prompt="hi"), seconds=10, streamed=streamed) as running:
            async for _ in running:
                pass
    row = running_service.store.only_row
    assert (row.cost_micro, row.reservation, row.completion_tokens) == (cost, state, 1)


async def test_an_unstreamed_answer_that_fails_under_a_key_is_billed(running_service: RunningService) -> None:
    """Others may have read it as a stream."""
    running_service.worker.fails_with, running_service.worker.fails_after = errors.ModelCrashed("gone"), 1
    with pytest.raises(errors.AimeshError):
        await running_service.runs.run(OWNER, InferenceRequest(prompt="hi"), Reader(), seconds=10, key_use=NewKeyUse(5), streamed=False)
    assert running_service.store.only_row.cost_micro == 7 + 2


async def test_a_caller_that_abandons_an_unstreamed_answer_pays_for_what_was_generated() -> None:
    request = InferenceRequest(prompt="hi")
    async with (
        fakes.running_service() as running_service,
        running_service.pulled.run(OWNER, request, seconds=10, streamed=False) as running,
    ):
        async for _ in running:
            break
    assert (running_service.store.only_row.cost_micro, running_service.store.only_row.status) == (7 + 2, RequestStatus.CANCELLED)


async def test_a_request_without_max_tokens_reserves_what_the_context_allows(running_service: RunningService) -> None:
    await ask(running_service, n=2)
    assert (running_service.books.reserved[0].max_tokens, running_service.books.reserved[0].answers) == (2048, 2)


class Slots(FakeWorker):
    """A worker that runs four requests at once, each until the test ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.free = asyncio.Semaphore(4)
        self.works: list[asyncio.Event] = []
        self.asked = 0

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        self.asked += 1
        async with self.free:
            self.works.append(done := asyncio.Event())
            await done.wait()
            async for item in super().run(prompt):
                yield item


async def test_compute_seconds_exclude_time_in_the_queue(running_service: RunningService) -> None:
    """Time in the queue once counted: 48 equal requests cost between 1.11 and 5.44."""
    price = Price(1, ModelPrice(None, MicroCredits(0), MicroCredits(0), compute_second_micro=MicroCredits(1000)))
    running_service.books.prices = (price,)
    await running_service.admission.search.ledger.refresh_prices()
    worker, now = Slots(), 1000.0
    running_service.add_worker(1, worker, "smollm2", load=WorkerLoad(slots=4))
    running_service.runs.clock = running_service.dispatch.clock = lambda: now
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(ask(running_service, seconds=500, seed=seed)) for seed in range(48)]
        for ended in range(48):
            # One at a time: with two on their way to the worker, the gateway can't know which of them starts first.
            await until(
                lambda ended=ended: (
                    (len(worker.works), sum(task.done() for task in asking), worker.asked)
                    == (min(4, 48 - ended), ended, min(48, ended + 5))
                )
            )
            now += 2 if ended % 4 == 0 else 0
            worker.works.pop(0).set()
    assert {task.result()[1].cost_micro for task in asking} == {2000}
    assert {row.cost_micro for row in running_service.store.rows.values()} == {2000}
    assert max(row.response_time_ms for row in running_service.store.rows.values()) > 20_000


async def test_a_request_holds_seconds_by_those_of_earlier_ones(running_service: RunningService) -> None:
    price = Price(1, ModelPrice(None, MicroCredits(0), MicroCredits(0), compute_second_micro=MicroCredits(1000)))
    running_service.books.prices = (price,)
    await running_service.admission.search.ledger.refresh_prices()
    worker, now = Slots(), 1000.0
    running_service.add_worker(1, worker, "smollm2", load=WorkerLoad(slots=4))
    running_service.runs.clock = running_service.dispatch.clock = lambda: now
    costs: list[int] = []
    for seconds in (2, 40):
        task = asyncio.create_task(ask(running_service, seconds=50, max_tokens=10))
        await until(lambda: bool(worker.works))
        now += seconds
        worker.works.pop(0).set()
        costs.append((await task)[1].cost_micro)
    # The worker delivers everything at once, after 2 s.
    assert [wanted.seconds for wanted in running_service.books.reserved] == [30.0, 3.0]
    assert costs == [2000, 3000], "the second one is 13 times as slow as any before it"


@pytest.mark.parametrize(("key_use", "delivered"), [pytest.param(None, 2, id="a stream"), pytest.param(NewKeyUse(5), 0, id="under a key")])
async def test_a_claim_says_what_the_caller_has_of_earlier_workers(
    running_service: RunningService, key_use: KeyUse | None, delivered: int
) -> None:
    """If the gateway dies, it is billed. Under a key, the answer runs ahead of its readers, so nobody knows what they have."""
    first, second = FakeWorker(fails_with=errors.LinkLost("gone"), fails_after=2), FakeWorker(hangs_after=1)
    for number, worker in enumerate((first, second), 1):
        running_service.rpc.workers[fakes.node_id(number)] = worker
        made = fakes.announcement(number, MODEL, load=WorkerLoad(slots=8, running=number))
        offers = tuple(msgspec.structs.replace(offer, digest="d" * 64) for offer in made.models)
        running_service.directory.apply_announcement(msgspec.structs.replace(made, models=offers), "nats")
    running = running_service.runs.run(OWNER, InferenceRequest(prompt="hi"), Reader(), seconds=10, key_use=key_use)
    asking = asyncio.ensure_future(running)
    await second.is_hanging.wait()
    await until(lambda: len(running_service.books.claims) == 2)
    assert [claim.delivered_before for claim in running_service.books.claims] == [0, delivered]
    asking.cancel()
    await asyncio.wait([asking])


class Upstream(FakeWorker):
    """A server that sends no token ids, and counts at the end only."""

    prompt_tokens = 0

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        for position, word in enumerate(self.words):
            if position == self.fails_after:
                raise errors.LinkLost("gone")
            yield inference.Chunk(word, (), finish=FinishReason.STOP if word == self.words[-1] else None)
        if self.fails_after == len(self.words):
            raise errors.LinkLost("gone")
        yield GenerationEnd(FinishReason.STOP, Usage(5, 3))


@pytest.mark.parametrize(
    ("fails_after", "status", "tokens"),
    [
        pytest.param(2, "error", (4, 2), id="cut in the middle"),
        pytest.param(3, "success", (4, 3), id="complete, but its end marker is lost"),
        pytest.param(9, "success", (5, 3), id="complete"),
    ],
)
async def test_what_an_answer_without_ids_costs(
    running_service: RunningService, fails_after: int, status: str, tokens: tuple[int, int]
) -> None:
    running_service.add_worker(1, Upstream(prompt_tokens=0, fails_after=fails_after), "smollm2")
    with suppress(errors.WorkerLost):
        async with running_service.pulled.run(OWNER, InferenceRequest(prompt="four words of prompt"), seconds=10) as running:
            async for _ in running:
                pass
    row = running_service.store.only_row
    assert (row.status, (row.prompt_tokens, row.completion_tokens)) == (status, tokens)
    assert row.cost_micro == 1 * tokens[0] + 2 * tokens[1]


async def test_a_canceled_answer_without_ids_pays_a_lower_bound_of_its_prompt(running_service: RunningService) -> None:
    running_service.add_worker(1, Upstream(prompt_tokens=0, fails_after=9), "smollm2")
    async with running_service.pulled.run(OWNER, InferenceRequest(prompt="four words of prompt"), seconds=10) as running:
        await anext(running)
    await until(lambda: running_service.store.rows)
    row = running_service.store.only_row
    assert (row.status, row.prompt_tokens, row.completion_tokens) == ("cancelled", 4, 1)
    assert row.cost_micro == 1 * 4 + 2 * 1


async def test_an_answer_without_ids_never_costs_more_than_is_held(running_service: RunningService) -> None:
    running_service.add_worker(1, Upstream(prompt_tokens=0, words=("a", "b", "c", "d"), fails_after=3), "smollm2")
    with pytest.raises(errors.WorkerLost):
        await ask(running_service, max_tokens=2)
    assert (running_service.store.only_row.status, running_service.store.only_row.completion_tokens) == ("error", 2)


@pytest.mark.parametrize(("start_wait_seconds", "status"), [(0.0, "timeout"), (5.0, "cancelled")])
def test_the_start_of_a_worker_does_not_count_into_a_deadline(start_wait_seconds: float, status: str) -> None:
    run: Any = admitted_run()
    run.attempts = SimpleNamespace(start_wait_seconds=start_wait_seconds)
    run.cancelled(30.0)
    assert run.status == status


def test_an_empty_answer_whose_caller_can_not_take_it_is_free() -> None:
    """Its reservation was released, but its row had a cost."""
    run = admitted_run()
    price = Price(1, ModelPrice(None, MicroCredits(MICRO), MicroCredits(2 * MICRO)))
    run.admission.held, run.admission.most_prompt_tokens = HeldCredits(run.request_id, {MODEL: price}, 10, clamped=False), 100
    assert run.answer is not None
    run.answer.end(GenerationEnd(FinishReason.STOP, Usage(7, 0)))
    run.failed(errors.TooLarge("for this API"))
    row = run.end(1.0)
    assert (row.status, row.prompt_tokens, row.cost_micro, row.reservation) == ("rejected", 7, 0, ReservationState.RELEASED)
