"""Embeddings with an idempotency key: through the pipeline, with a real PostgreSQL for the keys and a fake worker."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest

from services.gateway.http_api import answer_delivery
from services.gateway.idempotency import idempotent_requests, recording
from services.gateway.idempotency.idempotency_store import IdempotencyStore
from services.gateway.idempotency.idempotent_requests import IdempotentRequests
from services.gateway.idempotency.recorder import Recorders
from services.gateway.requests.repeated_request import RepeatedRequest
from services.gateway.store import opened
from shared import context, errors
from shared.api.embedding import Embed, Embedded, EmbeddingRequest, EmbeddingResult, Vectors
from shared.api.gateway import InferenceRequest
from shared.timing.backoff import Backoff
from shared.types import NodeId
from tests.services.gateway import fakes
from tests.services.gateway.fakes import OWNER, FakeWorker, RunningService
from tests.services.gateway.pulled import PulledAnswer, PulledRuns
from tests.services.gateway.requests.test_embedding_runs import packed

#: A number of a vector whose bytes are unlikely to occur elsewhere in a row.
CANARY = 1.2345679e8


@dataclass
class Worker(FakeWorker):
    """The vector of a text is (its length, the canary), sent one by one; waits before vector ``waits_at``, fails before ``fails_at``."""

    waits_at: int | None = None
    fails_at: int | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    #: Numbers in each vector.
    length: int = 2

    async def run(self, prompt: Any) -> AsyncIterator[Any]:
        assert isinstance(prompt, Embed)
        for number, text in enumerate(prompt.inputs, start=1):
            if number == self.waits_at:
                self.is_hanging.set()
                await self.gate.wait()
            if number == self.fails_at:
                raise errors.BadRequest("this text is too long")
            yield Vectors((packed(len(text), CANARY) + bytes(4 * (self.length - 2)),))
        yield Embedded(self.length, self.prompt_tokens)


@dataclass
class ReceivedAnswer:
    vectors: list[bytes]
    result: EmbeddingResult
    is_repeat: bool
    has_allowance: bool


def _has_allowance(answer: PulledAnswer) -> bool:
    return any(name.startswith(b"x-ratelimit") for name, _ in answer_delivery.headers(answer.head, is_repeat=answer.is_repeat))


class Gateways:
    """Two gateways that share only PostgreSQL and one worker."""

    def __init__(
        self,
        running_service: RunningService,
        worker: Worker,
        gateways: tuple[PulledRuns, PulledRuns],
        url: str,
    ) -> None:
        self.running_service, self.worker, self.gateways, self.pulled = running_service, worker, gateways, gateways[1]
        self._url = url

    async def ask(self, *inputs: str, key: str | None = "k", index: int = 0, seconds: float = 10, **fields: Any) -> ReceivedAnswer:
        context.start()  # as an HTTP route does
        request = EmbeddingRequest(inputs or ("a", "bb"), **fields)
        async with self.gateways[index].embed(OWNER, request, seconds=seconds, key=key) as answer:
            vectors = [vector async for _, vectors in answer for vector in vectors.vectors]
        return ReceivedAnswer(vectors, answer.result, answer.is_repeat, _has_allowance(answer))

    async def stored(self) -> list[Any]:
        connection = await asyncpg.connect(self._url, server_settings={"search_path": "gateway"})
        try:
            return list(await connection.fetch("SELECT state, answer FROM idempotency_keys"))
        finally:
            await connection.close()

    @property
    def runs(self) -> tuple[int, int]:
        """Return the number of the worker's runs, and of rows in the request log."""
        return len(self.worker.received), len(self.running_service.store.rows)


@pytest.fixture
async def gateways(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateways]:
    monkeypatch.setattr(idempotent_requests, "_BACKOFF", Backoff(0.005, 1.0))
    async with fakes.running_service() as running_service, opened(postgres_url) as database, AsyncExitStack() as stack:
        worker = Worker()
        running_service.worker = worker
        running_service.add_worker(1, worker, "smollm2")
        gateways = []
        for name in ("Uone", "Utwo"):
            recorders = await stack.enter_async_context(Recorders().running())
            keys = IdempotentRequests(
                IdempotencyStore(database), recorders, NodeId(name), items=fakes.new_items(), secret="s" * 16, most_seconds=10
            )
            gateways.append(PulledRuns(running_service.new_runs(idempotency=keys)))
        yield Gateways(running_service, worker, (gateways[0], gateways[1]), postgres_url)


async def test_without_a_key_requests_run_independently(gateways: Gateways) -> None:
    first, second = [await gateways.ask(key=None) for _ in range(2)]
    assert (first.vectors, first.is_repeat) == (second.vectors, second.is_repeat) == ([packed(1, CANARY), packed(2, CANARY)], False)
    assert gateways.runs == (2, 2)
    assert await gateways.stored() == []


@pytest.mark.parametrize("index", [0, 1], ids=["the same gateway", "another one"])
async def test_a_repeat_gets_the_same_vectors_and_is_not_billed(gateways: Gateways, index: int) -> None:
    first, again = await gateways.ask(), await gateways.ask(index=index)
    assert first.vectors == again.vectors == [packed(1, CANARY), packed(2, CANARY)]
    assert first.result == again.result
    assert [(one.is_repeat, one.has_allowance) for one in (first, again)] == [(False, True), (True, False)]
    assert gateways.runs == (1, 1)
    assert gateways.running_service.store.only_row.id == first.result.request_id


@pytest.mark.parametrize("index", [0, 1], ids=["the same gateway", "another one"])
async def test_fifty_concurrent_requests_run_once(gateways: Gateways, index: int) -> None:
    gateways.worker.waits_at = 2
    first = asyncio.create_task(gateways.ask())
    await gateways.worker.is_hanging.wait()
    rest = [asyncio.create_task(gateways.ask(index=index)) for _ in range(49)]
    await asyncio.sleep(0.02)
    gateways.worker.gate.set()
    received = [await first, *await asyncio.gather(*rest)]
    assert {tuple(one.vectors) for one in received} == {(packed(1, CANARY), packed(2, CANARY))}
    assert [one.is_repeat for one in received].count(False) == 1
    assert gateways.runs == (1, 1)


@pytest.mark.parametrize("other", [{"dimensions": 2}, {"model": "llama3"}], ids=str)
async def test_another_request_under_the_key_is_a_conflict(gateways: Gateways, other: dict[str, Any]) -> None:
    await gateways.ask()
    with pytest.raises(errors.IdempotencyConflict):
        await gateways.ask(**other)
    with pytest.raises(errors.IdempotencyConflict):
        await gateways.ask("a", "b")
    # The same characters split differently are different texts.
    with pytest.raises(errors.IdempotencyConflict):
        await gateways.ask("abb")
    assert gateways.runs == (1, 1)


async def test_prompts_and_embeddings_never_share_a_key(gateways: Gateways) -> None:
    await gateways.ask("hi")
    context.start()
    with pytest.raises(errors.IdempotencyConflict):
        async with gateways.pulled.answer(OWNER, InferenceRequest(prompt="hi"), seconds=10, repeat=RepeatedRequest(key="k")):
            pass


async def test_a_caller_that_lost_its_connection_finds_the_finished_answer(gateways: Gateways) -> None:
    gateways.worker.waits_at = 2
    lost = asyncio.create_task(gateways.ask())
    await gateways.worker.is_hanging.wait()
    lost.cancel()
    with pytest.raises(asyncio.CancelledError):
        await lost
    gateways.worker.gate.set()
    assert (await gateways.ask()).vectors == [packed(1, CANARY), packed(2, CANARY)]
    assert gateways.runs == (1, 1)
    assert gateways.worker.left_early == 0


async def test_a_request_that_fails_midway_costs_nothing_and_frees_its_key(gateways: Gateways) -> None:
    gateways.worker.fails_at = 2
    for _ in range(2):
        with pytest.raises(errors.BadRequest):
            await gateways.ask()
    assert await gateways.stored() == []
    gateways.worker.fails_at = None
    assert not (await gateways.ask()).is_repeat
    assert [(row.status, row.reservation) for row in gateways.running_service.store.rows.values()] == [
        ("rejected", "released"), ("rejected", "released"), ("success", "settled"),
    ]  # fmt: skip


async def test_vectors_cannot_be_read_in_postgresql(gateways: Gateways) -> None:
    await gateways.ask()
    ((state, answer),) = await gateways.stored()
    assert state == "ended"
    assert answer
    assert struct.pack("<f", CANARY) not in answer


async def test_an_answer_too_large_to_store_is_repeated_by_its_gateway(gateways: Gateways, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotent_requests, "MAX_ANSWER_BYTES", 50)
    first, again = await gateways.ask(), await gateways.ask()
    assert (first.vectors, again.is_repeat) == (again.vectors, True)
    with pytest.raises(errors.AnswerGone, match="too long to store"):
        await gateways.ask(index=1)
    assert gateways.runs == (1, 1)


async def test_an_answer_too_large_for_memory_is_delivered_and_billed_once(gateways: Gateways) -> None:
    gateways.worker.length = 16_384
    texts = ["x"] * (recording.MAX_BYTES // (4 * 16_384) + 10)
    assert len((await gateways.ask(*texts)).vectors) == len(texts)
    with pytest.raises(errors.AnswerGone):
        await gateways.ask(*texts)
    assert gateways.runs == (1, 1)
