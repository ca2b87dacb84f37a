import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from services.gateway.facts.reader import Reader
from services.gateway.requests import request_validation
from services.gateway.requests.runs import Runs
from services.gateway.scheduling import routing
from shared import context, errors
from shared.api import events, inference
from shared.api.auth import Principal
from shared.api.gateway import InferenceRequest, InferenceResult
from shared.api.generation import GenerationEnd, Usage
from shared.types import FinishReason, ModelName, RequestStatus, Role, TenantId, UserId
from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY_ID, OWNER, PERSON, USER, FakeWorker, RunningService
from tests.services.gateway.pulled import PulledRuns


async def ask(running_service: RunningService, who: Principal = OWNER, seconds: float = 10, **fields: Any) -> tuple[str, InferenceResult]:
    context.start()  # as an HTTP route does
    request = InferenceRequest(**{"prompt": "hi", **fields})
    async with running_service.pulled.run(who, request, seconds=seconds) as running:
        text = "".join([chunk.text async for _, chunk in running])
    return text, running.result


async def test_an_answer_has_its_row(running_service: RunningService) -> None:
    text, result = await ask(running_service, model="llama3")
    assert text == "Hello world!"
    assert (result.model, result.finish_reason, result.usage) == ("llama3", FinishReason.STOP, Usage(7, 3))
    row = running_service.store.only_row
    assert (row.id, row.user_id, row.api_key_id, row.status, row.error_code) == (result.request_id, USER, KEY_ID, "success", None)
    assert (row.prompt_tokens, row.completion_tokens, row.model_used) == (7, 3, "smollm2")
    assert row.response_time_ms == result.response_time_ms
    assert row.prompt_hash is not None
    assert len(row.prompt_hash) == 64
    (event,) = running_service.published
    assert isinstance(event, events.RequestCompleted)
    assert (event.request_id, event.status, event.tokens) == (row.id, RequestStatus.SUCCESS, 10)


async def test_the_worker_gets_a_seed_but_no_user(running_service: RunningService) -> None:
    await ask(running_service)
    await ask(running_service, seed=5)
    first, second = running_service.worker.received
    assert first.model_config.seed is not None
    assert second.model_config.seed == 5
    assert str(USER) not in repr(first)


async def test_an_organization_that_shares_its_founders_limits_waits_as_its_founder(running_service: RunningService) -> None:
    team = msgspec.structs.replace(OWNER, user_id=UserId(uuid4()), team_id=TenantId(uuid4()), founder_id=USER)
    await ask(running_service, team)
    served = running_service.dispatch.model_queue(ModelName("smollm2")).queue
    assert served.counter_of(USER) > 0
    assert served.counter_of(team.tenant_id) == 0


async def test_equal_prompts_have_equal_hashes_and_others_differ(running_service: RunningService) -> None:
    for prompt in ("a", "a", "b"):
        await ask(running_service, prompt=prompt)
    hashes = [row.prompt_hash for row in running_service.store.rows.values()]
    assert hashes[0] == hashes[1] != hashes[2]


async def test_an_access_token_has_no_key_in_its_row(running_service: RunningService) -> None:
    await ask(running_service, PERSON)
    assert running_service.store.only_row.api_key_id is None


@pytest.mark.parametrize(
    ("fields", "error", "code"),
    [
        ({"prompt": ""}, errors.BadRequest, "bad_request"),
        ({"model": ModelName("gpt-9")}, errors.UnknownModel, "unknown_model"),
    ],
)
async def test_a_refused_request_has_a_row_and_is_not_counted(
    running_service: RunningService, fields: dict[str, Any], error: type[errors.AimeshError], code: str
) -> None:
    with pytest.raises(error):
        await ask(running_service, **fields)
    assert (running_service.store.only_row.status, running_service.store.only_row.error_code) == ("rejected", code)
    assert not running_service.counters.calls


async def test_a_limited_request_has_a_row_and_a_retry_time() -> None:
    async with fakes.running_service(free=2) as running_service:
        for _ in range(2):
            await ask(running_service)
        with pytest.raises(errors.Limited) as refused:
            await ask(running_service)
    assert refused.value.retry_after_seconds is not None
    assert 3600 < refused.value.retry_after_seconds <= 3660
    assert [row.status for row in running_service.store.rows.values()] == ["success", "success", "limited"]
    assert 'rate_limit_violations_total{model="smollm2",scope="user",tier="free"} 1.0' in running_service.metrics.render()


async def test_a_cancelled_request_records_what_was_delivered(running_service: RunningService) -> None:
    running_service.worker.hangs_after = 2
    asking = asyncio.create_task(ask(running_service))
    await running_service.worker.is_hanging.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await _written(running_service)
    row = running_service.store.only_row
    assert (row.status, row.prompt_tokens, row.completion_tokens, row.error_code) == ("cancelled", 7, 2, "cancelled")
    assert running_service.worker.left_early == 1
    assert running_service.dispatch.in_flight == 0


async def test_a_reader_that_leaves_early_is_a_cancellation(running_service: RunningService) -> None:
    async with running_service.pulled.run(OWNER, InferenceRequest(prompt="hi"), seconds=10) as running:
        await anext(running)
    await _written(running_service)
    assert (running_service.store.only_row.status, running_service.store.only_row.completion_tokens) == ("cancelled", 1)
    assert running_service.worker.left_early == 1


async def test_a_broken_stream_records_what_was_delivered(running_service: RunningService) -> None:
    running_service.worker.fails_with, running_service.worker.fails_after = errors.LinkLost("gone"), 2
    with pytest.raises(errors.WorkerLost):
        await ask(running_service)
    assert (running_service.store.only_row.status, running_service.store.only_row.completion_tokens) == ("error", 2)
    assert running_service.store.only_row.error_code == "worker_lost"


async def test_a_deadline_is_a_timeout_even_if_it_arrives_as_a_cancellation(running_service: RunningService) -> None:
    running_service.worker.fails_with = errors.DeadlineExceeded("late")
    with pytest.raises(errors.DeadlineExceeded):
        await ask(running_service)
    running_service.worker.fails_with, running_service.worker.hangs_after = None, 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.03):
            await ask(running_service, seconds=0.03)
    await _written(running_service, 2)
    assert [row.status for row in running_service.store.rows.values()] == ["timeout", "timeout"]


class MiscountingWorker(FakeWorker):
    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        async for item in super().run(prompt):
            # Few enough that a text of this length could have them.
            yield msgspec.structs.replace(item, usage=Usage(10**12, 50)) if isinstance(item, GenerationEnd) else item


async def test_output_is_counted_by_token_ids_and_not_by_the_workers_claim(running_service: RunningService) -> None:
    running_service.add_worker(1, liar := MiscountingWorker(), "smollm2")
    _, result = await ask(running_service)
    assert liar.received
    assert result.usage.completion_tokens == 3
    assert result.usage.prompt_tokens < 1000


@pytest.mark.parametrize(("claimed", "counted"), [(10**6, Usage(7, 3, 7, 3)), (-5, Usage(7, 3, 0, 0)), (2, Usage(7, 3, 2, 2))])
async def test_cached_and_reasoning_tokens_are_within_what_was_counted(
    running_service: RunningService, claimed: int, counted: Usage
) -> None:
    class Claiming(FakeWorker):
        async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
            async for item in super().run(prompt):
                yield msgspec.structs.replace(item, usage=Usage(7, 3, claimed, claimed)) if isinstance(item, GenerationEnd) else item

    running_service.add_worker(1, Claiming(), "smollm2")
    assert (await ask(running_service))[1].usage == counted


async def test_a_full_queue_of_rows_refuses_before_anything_runs(running_service: RunningService) -> None:
    running_service.store.away = True
    for _ in range(10_000):
        running_service.recorder.reserve()
    with pytest.raises(errors.Unavailable):
        await ask(running_service)
    assert not running_service.worker.received
    running_service.recorder._reserved = 0
    running_service.store.away = False


async def test_usage_in_answers_equals_the_rows(running_service: RunningService) -> None:
    results = await asyncio.gather(*(ask(running_service) for _ in range(50)))
    rows = running_service.store.rows
    assert len(rows) == 50
    assert sum(result.usage.total_tokens for _, result in results) == sum(row.tokens_used for row in rows.values())


async def test_metrics(running_service: RunningService) -> None:
    await ask(running_service)
    text = running_service.metrics.render()
    assert 'ai_platform_tokens_total{model="smollm2",type="input"} 7.0' in text
    assert 'ai_platform_tokens_total{model="smollm2",type="output"} 3.0' in text
    assert 'ai_platform_ttft_seconds_count{model="smollm2"} 1.0' in text


async def _written(running_service: RunningService, rows: int = 1) -> None:
    """A canceled request doesn't wait for its row."""
    async with asyncio.timeout(30):
        while len(running_service.store.rows) < rows:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_request_waits_for_a_worker_that_just_left(running_service: RunningService) -> None:
    search = replace(running_service.admission.search, worker_wait_seconds=5.0, discovery_ends_at=time.monotonic() + 5.0)
    admission = replace(running_service.admission, search=search)
    patient = running_service.new_runs(admission)
    announced = running_service.directory.entries(Role.WORKER)[0].announcement
    running_service.directory.mark_gone(announced.node, "its link was lost")

    async def text(runs: Runs) -> str:
        context.start()
        async with PulledRuns(runs).run(OWNER, InferenceRequest(prompt="hi", model=ModelName("smollm2")), seconds=10) as running:
            return "".join([chunk.text async for _, chunk in running])

    with pytest.raises(errors.NotReachable):
        await text(running_service.runs)
    waiting = asyncio.create_task(text(patient))
    await asyncio.sleep(0)
    assert not waiting.done()
    running_service.directory.apply_announcement(announced, "nats")
    assert await waiting == "Hello world!"


async def test_a_worker_that_left_long_ago_is_not_waited_for(running_service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "RECENTLY_LOST_SECONDS", 0.0)
    clock = iter(range(0, 10_000, 100)).__next__
    search = replace(running_service.admission.search, clock=clock, worker_wait_seconds=50.0, discovery_ends_at=50.0)
    quick = running_service.new_runs(replace(running_service.admission, search=search))
    running_service.directory.mark_gone(running_service.directory.entries(Role.WORKER)[0].node, "its link was lost")
    with pytest.raises(errors.NotReachable):
        await quick.run(OWNER, InferenceRequest(prompt="hi"), Reader(), seconds=10)


@pytest.mark.parametrize(("asked", "sent"), [(2047, 2047), (2048, 2048), (100_000, 2048), (None, 2048)])
async def test_max_tokens_above_the_context_is_lowered(running_service: RunningService, asked: int | None, sent: int) -> None:
    await ask(running_service, max_tokens=asked)
    assert running_service.worker.received[0].model_config.max_tokens == sent


async def test_max_tokens_is_lowered_to_the_longest_context(running_service: RunningService) -> None:
    running_service.add_worker(2, running_service.worker, "smollm2", context_tokens=5000)
    await ask(running_service, max_tokens=100_000)
    assert running_service.worker.received[0].model_config.max_tokens == 5000


async def test_without_a_known_context_max_tokens_is_bounded(running_service: RunningService) -> None:
    running_service.add_worker(2, running_service.worker, "smollm2", context_tokens=0)
    await ask(running_service, max_tokens=100_000)
    assert running_service.worker.received[0].model_config.max_tokens == request_validation.MAX_ANSWER_TOKENS


async def test_a_long_prompt_counts_against_the_limits_by_its_likely_tokens(running_service: RunningService) -> None:
    spent: list[int] = []

    async def spend(*_: object, tokens: int, **__: object) -> Any:
        spent.append(tokens)
        raise errors.Unavailable("enough")

    running_service.quotas.spend = spend  # type: ignore[method-assign]
    with pytest.raises(errors.Unavailable):
        await ask(running_service, prompt="word " * 600, max_tokens=100)
    # 3,000 bytes are about 600 tokens; a key with 2,000 tokens a minute would refuse 3,000.
    assert 700 <= spent[0] <= 1200
