"""Two upstreams with the same model: requests are spread, and fail over until their first token."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any, TypeVar

import pytest

from features.remote_servers.worker import openai, remote_backend, remote_models
from features.remote_servers.worker.remote_backend import RemoteBackend
from features.remote_servers.worker.remote_models import UpstreamLoad
from features.remote_servers.worker.upstreams import Dialect, Upstream
from shared import errors
from shared.api.embedding import Embedded
from shared.api.generation import GenerationEnd, Usage
from shared.api.inference import ModelState
from shared.types import FinishReason, ModelName
from tests.services.inference.fake_http import Answer, FakeServer, serving
from tests.services.inference.standins import Reader, Watch, job, until
from tests.services.inference.vector_reader import VectorReader, texts_for

T = TypeVar("T")

MODELS = Answer(['{"data": [{"id": "m", "max_model_len": 4096}]}'])
HELLO = Answer(
    [
        'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n',
        'data: {"choices": [{"delta": {"content": "Hello"}}]}\n\n',
        'data: {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}\n\n',
        "data: [DONE]\n\n",
    ]
)
GOOD = GenerationEnd(FinishReason.STOP, Usage(1, 1))
HANGS = Answer([], silent=True, hang=True)


class FirstOfTie(random.Random):
    """Chooses the first upstream in the file among equally good ones."""

    def choice(self, seq: Sequence[T]) -> T:  # type: ignore[override]
        return seq[0]


def upstream(server: FakeServer, name: str, **more: Any) -> Upstream:
    return Upstream(**{"name": name, "url": server.url, "dialect": Dialect.COMPATIBLE, **more})


@asynccontextmanager
async def two(
    first: Answer | list[Answer], second: Answer | list[Answer], *, path: str = "/chat/completions", **more: Any
) -> AsyncIterator[tuple[FakeServer, FakeServer, RemoteBackend]]:
    """Yield two servers and their backend; ``more`` are settings of the second upstream."""
    async with (
        serving({"/models": MODELS, path: first}) as one,
        serving({"/models": MODELS, path: second}) as other,
        openai.opened_all((upstream(one, "first"), upstream(other, "second", **more)), 4, 32, Watch(), rng=FirstOfTie()) as backend,
    ):
        await until(lambda: all(server.models.listing(ModelName("m")) for server in backend.servers))
        yield one, other, backend


async def test_a_server_that_declares_more_still_replaces_the_other() -> None:
    async with two(HANGS, HELLO, tools=True, context=100) as (_, _, backend):
        assert [(one.context_tokens, one.abilities) for one in backend.models()] == [(100, ())], "what both can"
    async with two(Answer([], status=500), HELLO, tools=True) as (_, _, backend):
        assert await backend.generate(job("hi", model="m"), Reader()) == GOOD


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(Answer([], silent=True), id="a connection that is closed"),
        pytest.param(Answer(HELLO.parts[:1]), id="cut off behind the head"),
        pytest.param(Answer(["oops"], status=500), id="a failure"),
        pytest.param(Answer(["busy"], status=503, headers={"retry-after": "30"}), id="a pause"),
        pytest.param(Answer(['{"error": "no model m"}'], status=404), id="a model that is gone"),
        pytest.param(Answer(["data: garbage\n\n"]), id="garbage"),
    ],
)
async def test_a_failure_before_the_first_token_is_invisible(broken: Answer) -> None:
    reader = Reader()
    async with two(broken, HELLO) as (first, second, backend):
        assert await backend.generate(job("hi", model="m"), reader) == GOOD
        assert [status.running for status in backend.models()] == [0]
    assert (reader.text, reader.accepted) == ("Hello", True)
    assert [server.times_asked("/chat/completions") for server in (first, second)] == [1, 1], "it isn't retried where it failed"


async def test_a_prompt_is_accepted_once() -> None:
    class Counting(Reader):
        times = 0

        def accept(self, prompt_tokens: Any = None) -> None:
            self.times += 1

    reader = Counting()
    async with two(Answer(HELLO.parts[:1]), HELLO) as (_, _, backend):
        await backend.generate(job("hi", model="m"), reader)
    assert reader.times == 1


async def test_a_failure_after_the_first_token_is_one_retryable_error() -> None:
    reader = Reader()
    async with two(Answer(HELLO.parts[:2]), HELLO) as (_, second, backend):
        with pytest.raises(errors.Unavailable, match=r"upstream first .* before its end"):
            await backend.generate(job("hi", model="m"), reader)
    assert (reader.text, second.asked) == ("Hello", [])


async def test_a_refusal_of_the_request_is_final() -> None:
    async with two(Answer(['{"error": "temperature"}'], status=400), HELLO) as (_, second, backend):
        with pytest.raises(errors.BadRequest, match="temperature"):
            await backend.generate(job("hi", model="m"), Reader())
    assert not second.asked


async def test_when_all_fail_there_is_one_error_and_only_the_last_is_retried() -> None:
    async with two(Answer(["{}"], status=503), Answer(["{}"], status=503)) as (first, second, backend):
        with pytest.raises(errors.Unavailable, match="second is not ready"):
            await backend.generate(job("hi", model="m"), Reader())
    assert [server.times_asked("/chat/completions") for server in (first, second)] == [1, 3]


async def test_vectors_move_too() -> None:
    vectors = Answer([json.dumps({"data": [{"index": 0, "embedding": [3, 4]}], "usage": {"prompt_tokens": 1}})])
    reader = VectorReader()
    async with two(Answer([], silent=True), vectors, path="/embeddings") as (_, _, backend):
        assert await backend.embed(texts_for(ModelName("m"), ("one",)), reader) == Embedded(2, 1)
    assert reader.vectors == [pytest.approx((0.6, 0.8))]


@pytest.mark.parametrize("elsewhere", [{"external": True}, {"region": "us"}])
async def test_a_provider_or_another_region_never_stands_in(elsewhere: dict[str, Any]) -> None:
    async with two(Answer([], silent=True), HELLO, **elsewhere) as (_, second, backend):
        assert [(status.slots, status.provider, status.region) for status in backend.models()] == [(4, "", "")]
        with pytest.raises(errors.Unavailable, match="upstream first"):
            await backend.generate(job("hi", model="m"), Reader())
    assert not second.asked


@contextmanager
def running(backend: RemoteBackend, count: int) -> Any:
    tasks = [asyncio.create_task(backend.generate(job("hi", model="m"), Reader())) for _ in range(count)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


@pytest.mark.parametrize(("slots", "shares"), [(4, [5, 5]), (16, [2, 8])])
async def test_requests_are_spread_by_the_slots_that_are_taken(slots: int, shares: list[int]) -> None:
    async with two(HANGS, HANGS, slots=slots) as (first, second, backend):
        with running(backend, 10):
            await until(lambda: len(first.asked) + len(second.asked) == 10)
            (status,) = backend.models()
            assert (status.state, status.slots, status.running + status.queued) == (ModelState.READY, 4 + slots, 10)
        assert [len(server.asked) for server in (first, second)] == shares


@pytest.mark.parametrize(
    ("loads", "chosen"),
    [
        pytest.param([UpstreamLoad(0, 4), UpstreamLoad(0, 4)], "ab", id="a tie"),
        pytest.param([UpstreamLoad(1, 4), UpstreamLoad(0, 4)], "b", id="one is idle"),
        pytest.param([UpstreamLoad(3, 4), UpstreamLoad(5, 16)], "b", id="one has more slots"),
        pytest.param([UpstreamLoad(2, 4, 1.0), UpstreamLoad(0, 4, 4.0)], "a", id="one is faster"),
        pytest.param([UpstreamLoad(0, 4, 1.0), UpstreamLoad(0, 4, 1.2)], "ab", id="times vary"),
        pytest.param([UpstreamLoad(4, 4, 1.0), UpstreamLoad(0, 4, 99.0)], "b", id="one is slow but idle"),
        pytest.param([UpstreamLoad(0, 4, 0.2), UpstreamLoad(0, 4)], "ab", id="one is not measured"),
        pytest.param([UpstreamLoad(0, 4, is_last_resort=True), UpstreamLoad(9, 4)], "b", id="one failed"),
        pytest.param([UpstreamLoad(0, 4, is_last_resort=True), UpstreamLoad(9, 4, is_last_resort=True)], "a", id="both failed"),
    ],
)
def test_the_shortest_expected_wait(loads: list[UpstreamLoad], chosen: str) -> None:
    assert "".join(remote_backend.best("ab", loads)) == chosen


async def test_a_failing_upstream_is_the_last_choice_after_three_strikes() -> None:
    async with two(Answer(["oops"], status=500), HELLO) as (first, second, backend):
        for _ in range(6):
            assert await backend.generate(job("hi", model="m"), Reader()) == GOOD
    assert [server.times_asked("/chat/completions") for server in (first, second)] == [3, 6]


async def test_a_server_that_shared_its_time_is_not_slow() -> None:
    """Its answers took longer only because more of them ran at once."""
    now = 0.0
    async with two(HELLO, HELLO) as (_, _, backend):
        first, second = (server.models for server in backend.servers)
        # Nothing may wait in this block: the event loop reads the same clock.
        with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
            patch.setattr(remote_models.time, "monotonic", lambda: now)
            with first.counted(job("hi", model="m")) as alone:
                now += 1
            first.measure(alone, 10)
            jobs = [stack.enter_context(second.counted(job("hi", model="m"))) for _ in range(4)]
            now += 4
            stack.close()
            second.measure(jobs[-1], 10)
            speeds = [models.load(ModelName("m")).token_seconds for models in (first, second)]
            now += remote_models.SPEED_SECONDS
            assert first.load(ModelName("m")).token_seconds == 0, "it is forgotten"
    assert speeds == pytest.approx([0.1, 0.16])
