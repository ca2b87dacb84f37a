"""What a request's row contains for reports: whose machine ran it, whether it starts a conversation, what the cache saved."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.gateway.idempotency.recorder import Recorders
from services.gateway.idempotency.response_cache import CacheBounds, ResponseCache
from services.gateway.requests.runs import Runs
from shared import context, errors
from shared.api.embedding import EmbeddingRequest
from shared.api.gateway import InferenceRequest
from shared.api.generation import ChatMessage
from shared.stores.cache import Cache
from shared.types import ModelName
from tests.services.gateway.fakes import OWNER, FakeWorker, RunningService
from tests.services.gateway.pulled import PulledRuns
from tests.services.gateway.requests.test_embedding_runs import EmbeddingWorker

OWNED = {"owner": "7c2e", "labels": {"site": "berlin", "gpu": "a100"}}


async def ask(runs: Runs, **fields: Any) -> None:
    context.start()
    async with PulledRuns(runs).run(OWNER, InferenceRequest(**{"prompt": "hi", "temperature": 0.0, **fields}), seconds=10) as running:
        async for _ in running:
            pass


async def test_a_row_records_the_owner_of_its_worker(running_service: RunningService) -> None:
    running_service.add_worker(1, running_service.worker, "smollm2", **OWNED)
    await ask(running_service.runs)
    row = running_service.store.only_row
    assert (row.worker_owner, row.worker_labels) == ("7c2e", (("gpu", "a100"), ("site", "berlin")))


async def test_the_owner_is_that_of_the_worker_that_took_over(running_service: RunningService) -> None:
    running_service.add_worker(1, lost := FakeWorker(fails_with=errors.LinkLost("gone")), "smollm2", owner="lost")
    running_service.add_worker(2, running_service.worker, "smollm2", owner="took-over")
    for _ in range(5):
        await ask(running_service.runs)
    assert lost.received
    assert {row.worker_owner for row in running_service.store.rows.values()} == {"took-over"}


async def test_a_row_is_dated_by_postgresqls_clock(running_service: RunningService) -> None:
    """This gateway's clock is 40 days off: its rows would count for another month."""
    running_service.books.clock_is_ahead = timedelta(days=40)
    await running_service.ledger.database_clock.refresh()
    running_service.add_worker(1, running_service.worker, "smollm2")
    await ask(running_service.runs)
    assert abs(running_service.store.only_row.created_at - datetime.now(UTC) - timedelta(days=40)) < timedelta(minutes=10)


async def test_a_request_that_never_ran_has_no_worker_owner(running_service: RunningService) -> None:
    running_service.add_worker(1, running_service.worker, "smollm2", **OWNED)
    with pytest.raises(errors.UnknownModel):
        await ask(running_service.runs, model=ModelName("gpt-9"))
    row = running_service.store.only_row
    assert (row.worker_owner, row.worker_labels, row.begins_conversation) == (None, (), True)


async def test_a_conversation_begins_without_an_earlier_answer(running_service: RunningService) -> None:
    question, answer, follow_up = ChatMessage("user", "hi"), ChatMessage("assistant", "hello"), ChatMessage("user", "and?")
    await ask(running_service.runs)
    await ask(running_service.runs, prompt=None, messages=(question,))
    await ask(running_service.runs, prompt=None, messages=(question, answer, follow_up))
    assert [row.begins_conversation for row in running_service.store.rows.values()] == [True, True, False]


async def test_embeddings_do_not_begin_a_conversation(running_service: RunningService) -> None:
    running_service.add_worker(1, EmbeddingWorker(), "smollm2", **OWNED)
    async with running_service.pulled.embed(OWNER, EmbeddingRequest(("hi",), ModelName("smollm2")), seconds=10) as running:
        async for _ in running:
            pass
    row = running_service.store.only_row
    assert (row.begins_conversation, row.worker_owner) == (False, "7c2e")


async def test_a_cached_answer_saves_what_it_would_have_cost(running_service: RunningService, valkey_url: str) -> None:
    bounds = CacheBounds(keep_seconds=60, most_bytes=2**20, most_seconds=10)
    async with Cache.open(valkey_url) as values, Recorders().running() as recorders:
        responses = ResponseCache(values, recorders, running_service.metrics, bounds, secret="s" * 16)
        runs = running_service.new_runs(responses=responses)
        running_service.add_worker(1, running_service.worker, "smollm2", **OWNED)
        await ask(runs)
        await ask(runs)
    computed, hit = running_service.store.rows.values()
    assert (computed.worker_owner, hit.worker_owner) == ("7c2e", None)
    assert (computed.saved_micro, hit.cost_micro) == (0, 0)
    assert hit.saved_micro == computed.cost_micro > 0
