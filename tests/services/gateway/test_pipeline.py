import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from services.gateway.pipeline import Pipeline
from services.gateway.scheduling import routing
from shared import context, errors
from shared.api import events, inference
from shared.api.auth import Principal
from shared.api.gateway import InferenceRequest, InferenceResult
from shared.api.generation import Generation, Usage
from shared.types import FinishReason, ModelName, RequestStatus, Role, TenantId, UserId
from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY_ID, OWNER, PERSON, USER, FakeWorker, House


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with fakes.house() as made:
        yield made


async def ask(house: House, who: Principal = OWNER, seconds: float = 10, **fields: Any) -> tuple[str, InferenceResult]:
    context.start()  # as a door does
    request = InferenceRequest(**{"prompt": "hi", **fields})
    async with house.pipeline.run(who, request, seconds=seconds) as running:
        text = "".join([chunk.text async for chunk in running])
    return text, running.result


async def test_an_answer_and_its_row(house: House) -> None:
    text, result = await ask(house, model="llama3")
    assert text == "Hello world!"
    assert (result.model, result.finish_reason, result.usage) == ("smollm2", FinishReason.STOP, Usage(7, 3))
    row = house.store.only_row
    assert (row.id, row.user_id, row.api_key_id, row.status, row.error_code) == (result.request_id, USER, KEY_ID, "success", None)
    assert (row.prompt_tokens, row.completion_tokens, row.model_used) == (7, 3, "smollm2")
    assert row.response_time_ms == result.response_time_ms
    assert row.prompt_hash is not None
    assert len(row.prompt_hash) == 64
    (event,) = house.published
    assert isinstance(event, events.RequestCompleted)
    assert (event.request_id, event.status, event.tokens) == (row.id, RequestStatus.SUCCESS, 10)


async def test_the_worker_learns_no_user_and_gets_a_seed(house: House) -> None:
    await ask(house)
    await ask(house, seed=5)
    first, second = house.worker.asked
    assert first.model_config.seed is not None
    assert second.model_config.seed == 5
    assert str(USER) not in repr(first)


async def test_an_organization_that_shares_its_founders_limits_waits_as_its_founder(house: House) -> None:
    team = msgspec.structs.replace(OWNER, user_id=UserId(uuid4()), team_id=TenantId(uuid4()), founder_id=USER)
    await ask(house, team)
    served = house.dispatch.lane(ModelName("smollm2")).queue
    assert served.counter_of(USER) > 0
    assert served.counter_of(team.tenant_id) == 0


async def test_the_same_prompt_has_the_same_hash_and_another_has_another(house: House) -> None:
    for prompt in ("a", "a", "b"):
        await ask(house, prompt=prompt)
    hashes = [row.prompt_hash for row in house.store.rows.values()]
    assert hashes[0] == hashes[1] != hashes[2]


async def test_an_access_token_has_no_key_in_its_row(house: House) -> None:
    await ask(house, PERSON)
    assert house.store.only_row.api_key_id is None


@pytest.mark.parametrize(
    ("fields", "error", "code"),
    [
        ({"temperature": 9.0}, errors.BadRequest, "bad_request"),
        ({"model": ModelName("gpt-9")}, errors.UnknownModel, "unknown_model"),
    ],
)
async def test_a_refused_request_has_a_row_and_is_not_counted(
    house: House, fields: dict[str, Any], error: type[errors.AimeshError], code: str
) -> None:
    with pytest.raises(error):
        await ask(house, **fields)
    assert (house.store.only_row.status, house.store.only_row.error_code) == ("rejected", code)
    assert not house.counters.calls


async def test_a_limited_request_has_a_row_and_says_when_to_come_back() -> None:
    async with fakes.house(free=2) as house:
        for _ in range(2):
            await ask(house)
        with pytest.raises(errors.Limited) as refused:
            await ask(house)
    assert refused.value.retry_after_seconds is not None
    assert 3600 < refused.value.retry_after_seconds <= 3660
    assert [row.status for row in house.store.rows.values()] == ["success", "success", "limited"]
    assert 'rate_limit_violations_total{model="smollm2",scope="user",tier="free"} 1.0' in house.metrics.render()


async def test_a_cancelled_request_records_what_was_delivered(house: House) -> None:
    house.worker.hangs_after = 2
    asking = asyncio.create_task(ask(house))
    await house.worker.said.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await _written(house)
    row = house.store.only_row
    assert (row.status, row.prompt_tokens, row.completion_tokens, row.error_code) == ("cancelled", 7, 2, "cancelled")
    assert house.worker.left_early == 1
    assert house.dispatch.in_flight == 0


async def test_a_reader_that_leaves_early_is_a_cancel(house: House) -> None:
    async with house.pipeline.run(OWNER, InferenceRequest(prompt="hi"), seconds=10) as running:
        await anext(running)
    await _written(house)
    assert (house.store.only_row.status, house.store.only_row.completion_tokens) == ("cancelled", 1)
    assert house.worker.left_early == 1


async def test_a_broken_stream_records_what_was_delivered(house: House) -> None:
    house.worker.fails_with, house.worker.fails_after = errors.LinkLost("gone"), 2
    with pytest.raises(errors.WorkerLost):
        await ask(house)
    assert (house.store.only_row.status, house.store.only_row.completion_tokens) == ("error", 2)
    assert house.store.only_row.error_code == "worker_lost"


async def test_a_deadline_is_a_timeout_also_when_it_arrives_as_a_cancel(house: House) -> None:
    house.worker.fails_with = errors.DeadlineExceeded("late")
    with pytest.raises(errors.DeadlineExceeded):
        await ask(house)
    house.worker.fails_with, house.worker.hangs_after = None, 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.03):
            await ask(house, seconds=0.03)
    await _written(house, 2)
    assert [row.status for row in house.store.rows.values()] == ["timeout", "timeout"]


class Liar(FakeWorker):
    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | Generation]:
        async for said in super().run(prompt):
            # Few enough that text of this length could have them.
            yield msgspec.structs.replace(said, usage=Usage(10**12, 50)) if isinstance(said, Generation) else said


async def test_output_is_counted_by_token_ids_and_not_by_the_workers_word(house: House) -> None:
    house.add_worker(1, liar := Liar(), "smollm2")
    _, result = await ask(house)
    assert liar.asked
    assert result.usage.completion_tokens == 3
    assert result.usage.prompt_tokens < 1000


async def test_a_full_queue_of_rows_refuses_before_anything_runs(house: House) -> None:
    house.store.away = True
    for _ in range(10_000):
        house.recorder.reserve()
    with pytest.raises(errors.Unavailable):
        await ask(house)
    assert not house.worker.asked
    house.recorder._reserved = 0
    house.store.away = False


async def test_usage_in_the_answers_equals_the_rows(house: House) -> None:
    results = await asyncio.gather(*(ask(house) for _ in range(50)))
    rows = house.store.rows
    assert len(rows) == 50
    assert sum(result.usage.total_tokens for _, result in results) == sum(row.tokens_used for row in rows.values())


async def test_metrics(house: House) -> None:
    await ask(house)
    text = house.metrics.render()
    assert 'ai_platform_tokens_total{model="smollm2",type="input"} 7.0' in text
    assert 'ai_platform_tokens_total{model="smollm2",type="output"} 3.0' in text
    assert 'ai_platform_ttft_seconds_count{model="smollm2"} 1.0' in text


async def _written(house: House, rows: int = 1) -> None:
    """A cancelled request does not wait for its row."""
    async with asyncio.timeout(10):
        while len(house.store.rows) < rows:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_request_waits_for_a_worker_that_was_there_a_moment_ago(house: House) -> None:
    patient = Pipeline(house.parts, patience_seconds=5.0)
    announced = house.directory.entries(Role.WORKER)[0].announcement
    house.directory.gone(announced.node, "its link was lost")

    async def text(pipeline: Pipeline) -> str:
        context.start()
        async with pipeline.run(OWNER, InferenceRequest(prompt="hi", model=ModelName("smollm2")), seconds=10) as running:
            return "".join([chunk.text async for chunk in running])

    with pytest.raises(errors.NotReachable):
        await text(house.pipeline)
    waiting = asyncio.create_task(text(patient))
    await asyncio.sleep(0)
    assert not waiting.done()
    house.directory.heard(announced, "nats")
    assert await waiting == "Hello world!"


async def test_a_worker_that_is_gone_for_long_is_not_waited_for(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "MISSED_SECONDS", 0.0)
    quick = Pipeline(house.parts, iter(range(0, 10_000, 100)).__next__, patience_seconds=50.0)
    house.directory.gone(house.directory.entries(Role.WORKER)[0].node, "its link was lost")
    with pytest.raises(errors.NotReachable):
        async with quick.run(OWNER, InferenceRequest(prompt="hi"), seconds=10):
            pass


async def test_a_long_prompt_counts_against_the_limits_by_what_it_is_likely_to_have(house: House) -> None:
    spent: list[int] = []

    async def spend(*_: object, tokens: int, **__: object) -> Any:
        spent.append(tokens)
        raise errors.Unavailable("enough")

    house.quotas.spend = spend  # type: ignore[method-assign]
    with pytest.raises(errors.Unavailable):
        await ask(house, prompt="word " * 600, max_tokens=100)
    # 3,000 bytes are some 600 tokens; 3,000 would be refused by a key with 2,000 a minute.
    assert 700 <= spent[0] <= 1200
