"""The response cache on a real Valkey."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
import redis

from services.gateway.facts import tally
from services.gateway.facts.reader import Reader
from services.gateway.facts.tally import Tally
from services.gateway.idempotency import sealed_values
from services.gateway.idempotency.cache_keys import PREFIX, CacheQuestion, CacheUse
from services.gateway.idempotency.recorder import Recorders
from services.gateway.idempotency.response_cache import AnswerOrigin, CacheBounds, ResponseCache
from services.gateway.idempotency.sealed_values import VALKEY_SECONDS
from shared import errors
from shared.api.generation import ChatMessage, GenerationEnd, Usage
from shared.api.inference import Chunk, ModelConfig, PromptAccepted
from shared.stores.cache import Cache
from shared.telemetry import Metrics
from shared.timing import circuit_breaker
from shared.types import FinishReason, ModelName, UserId
from tests.servers import ValkeyServer
from tests.services.gateway.limits.refusing_valkey import refusing
from tests.services.gateway.log_lines import Lines
from tests.stopwatch import HANG_SECONDS

ADA, BOB = UserId(UUID(int=1)), UserId(UUID(int=2))
SECRET = "s" * 16
USE = CacheUse(read=True, write=True)
END = GenerationEnd(FinishReason.STOP, Usage(7, 3))


class Worker:
    """Generates the same words every time, and counts the runs. The last word waits for the gate."""

    def __init__(self, *words: str) -> None:
        self.words = words or ("Hello", " CANARY", "!")
        self.runs = self.cancelled = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails_with: errors.AimeshError | None = None
        self.end = END

    async def __call__(self, reader: Reader[PromptAccepted, Chunk], seconds: float) -> GenerationEnd:
        self.runs += 1
        at = Tally(7)
        try:
            await reader.take(0, Chunk("", (), waiting="loading"), at)
            reader.begin(PromptAccepted(7))
            for number, word in enumerate(self.words, start=1):
                if number == len(self.words):
                    await self.gate.wait()
                    if self.fails_with is not None:
                        raise self.fails_with
                at = tally.count(at, Chunk(word, (number,)))
                await reader.take(1, Chunk(word, (number,)), at)
            return self.end
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class Listener(Reader[PromptAccepted, Chunk]):
    """Keeps what it gets, apart from notices, and checks the counts."""

    def __init__(self) -> None:
        self.items: list[object] = []

    def begin(self, head: PromptAccepted) -> None:
        self.items.append(head)

    async def take(self, number: int, piece: Chunk, at: Tally) -> bool:
        if number:
            self.items.append(piece)
            assert (at.prompt, at.ids) == (7, number)
        return True


class Place:
    """A cache, the origins of its answers, and a helper to ask it."""

    def __init__(self, cache: ResponseCache, metrics: Metrics, recorders: Recorders) -> None:
        self.cache, self.metrics, self.recorders = cache, metrics, recorders
        self.origins: list[AnswerOrigin] = []

    async def ask(
        self,
        worker: Worker,
        prompt: str = "hi",
        *,
        who: UserId = ADA,
        use: CacheUse = USE,
        seconds: float = 5,
        keep_seconds: int | None = None,
    ) -> list[object]:
        config = ModelConfig(model=ModelName("m"), temperature=0)
        question = CacheQuestion(who, (ChatMessage("user", prompt),), config, keep_seconds=keep_seconds)
        listener = Listener()
        end = await self.cache.answer(
            question,
            worker,
            listener,
            use=use,
            seconds=seconds,
            shared=None,
            set_origin=lambda origin, _shared: self.origins.append(origin),
        )
        return [*listener.items, end]

    def counted(self, result: AnswerOrigin) -> float:
        return self.metrics.registry.get_sample_value("ai_platform_response_cache_total", {"result": result.value}) or 0


@asynccontextmanager
async def opened(url: str, **bounds: Any) -> AsyncIterator[Place]:
    metrics = Metrics("gateway")
    wanted = CacheBounds(**{"keep_seconds": 60.0, "most_bytes": 2**20, "most_seconds": 5.0, **bounds})
    async with Cache.open(url) as values, Recorders().running() as recorders:
        yield Place(ResponseCache(values, recorders, metrics, wanted, secret=SECRET), metrics, recorders)


@pytest.fixture
async def place(valkey_url: str) -> AsyncIterator[Place]:
    async with opened(valkey_url) as connection:
        yield connection


@pytest.fixture
def client(valkey_url: str) -> Any:
    with redis.Redis.from_url(valkey_url) as connected:
        yield connected


def answers_in(client: Any) -> list[bytes]:
    words = {b"order", b"sizes", b"bytes"}
    return [key for key in client.keys("*") if key.removeprefix(PREFIX.encode()) not in words]


def whole(worker: Worker) -> list[object]:
    return [PromptAccepted(7), *(Chunk(word, (number,)) for number, word in enumerate(worker.words, start=1)), END]


async def test_the_second_answer_comes_from_the_cache_and_is_the_same(place: Place) -> None:
    worker = Worker()
    assert await place.ask(worker) == await place.ask(worker) == whole(worker)
    assert worker.runs == 1
    assert place.origins == [AnswerOrigin.MISS, AnswerOrigin.HIT]
    assert (place.counted(AnswerOrigin.HIT), place.counted(AnswerOrigin.MISS)) == (1, 1)


async def test_tenants_never_share_answers(place: Place) -> None:
    worker = Worker()
    await place.ask(worker)
    await place.ask(worker, who=BOB)
    await place.ask(worker, "ho")
    assert worker.runs == 3


async def test_fifty_concurrent_requests_run_once(place: Place) -> None:
    worker = Worker()
    worker.gate.clear()
    asking = [asyncio.create_task(place.ask(worker)) for _ in range(50)]
    others = [asyncio.create_task(place.ask(worker, who=BOB)) for _ in range(5)]
    while len(place.origins) < 55:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    worker.gate.set()
    assert await asyncio.gather(*asking, *others) == [whole(worker)] * 55
    assert worker.runs == 2
    assert (place.counted(AnswerOrigin.MISS), place.counted(AnswerOrigin.JOINED)) == (2, 53)


async def test_a_reader_that_leaves_does_not_affect_others_but_the_last_one_cancels(place: Place) -> None:
    worker = Worker()
    worker.gate.clear()
    asking = [asyncio.create_task(place.ask(worker)) for _ in range(3)]
    while len(place.origins) < 3:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    # The other requests joined the first one's run.
    asking[0].cancel()
    await asyncio.wait([asking[0]])
    assert worker.cancelled == 0
    worker.gate.set()
    assert await asking[1] == await asking[2] == whole(worker)
    worker.gate.clear()
    alone = asyncio.create_task(place.ask(worker, "ho"))
    while worker.runs < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    alone.cancel()
    await asyncio.wait([alone])
    await asyncio.sleep(0)
    assert worker.cancelled == 1
    assert place.recorders._bytes == 0


async def test_an_error_reaches_all_readers_and_is_not_cached(place: Place) -> None:
    worker = Worker()
    worker.gate.clear()
    worker.fails_with = errors.LinkLost("gone")
    asking = [asyncio.create_task(place.ask(worker)) for _ in range(4)]
    while len(place.origins) < 4:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    worker.gate.set()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(one) for one in outcomes] == [errors.LinkLost] * 4
    worker.fails_with = None
    assert await place.ask(worker) == whole(worker)
    assert worker.runs == 2


async def test_an_answer_canceled_on_the_worker_is_not_cached(place: Place, client: Any) -> None:
    worker = Worker()
    worker.end = GenerationEnd(FinishReason.CANCELLED, Usage(7, 3))
    await place.ask(worker)
    assert answers_in(client) == []


async def test_cached_answers_cannot_be_read_in_valkey(place: Place, client: Any) -> None:
    await place.ask(Worker(), "a CANARY prompt")
    (key,) = answers_in(client)
    assert b"CANARY" not in key + client.get(key)
    assert client.pttl(key) <= 60_000


async def test_a_request_may_set_the_lifetime_of_its_answer(place: Place, client: Any) -> None:
    worker = Worker()
    assert await place.ask(worker, keep_seconds=7) == await place.ask(worker, keep_seconds=7) == whole(worker)
    (key,) = answers_in(client)
    assert client.pttl(key) <= 7_000
    await place.ask(worker, keep_seconds=600)
    await place.ask(worker)
    assert worker.runs == 3, "an answer that is kept longer is not for a request that wants a newer one"
    assert sorted(client.pttl(key) > 60_000 for key in answers_in(client)) == [False, False, True]


async def test_a_damaged_value_is_a_miss(place: Place, client: Any) -> None:
    worker = Worker()
    await place.ask(worker)
    (key,) = answers_in(client)
    good = client.get(key)
    for runs, bad in enumerate([b"", b"x", good[:-1], good[:20] + bytes([good[20] ^ 1]) + good[21:]], start=2):
        client.set(key, bad)
        assert await place.ask(worker) == whole(worker)
        assert worker.runs == runs
    assert place.origins == [AnswerOrigin.MISS] * 5


async def test_a_value_of_another_key_or_tenant_is_a_miss(place: Place, client: Any) -> None:
    worker, other = Worker(), Worker("theirs", "!")
    await place.ask(other, who=BOB)
    (other_entry,) = answers_in(client)
    await place.ask(worker)
    (own_entry,) = set(answers_in(client)) - {other_entry}
    client.set(own_entry, client.get(other_entry))
    assert await place.ask(worker) == whole(worker)


async def test_a_fresh_request_runs_again_and_replaces_the_answer(place: Place) -> None:
    await place.ask(Worker("old", "!"))
    new = Worker("new", "!")
    assert await place.ask(new, use=CacheUse(read=False, write=True)) == whole(new)
    assert await place.ask(Worker()) == whole(new)


async def test_an_answer_that_is_too_long_is_not_cached(place: Place, client: Any) -> None:
    worker = Worker(secrets.token_hex(sealed_values.MAX_BYTES))
    await place.ask(worker)
    assert answers_in(client) == []


async def test_the_cache_is_bounded_and_drops_the_oldest(valkey_url: str, client: Any) -> None:
    async with opened(valkey_url, most_bytes=20_000) as place:
        for number in range(30):
            await place.ask(Worker(secrets.token_hex(800), "!"), str(number))
        keys = answers_in(client)
        assert int(client.get(PREFIX + "bytes")) <= 20_000
        assert 10 <= len(keys) <= 20
        assert client.zcard(PREFIX + "order") == client.hlen(PREFIX + "sizes") == len(keys)
        worker = Worker()
        await place.ask(worker, "29")
        await place.ask(worker, "0")
    assert worker.runs == 1


async def test_expired_answers_stop_counting_against_the_bound(valkey_url: str, client: Any) -> None:
    async with opened(valkey_url, keep_seconds=0.02) as place:
        for number in range(5):
            await place.ask(Worker(), str(number))
        await asyncio.sleep(0.04)
    # This one must not expire before we look, however busy the machine is.
    async with opened(valkey_url, keep_seconds=60) as place:
        await place.ask(Worker(), "last")
    assert client.zcard(PREFIX + "order") == client.hlen(PREFIX + "sizes") == 1
    assert 400 < int(client.get(PREFIX + "bytes")) < 1000


async def test_storing_the_same_answer_again_counts_once(place: Place, client: Any) -> None:
    for _ in range(3):
        await place.ask(Worker(), use=CacheUse(read=False, write=True))
    assert client.zcard(PREFIX + "order") == 1
    assert 400 < int(client.get(PREFIX + "bytes")) < 1000


async def test_without_valkey_requests_run_uncached() -> None:
    async with opened("unix:///nowhere/valkey.sock") as place:
        worker = Worker()
        for _ in range(8):
            assert await place.ask(worker) == whole(worker)
    assert worker.runs == 8


async def test_a_stalled_valkey_costs_little_and_is_soon_skipped(
    valkey: ValkeyServer, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    waits: list[float | None] = []
    monkeypatch.setattr(sealed_values, "VALKEY_SECONDS", VALKEY_SECONDS)
    async with opened(valkey_url) as place:
        await place.ask(Worker())
        values = place.cache._values._cache
        run = values.run

        async def counted(*args: Any, seconds: float | None = None) -> object:
            waits.append(seconds)
            return await run(*args, seconds=seconds)

        monkeypatch.setattr(values, "run", counted)
        # The cache checks again only after a second, which doesn't pass here.
        monkeypatch.setattr(place.cache._values, "_clock", lambda: 0.0)
        os.kill(valkey.pid, signal.SIGSTOP)
        try:
            for _ in range(8):
                await place.ask(worker := Worker())
                assert worker.runs == 1
        finally:
            os.kill(valkey.pid, signal.SIGCONT)
    assert waits == [VALKEY_SECONDS] * circuit_breaker.FAILURES


@pytest.mark.parametrize("reason", ["MISCONF", "NOREPLICAS", "READONLY", "BUSY"])
async def test_a_read_only_valkey_disables_the_cache_without_errors(
    place: Place, valkey_url: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, lines = Worker(), Lines(monkeypatch)
    async with refusing(valkey_url, reason):
        for number in range(8):
            assert await place.ask(worker, f"{number % 2}") == whole(worker)
    assert worker.runs == 8
    (line,) = lines.of("response cache disabled")
    assert reason in line
    async with asyncio.timeout(HANG_SECONDS):
        while place.origins[-1] is not AnswerOrigin.HIT:  # the breaker closes with a probe
            await place.ask(worker, "again")
            await asyncio.sleep(0.01)
    assert lines.of("response cache enabled again")


async def test_a_request_does_not_join_an_answer_near_its_deadline(valkey_url: str) -> None:
    async with opened(valkey_url, most_seconds=2.0) as place:
        worker = Worker()
        worker.gate.clear()
        first = asyncio.create_task(place.ask(worker, seconds=2))
        second = asyncio.create_task(place.ask(worker, seconds=3))
        patient = asyncio.create_task(place.ask(worker, seconds=100))
        while len(place.origins) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        worker.gate.set()
        await asyncio.gather(first, second, patient)
    assert worker.runs == 2
