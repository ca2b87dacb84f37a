"""The response cache in the pipeline, on a real Valkey."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.gateway.idempotency.answer_runs import AnswerRuns
from services.gateway.idempotency.cache_keys import CacheRequest
from services.gateway.idempotency.response_cache import CacheBounds, ResponseCache
from services.gateway.pipeline import Pipeline
from shared import context
from shared.api.auth import Principal
from shared.api.gateway import InferenceRequest, InferenceResult
from shared.stores.cache import Cache
from shared.types import UserId
from tests.services.gateway import fakes
from tests.services.gateway.fakes import OWNER, RunningService


class Asker:
    def __init__(self, running_service: RunningService, pipeline: Pipeline) -> None:
        self.running_service, self.pipeline = running_service, pipeline

    async def ask(
        self, who: Principal = OWNER, *, cache: CacheRequest = CacheRequest.NOTHING, **fields: Any
    ) -> tuple[str, InferenceResult]:
        context.start()
        request = InferenceRequest(**{"prompt": "hi", "temperature": 0.0, **fields})
        async with self.pipeline.run(who, request, seconds=10, cache=cache) as running:
            text = "".join([chunk.text async for _, chunk in running])
        return text, running.result

    @property
    def runs(self) -> int:
        return len(self.running_service.worker.received)


@pytest.fixture
async def asker(valkey_url: str) -> AsyncIterator[Asker]:
    bounds = CacheBounds(keep_seconds=60, most_bytes=2**20, most_seconds=10)
    async with fakes.running_service() as running_service, Cache.open(valkey_url) as values, AnswerRuns().running() as runs:
        responses = ResponseCache(values, runs, running_service.metrics, bounds, secret="s" * 16)
        yield Asker(running_service, running_service.new_pipeline(responses=responses))


async def test_a_cache_hit_has_a_row_that_says_so(asker: Asker) -> None:
    (first, computed), (again, hit) = await asker.ask(), await asker.ask()
    assert first == again == "Hello world!"
    assert (computed.cached, hit.cached) == (False, True)
    assert computed.request_id != hit.request_id
    assert computed.usage == hit.usage
    assert [row.cached for row in asker.running_service.store.rows.values()] == [False, True]
    assert asker.runs == 1


@pytest.mark.parametrize(
    "fields", [{"temperature": 1.0}, {"temperature": None}, {"cache": CacheRequest.OFF}, {"cache": CacheRequest.FRESH}]
)
async def test_which_requests_are_not_answered_from_the_cache(asker: Asker, fields: dict[str, Any]) -> None:
    await asker.ask(**fields)
    assert not (await asker.ask(**fields))[1].cached
    assert asker.runs == 2


async def test_other_tenants_are_not_answered_from_the_cache(asker: Asker) -> None:
    await asker.ask()
    other = Principal(UserId(fakes.KEY_ID), "bob", OWNER.role, OWNER.tier)
    assert not (await asker.ask(other))[1].cached


async def test_a_seed_makes_a_request_cacheable(asker: Asker) -> None:
    await asker.ask(temperature=1.0, seed=5)
    assert (await asker.ask(temperature=1.0, seed=5))[1].cached
    assert not (await asker.ask(temperature=1.0, seed=6))[1].cached
