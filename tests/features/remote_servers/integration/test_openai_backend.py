"""The `openai` backend with another mesh as its upstream: a real gateway and a real worker behind it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest

from features.remote_servers.worker import openai
from features.remote_servers.worker.remote_backend import RemoteBackend
from features.remote_servers.worker.upstreams import Dialect, Key, Upstream
from services.inference.backends import echo
from shared import errors
from shared.api.embedding import Embed, Embedded
from shared.api.generation import MAX_PROMPT_BYTES, ChatMessage, GenerationEnd, ToolCall, Usage
from shared.api.inference import ModelState
from shared.types import FinishReason, ModelName
from tests import stacks
from tests.people import Person
from tests.services.inference import asked, standins
from tests.services.inference.standins import Reader, Watch
from tests.services.inference.vector_reader import VectorReader, texts_for
from tests.stacks import RunningStack


def upstream(stack: RunningStack, key: str) -> Upstream:
    url = stack.url("gateway") + "/v1"
    return Upstream(name="house", url=url, dialect=Dialect.AIMESH, key=Key(key), key_setting="key_file of house", prefix="house/")


@pytest.fixture
async def backend(stack: RunningStack, ann: Person) -> AsyncIterator[RemoteBackend]:
    async with openai.opened_all((upstream(stack, ann.key.secret),), 4, 32, Watch()) as opened:
        await standins.until(lambda: opened.models()[0].state is ModelState.READY)
        yield opened


async def test_it_offers_what_the_mesh_serves(backend: RemoteBackend) -> None:
    assert {"house/smollm2", "house/echo"} <= {status.model_id for status in backend.models()}


@pytest.mark.parametrize(
    ("sampling", "text", "reason"),
    [
        pytest.param({}, "three small words", FinishReason.STOP, id="to its end"),
        pytest.param({"max_tokens": 2}, "three small", FinishReason.LENGTH, id="cut off"),
        pytest.param({"stop": (" words",), "temperature": 0.5, "top_k": 3, "seed": 1}, "three small", FinishReason.STOP, id="stopped"),
    ],
)
async def test_an_answer_comes_in_pieces_with_exact_counts(
    backend: RemoteBackend, sampling: dict[str, object], text: str, reason: FinishReason
) -> None:
    reader = Reader()
    end = await backend.generate(asked.job("three small words", model="house/echo", **sampling), reader)  # type: ignore[arg-type]
    assert reader.text == text
    assert len(reader.chunks) > 1
    assert end == GenerationEnd(reason, Usage(3, 3 if "words" in text or "stop" in sampling else 2))


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param((ChatMessage("user", "word " * (MAX_PROMPT_BYTES // 5 - 4) + "the end"),), id="4 MiB of text"),
        pytest.param(
            (
                *(
                    ChatMessage("user", "go on"),
                    ChatMessage("assistant", "", (ToolCall("c", "read", '{"path": "/a"}'),)),
                    ChatMessage("tool", "word " * 200, tool_call_id="c"),
                )
                * 3333,
                ChatMessage("user", "the end"),
            ),
            id="10,000 messages of an agent",
        ),
    ],
)
async def test_a_long_prompt_reaches_the_other_mesh(backend: RemoteBackend, messages: tuple[ChatMessage, ...]) -> None:
    """Through this backend and HTTP to a gateway, and over a mesh to a worker."""
    reader = Reader()
    job = replace(asked.job("x", model="house/echo", max_tokens=1), messages=messages)
    end = await backend.generate(job, reader)
    words = sum(len(message.content.split()) for message in messages)
    assert (reader.text, end.usage) == (messages[-1].content.split()[0], Usage(words, 1))


async def test_vectors_of_the_other_mesh_are_those_of_its_model(backend: RemoteBackend) -> None:
    texts = tuple(f"text number {number}" for number in range(70))
    asked_for = texts_for(ModelName("house/echo"), texts, 8)
    here, there = VectorReader(), VectorReader()
    assert await backend.embed(asked_for, here) == Embedded(8, 3 * 70)
    async with echo.opened(0, 4, Watch()) as model:
        await model.embed(asked_for, there)
    assert here.vectors == [pytest.approx(vector, abs=1e-6) for vector in there.vectors]


@pytest.mark.parametrize(
    ("job", "said"),
    [
        pytest.param(texts_for(ModelName("house/echo"), ("a", " ")), r"input\[1\] has 0 tokens", id="the other worker's words"),
        pytest.param(texts_for(ModelName("house/echo"), ("a",), 17), "dimensions is 17; this model's vectors have 16", id="our own"),
    ],
)
async def test_texts_that_are_refused_there_are_refused_here(backend: RemoteBackend, job: Embed, said: str) -> None:
    with pytest.raises(errors.BadRequest, match=said):
        await backend.embed(job, VectorReader())


async def test_a_cancelled_answer_ends_at_the_other_mesh_too(backend: RemoteBackend, stack: RunningStack, ann: Person) -> None:
    reader = Reader()
    task = asyncio.create_task(backend.generate(asked.job("word " * 400, model="house/echo", max_tokens=400), reader))
    await standins.until(lambda: reader.chunks)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async def logged() -> list[asyncpg.Record]:
        async with stack.database("gateway") as database:
            found: list[asyncpg.Record] = await database.fetch(
                "SELECT status, completion_tokens FROM request_logs WHERE user_id = $1", ann.id
            )
            return found

    (row,) = await stacks.until(logged, what="the row is written")
    assert row["status"] == "cancelled"
    assert row["completion_tokens"] < 400


async def test_the_other_meshs_refusal_is_told_in_its_words(backend: RemoteBackend) -> None:
    with pytest.raises(errors.BadRequest, match="upstream house refuses the request"):
        await backend.generate(asked.job("hi", model="house/echo", temperature=99.0), Reader())


async def test_a_wrong_key_names_the_setting(stack: RunningStack) -> None:
    async with openai.opened_all((upstream(stack, "aip_live_" + "x" * 49),), 4, 32, Watch()) as opened:
        await standins.until(lambda: "refuses this worker's key" in opened.models()[0].detail)
