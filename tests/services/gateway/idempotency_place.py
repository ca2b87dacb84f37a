"""Gateways that share only a real PostgreSQL, each with a generator of answers that the test can pause."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from services.gateway.facts import tally
from services.gateway.facts.reader import AnswerHead, Reader
from services.gateway.facts.tally import Tally
from services.gateway.idempotency.idempotency_keys import IdempotentRequest, KeyUse
from services.gateway.idempotency.idempotency_store import IdempotencyStore
from services.gateway.idempotency.idempotent_requests import IdempotentRequests, KeyRecorder
from services.gateway.idempotency.recorder import Recorders
from services.gateway.store import opened
from shared import errors
from shared.api.gateway import InferenceRequest, InferenceResult
from shared.api.generation import Usage
from shared.api.inference import Chunk
from shared.stores import database
from shared.types import FinishReason, ModelName, NodeId, RequestId, UserId
from tests.services.gateway import fakes

ADA, BOB = UserId(UUID(int=1)), UserId(UUID(int=2))
SECRET = "s" * 16
MODEL = ModelName("m")


def request_id() -> RequestId:
    return RequestId(uuid4())


def keyed_request(
    key: str = "k", *, who: UserId = ADA, after: int = 0, seed: int = 7, request: RequestId | None = None, **fields: Any
) -> IdempotentRequest:
    wanted = InferenceRequest(**{"prompt": "hi", **fields})
    return IdempotentRequest(owner=who, key=key, request=wanted, request_id=request or request_id(), seed=seed, after=after)


@dataclass
class Maker:
    """Makes five chunks that depend on the seed; waits for the gate before chunk ``waits_at``, and fails before ``fails_at``."""

    length: int = 5
    waits_at: int | None = None
    fails_at: int | None = None
    error: Exception = field(default_factory=lambda: errors.LinkLost("gone"))
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    seeds: list[int] = field(default_factory=list)

    async def make(self, recorder: KeyRecorder[Chunk, InferenceResult], request: IdempotentRequest, seed: int) -> InferenceResult:
        self.seeds.append(seed)
        recorder.begin(AnswerHead(request.request_id, MODEL, datetime(2026, 1, 1, tzinfo=UTC)))
        for number in range(1, self.length + 1):
            if number == self.waits_at:
                await self.gate.wait()
            if number == self.fails_at:
                raise self.error
            await recorder.take(number, Chunk(f"CANARY {seed} {number}", (number,)), tally.NOTHING)
        return InferenceResult(request.request_id, MODEL, FinishReason.STOP, Usage(3, self.length), 5, 1)


@dataclass
class ReceivedAnswer:
    """What one caller received."""

    numbers: list[int]
    texts: list[str]
    result: InferenceResult | None = None
    error: errors.AimeshError | None = None
    has_left: bool = False


class Gateway:
    def __init__(self, idempotency: IdempotentRequests, recorders: Recorders) -> None:
        self.idempotency, self.recorders = idempotency, recorders
        self.maker = Maker()

    async def ask(self, call: IdempotentRequest, *, seconds: float = 10, stops_after: int | None = None) -> ReceivedAnswer:
        received = ReceivedAnswer([], [])

        async def produce(recorder: KeyRecorder[Chunk, InferenceResult], claim: KeyUse) -> InferenceResult:
            return await self.maker.make(recorder, call, claim.seed)

        try:
            received.result = await self.idempotency.answer(call, produce, ListReader(received, stops_after), seconds=seconds)
        except errors.AimeshError as error:
            received.error = None if received.has_left else error
        return received


class ListReader(Reader[AnswerHead, Chunk]):
    def __init__(self, received: ReceivedAnswer, stops_after: int | None) -> None:
        self._received, self._stops_after = received, stops_after

    async def take(self, number: int, piece: Chunk, at: Tally) -> bool:
        self._received.numbers.append(number)
        self._received.texts.append(piece.text)
        self._received.has_left = number == self._stops_after
        return not self._received.has_left


class RunningService:
    """Creates gateways that a test can kill."""

    def __init__(self, store: IdempotencyStore, url: str) -> None:
        self.store = store
        self._url = url
        self._stacks: list[AsyncExitStack] = []

    async def gateway(self, name: str = "Uone", *, most_seconds: float = 30, store: Any = None) -> Gateway:
        stack = AsyncExitStack()
        self._stacks.append(stack)
        recorders = await stack.enter_async_context(Recorders().running())
        idempotency = IdempotentRequests(
            store or self.store, recorders, NodeId(name), items=fakes.new_items(), secret=SECRET, most_seconds=most_seconds
        )
        return Gateway(idempotency, recorders)

    async def close(self) -> None:
        for stack in self._stacks:
            await stack.aclose()

    async def sql(self, statement: str, *args: object) -> list[Any]:
        connection = await asyncpg.connect(self._url, server_settings={"search_path": "gateway"})
        try:
            return list(await connection.fetch(statement, *args))
        finally:
            await connection.close()

    async def listeners(self) -> int:
        """Return the number of connections that wait for notifications."""
        found = await self.sql("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'")
        return int(found[0][0])

    async def the_lease_ends(self) -> None:
        """Expire the running lease, as after kill -9 of the process that holds it."""
        await self.sql("UPDATE idempotency_keys SET lease_until = now() - interval '1 s' WHERE state = 'running'")

    async def row(self) -> Any:
        (only,) = await self.sql("SELECT * FROM idempotency_keys")
        return only


@asynccontextmanager
async def running_service(url: str) -> AsyncIterator[RunningService]:
    gateways: database.Database
    async with opened(url) as gateways:
        service = RunningService(IdempotencyStore(gateways), url)
        try:
            yield service
        finally:
            await service.close()
