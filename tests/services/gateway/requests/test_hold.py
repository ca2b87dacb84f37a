"""Answers without max_tokens, and answers that are not streamed. An input token costs 1 micro-credit, an output token 2."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from services.gateway.facts import tally, tiers
from services.gateway.facts.request_record import ReservationState
from services.gateway.facts.tiers import LimitRules
from services.gateway.idempotency.idempotent_requests import IdempotentRequests
from services.gateway.requests import runs
from services.gateway.requests.answers import TextAnswer
from services.gateway.requests.hold import STEP_TOKENS, Hold
from services.gateway.requests.plan import AdmissionRecord
from services.gateway.requests.repeated_request import RepeatedRequest
from shared import context
from shared.api import inference
from shared.api.gateway import InferenceRequest, InferenceResult
from shared.api.generation import GenerationEnd, Usage
from shared.api.inference import Chunk
from shared.types import FinishReason, RequestStatus
from tests.services.gateway import fakes
from tests.services.gateway.fakes import OWNER, FakeKeys, FakeWorker, RunningService, node_id
from tests.services.gateway.pulled import PulledRuns
from tests.testnet import until

CONTEXT = 131_072
LENGTH, STOP = FinishReason.LENGTH, FinishReason.STOP


# --- counting -----------------------------------------------------------------------------------------------------------


def tokens(count: int, answer: int = 0, **more: Any) -> Chunk:
    return Chunk("a" * count, tuple(range(1, count + 1)), answer=answer, **more)


class Counted:
    """Counts chunks against a hold, as a caller does, for a text answer."""

    def __init__(self, *, prompt_tokens: int = 0, answers: int = 1, **hold: Any) -> None:
        self.hold = Hold(answers=answers, **hold)
        plan: Any = SimpleNamespace(calls=[SimpleNamespace(call=None)], guard=None, moderation=None, answers=answers)
        self._answer = TextAnswer(plan, AdmissionRecord())
        self._answer.accepted(prompt_tokens)

    def take(self, chunk: Chunk) -> bool:
        at = tally.count(self._answer.at, chunk)
        if not self.hold.fits(at):
            return False
        self._answer.take(chunk, at)
        return True

    @property
    def needs_step(self) -> bool:
        return self.hold.needs_step(self._answer.at)

    def cut_off(self) -> GenerationEnd:
        return self._answer.cut_off(self.hold.most_tokens)


def test_the_next_step_is_wanted_shortly_before_the_end_of_this_one() -> None:
    bounds = Counted(held=4096, most=10_000, answers=1)
    assert bounds.take(tokens(3583))
    assert not bounds.needs_step
    assert bounds.take(tokens(1))
    assert (bounds.needs_step, bounds.hold.wanted) == (True, 8192)
    bounds.hold.extended(8192)
    assert not bounds.needs_step
    assert bounds.take(tokens(4096))
    assert (bounds.needs_step, bounds.hold.wanted) == (True, 10_000)
    bounds.hold.extended(10_000)
    assert bounds.take(tokens(2320))
    assert not bounds.needs_step, "there is nothing more to have"
    assert not bounds.take(tokens(1))


def test_a_chunk_beyond_a_refused_step_is_not_counted() -> None:
    bounds = Counted(held=4096, most=10_000, answers=1, prompt_tokens=7)
    bounds.take(tokens(4000))
    bounds.hold.extended(4096)
    assert not bounds.needs_step, "a refused step is not asked for again"
    assert not bounds.take(tokens(97))
    assert bounds.take(tokens(96, reasoning="so"))
    assert not bounds.take(tokens(1))
    assert bounds.take(Chunk("held back", ())), "the text of tokens that were counted"
    assert bounds.cut_off() == GenerationEnd(LENGTH, Usage(7, 4096, reasoning_tokens=96))


def test_a_part_of_a_step_is_the_last_one() -> None:
    bounds = Counted(held=4096, most=10_000, answers=1)
    bounds.take(tokens(4096))
    bounds.hold.extended(5000)
    assert not bounds.needs_step
    assert bounds.take(tokens(904))
    assert not bounds.take(tokens(1))


def test_several_answers_share_what_is_held_and_only_unfinished_ones_are_cut_off() -> None:
    bounds = Counted(held=100, most=1000, answers=3)
    for answer in range(3):
        assert bounds.take(tokens(60, answer))
    assert bounds.take(tokens(100, 2))
    bounds.hold.extended(100)
    assert bounds.take(tokens(5, 1, finish=STOP))
    assert not bounds.take(tokens(16, 2))
    assert bounds.cut_off() == GenerationEnd(LENGTH, Usage(0, 285), (LENGTH, STOP, LENGTH))


def test_an_answer_without_ids_is_held_by_its_bytes_and_billed_by_its_pieces() -> None:
    bounds = Counted(held=1000, most=5000, answers=1)
    assert bounds.take(Chunk("a" * 2997, ()))
    assert bounds.needs_step
    bounds.hold.extended(1000)
    assert not bounds.take(Chunk("four", ()))
    assert bounds.take(Chunk("abc", ()))
    assert bounds.cut_off().usage.completion_tokens == 2


def test_in_the_last_step_an_answer_without_ids_is_held_by_its_pieces() -> None:
    bounds = Counted(held=2, most=2, answers=1)
    assert [bounds.take(Chunk("a" * 1000, ())) for _ in range(3)] == [True, True, False]
    assert bounds.take(Chunk("", (), finish=STOP)), "its end has no text"
    bounds = Counted(held=2, most=2, answers=1)
    assert [bounds.take(tokens(1)) for _ in range(3)] == [True, True, False]


def test_the_worker_ends_an_answer_with_max_tokens() -> None:
    bounds = Counted(held=10, most=10, answers=1, is_open_ended=False)
    assert bounds.take(tokens(50))
    assert not bounds.needs_step


def test_a_tiny_first_step_does_not_ask_for_every_token() -> None:
    assert Hold(held=3, most=10_000, answers=1).wanted == 259


# --- running answers ----------------------------------------------------------------------------------------------------


@dataclass
class LongWorker(FakeWorker):
    """Writes ``length`` tokens, one per chunk, up to max_tokens."""

    length: int = 0
    #: The number of tokens after which it waits for ``goes_on``.
    waits_after: int | None = None
    in_one_piece: bool = False

    def __post_init__(self) -> None:
        self.goes_on = asyncio.Event()
        self.written = 0

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        most = prompt.model_config.max_tokens or 0
        if self.in_one_piece:
            yield tokens(self.length)
            yield GenerationEnd(STOP, Usage(self.prompt_tokens, self.length))
            return
        for position in range(min(self.length, most)):
            if position == self.waits_after:
                await self.goes_on.wait()
            self.written += 1
            yield inference.Chunk("a", (position + 1,))
        yield GenerationEnd(STOP if self.length <= most else LENGTH, Usage(self.prompt_tokens, min(self.length, most)))


class LongService:
    """A gateway, and one worker with a long answer."""

    def __init__(self, service: RunningService, worker: LongWorker) -> None:
        self.service, self.worker = service, worker

    async def ask(self, *, seconds: float = 60, streamed: bool = True, **fields: Any) -> tuple[int, InferenceResult]:
        """Return the length of the answer, and its result."""
        request = InferenceRequest(prompt="hi", **fields)
        async with self.service.pulled.run(OWNER, request, seconds=seconds, streamed=streamed) as running:
            length = sum([len(chunk.text) async for _, chunk in running])
        return length, running.result

    @property
    def extended(self) -> list[int]:
        return [one.max_tokens for one in self.service.books.extended]

    def limit(self, tokens_per_minute: int) -> None:
        plans = {OWNER.tier: replace(tiers.NO_LIMITS, tokens_per_minute=tokens_per_minute)}
        self.service.config = replace(self.service.config, limits=LimitRules(plans))

    async def left(self) -> int:
        (left,) = await self.service.quotas.read(OWNER)
        return left.remaining


@pytest.fixture
async def long() -> AsyncIterator[LongService]:
    async with fakes.running_service() as service:
        worker = LongWorker()
        service.add_worker(1, worker, "smollm2", context_tokens=CONTEXT)
        yield LongService(service, worker)


async def test_an_answer_without_max_tokens_reserves_step_by_step(long: LongService) -> None:
    long.worker.length = 10_000
    length, result = await long.ask()
    assert (length, result.finish_reason, result.usage.completion_tokens, result.clamped_to) == (10_000, STOP, 10_000, None)
    (reserved,) = long.service.books.reserved
    assert (reserved.max_tokens, long.extended) == (4096, [8192, 12_288])
    assert {(one.request_id, one.price) for one in long.service.books.extended} == {(result.request_id, long.service.books.prices[0])}
    row = long.service.store.only_row
    assert (row.cost_micro, row.reservation) == (7 + 2 * 10_000, ReservationState.SETTLED)


async def test_a_short_answer_asks_the_ledger_and_the_limits_no_more_than_before(long: LongService) -> None:
    long.limit(100_000)
    long.worker.length = STEP_TOKENS - STEP_TOKENS // 8 - 1
    await long.ask()
    assert (len(long.service.books.reserved), long.extended) == (1, [])
    assert long.service.counters.calls == 2, "counted, and settled"


async def test_an_answer_is_at_most_32768_tokens_long(long: LongService) -> None:
    long.worker.length = 40_000
    length, result = await long.ask()
    assert (length, result.finish_reason, long.extended[-1]) == (32_768, LENGTH, 32_768)
    assert long.worker.received[0].model_config.max_tokens == 32_768


async def test_the_context_bounds_an_answer_without_max_tokens(long: LongService) -> None:
    long.service.add_worker(1, long.worker, "smollm2", context_tokens=6000)
    long.worker.length = 40_000
    length, result = await long.ask()
    assert (length, result.finish_reason, long.extended) == (6000, LENGTH, [6000])


async def test_a_server_with_a_small_or_unknown_context_is_not_told_our_bound(long: LongService) -> None:
    """OpenAI's API refuses a max_tokens above the model's own limit, and vLLM refuses more than the context has left after the prompt."""
    long.service.add_worker(1, long.worker, "smollm2", context_tokens=0)
    long.worker.length = 10_000
    assert (await long.ask())[0] == 10_000
    await long.ask(max_tokens=5)
    long.service.books.most_tokens = 5
    await long.ask()
    assert [prompt.open_ended for prompt in long.worker.received] == [True, False, False]


async def test_a_refused_step_ends_the_answer_with_length_and_an_exact_bill(long: LongService) -> None:
    long.worker.length, long.service.books.most_tokens = 10_000, 5000
    length, result = await long.ask()
    assert (length, result.finish_reason, result.usage, result.clamped_to) == (5000, LENGTH, Usage(7, 5000), 5000)
    row = long.service.store.only_row
    assert (row.status, row.completion_tokens, row.cost_micro) == (RequestStatus.SUCCESS, 5000, 7 + 2 * 5000)
    assert (long.extended, long.worker.left_early, long.worker.written) == ([8192], 1, 5001)


async def test_without_postgresql_an_answer_ends_with_what_it_has(long: LongService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.billing.ledger.RESERVE_SECONDS", 0.01)
    long.worker.length, long.worker.waits_after = 10_000, 3000
    asking = asyncio.create_task(long.ask())
    await until(lambda: long.worker.written == 3000)
    long.service.books.away = True
    long.worker.goes_on.set()
    length, result = await asking
    assert (length, result.finish_reason, result.usage.completion_tokens, result.clamped_to) == (4096, LENGTH, 4096, None)


async def test_a_used_up_limit_ends_the_answer_and_counts_what_was_delivered(long: LongService) -> None:
    long.limit(10_000)
    long.worker.length = 20_000
    length, result = await long.ask()
    assert (length, result.finish_reason, result.clamped_to) == (8192, LENGTH, None)
    assert long.extended == [8192], "the ledger is not asked for what the limits don't have"
    assert await long.left() == 10_000 - result.usage.total_tokens


async def test_what_was_counted_for_steps_is_returned(long: LongService) -> None:
    long.limit(100_000)
    long.worker.length, long.worker.waits_after = 4000, 3900
    asking = asyncio.create_task(long.ask())
    await until(lambda: long.extended)
    long.worker.goes_on.set()
    _, result = await asking
    assert long.extended == [8192]
    assert await long.left() == 100_000 - result.usage.total_tokens


async def test_a_late_step_pauses_the_answer(long: LongService) -> None:
    long.worker.length = 6000
    long.service.books.may_extend.clear()
    delivered = 0
    async with long.service.pulled.run(OWNER, InferenceRequest(prompt="hi"), seconds=60) as running:
        async for _, chunk in running:
            delivered += len(chunk.text)
            if delivered == 4096:
                asyncio.get_running_loop().call_later(0.02, long.service.books.may_extend.set)
            assert delivered <= 4096 or long.service.books.may_extend.is_set(), "nothing runs past what is held"
    assert (delivered, running.result.finish_reason) == (6000, STOP)


async def test_a_cancellation_while_a_step_is_asked_for_settles_what_was_delivered(long: LongService) -> None:
    long.limit(100_000)
    long.worker.length = 6000
    long.service.books.may_extend.clear()
    asking = asyncio.create_task(long.ask())
    await until(lambda: long.extended and long.worker.written > STEP_TOKENS)
    asking.cancel()
    long.service.books.may_extend.set()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until(lambda: long.service.store.rows)
    row = long.service.store.only_row
    assert (row.status, row.completion_tokens, row.reservation) == (RequestStatus.CANCELLED, 4096, ReservationState.SETTLED)
    await until(lambda: not long.service.runs.running)
    assert await long.left() == 100_000 - row.tokens_used


async def test_max_tokens_of_the_caller_is_reserved_at_once(long: LongService) -> None:
    long.worker.length = 10_000
    length, result = await long.ask(max_tokens=9000)
    assert (length, result.finish_reason, long.extended) == (9000, LENGTH, [])
    assert long.service.books.reserved[0].max_tokens == 9000


async def test_low_credits_at_the_start_are_final(long: LongService) -> None:
    long.worker.length, long.service.books.most_tokens = 10_000, 40
    length, result = await long.ask()
    assert (length, result.clamped_to, long.extended) == (40, 40, [])
    assert long.worker.received[0].model_config.max_tokens == 40


# --- answers that are not streamed --------------------------------------------------------------------------------------


@pytest.fixture
def two_seconds(monkeypatch: pytest.MonkeyPatch) -> float:
    """Such answers end after half of this, instead of 90 %: room for a busy machine."""
    monkeypatch.setattr(runs, "DEADLINE_MARGIN_SHARE", 0.5)
    return 2.0


@pytest.mark.parametrize("fields", [{}, {"max_tokens": 2000}])
async def test_an_unstreamed_answer_ends_before_its_deadline_with_what_there_is(
    long: LongService, two_seconds: float, fields: dict[str, Any]
) -> None:
    """Such an answer once ended with a 504 at its deadline, and its caller got nothing."""
    long.worker.length, long.worker.waits_after = 10_000, 1500
    length, result = await long.ask(seconds=two_seconds, streamed=False, **fields)
    assert (length, result.finish_reason, result.usage) == (1500, LENGTH, Usage(7, 1500))
    row = long.service.store.only_row
    assert (row.status, row.cost_micro, row.response_time_ms < 2000) == (RequestStatus.SUCCESS, 7 + 2 * 1500, True)
    assert long.worker.left_early == 1


async def test_under_a_key_an_unstreamed_answer_ends_before_its_deadline_too(long: LongService, two_seconds: float) -> None:
    """With a key, such an answer still ended with a 504, although streams may repeat it."""
    long.worker.length, long.worker.waits_after = 10_000, 1500
    keys = IdempotentRequests(
        FakeKeys(), long.service.recorders, node_id(99), items=fakes.new_items(), secret="s" * 16, most_seconds=3 * two_seconds
    )
    repeated = PulledRuns(long.service.new_runs(idempotency=keys))
    context.start()
    began = time.monotonic()
    request, repeat = InferenceRequest(prompt="hi"), RepeatedRequest(key="k")
    for streamed in (False, True):
        async with repeated.answer(OWNER, request, seconds=two_seconds, repeat=repeat, streamed=streamed) as answer:
            length = sum([len(chunk.text) async for _, chunk in answer])
        assert (length, answer.result.finish_reason, answer.result.usage) == (1500, LENGTH, Usage(7, 1500))
    assert time.monotonic() - began < two_seconds
    assert long.service.store.only_row.status is RequestStatus.SUCCESS


async def test_an_unstreamed_answer_that_has_not_begun_keeps_its_time(long: LongService, two_seconds: float) -> None:
    long.worker.length, long.worker.waits_after = 3, 0
    asking = asyncio.create_task(long.ask(seconds=two_seconds, streamed=False))
    asyncio.get_running_loop().call_later(0.6 * two_seconds, long.worker.goes_on.set)
    length, result = await asking
    assert (length, result.finish_reason) == (1, LENGTH)


async def test_an_unstreamed_answer_that_waits_for_its_hold_ends_before_its_deadline_with_what_there_is(
    long: LongService, two_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited for a late step until its deadline, and its caller got nothing."""
    long.worker.length, granted = 10_000, asyncio.Event()
    extend = long.service.ledger._extensions._ask_all

    async def extend_late(extensions: Sequence[Any]) -> Any:
        await granted.wait()
        return await extend(extensions)

    monkeypatch.setattr(long.service.ledger._extensions, "_ask_all", extend_late)
    length, result = await asyncio.wait_for(long.ask(seconds=two_seconds, streamed=False), two_seconds)
    assert (length, result.finish_reason, result.usage) == (STEP_TOKENS, LENGTH, Usage(7, STEP_TOKENS))
    row = long.service.store.only_row
    assert (row.status, row.cost_micro, row.reservation) == (RequestStatus.SUCCESS, 7 + 2 * STEP_TOKENS, ReservationState.SETTLED)
    assert long.worker.left_early == 1
    granted.set()
    await until(lambda: not long.service.runs.running)


async def test_an_unstreamed_answer_whose_first_piece_waits_for_its_hold_keeps_its_time(
    long: LongService, two_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    long.worker.length, long.worker.in_one_piece = 5000, True
    extend = long.service.ledger._extensions._ask_all

    async def extend_late(extensions: Sequence[Any]) -> Any:
        await asyncio.sleep(0.6 * two_seconds)
        return await extend(extensions)

    monkeypatch.setattr(long.service.ledger._extensions, "_ask_all", extend_late)
    length, result = await long.ask(seconds=two_seconds, streamed=False)
    assert (length, result.finish_reason) == (5000, LENGTH)
