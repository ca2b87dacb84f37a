"""Embeddings through the backends: echo, and SmolLM2 in its process."""

import asyncio
import math
import os
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.inference.backend_interface import Backend
from services.inference.backends import echo, llama
from services.inference.backends.llama import LlamaBackend
from services.inference.engine import engine_messages
from services.inference.models import memory, model_discovery
from services.inference.models.catalog import Defaults
from shared import errors
from shared.api.embedding import Embed, Embedded
from shared.api.inference import ModelState
from shared.context import new_request_id
from shared.model_folder import PACKAGED_MODEL
from tests.services.inference.standins import Node, Reader, Watch, engine_pid, job, until, worker
from tests.services.inference.vector_reader import VectorReader, of_one_text, texts_for


async def embed(backend: LlamaBackend, *inputs: str, dimensions: int | None = None) -> tuple[VectorReader, Embedded]:
    reader = VectorReader()
    return reader, await backend.embed(texts_for(PACKAGED_MODEL, inputs, dimensions), reader)


# --- echo ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def echoing() -> AsyncIterator[echo.EchoBackend]:
    async with echo.opened(0, 4, Watch()) as backend:
        yield backend


#: One engine for the whole file, with one thread: several would spin at each other's barriers.
OPTIONS = engine_messages.LoadCommand(path="", slots=2, context_tokens=512, threads=1, gpu_layers=-1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[LlamaBackend]:
    found = model_discovery.find({}, defaults=Defaults(slots=2, context_tokens=512))
    async with llama.opened(found, OPTIONS, 8, memory.MemoryBudget(2**30, "a test"), Watch()) as backend:
        yield backend


@pytest_asyncio.fixture(loop_scope="module")
async def backend(running: LlamaBackend) -> LlamaBackend:
    await until(lambda: running.models()[0].state is ModelState.READY)
    return running


async def test_echo_vectors_depend_on_the_words(echoing: echo.EchoBackend) -> None:
    reader = VectorReader()
    texts = ("one two three", "three  one\ntwo", "four five six", "one")
    embedded = await echoing.embed(texts_for(echo.MODEL, texts), reader)
    assert (embedded.dimensions, embedded.prompt_tokens, reader.prompt_tokens) == (16, 10, 10)
    assert [math.hypot(*vector) for vector in reader.vectors] == pytest.approx([1] * 4, abs=1e-6)
    assert reader.vectors[0] == reader.vectors[1] != reader.vectors[2]
    ids = VectorReader()
    await echoing.embed(texts_for(echo.MODEL, (tuple(map(echo.token_id, ("one", "two", "three"))),)), ids)
    assert ids.vectors == reader.vectors[:1]


@pytest.mark.parametrize(
    ("job", "message"),
    [
        pytest.param(texts_for(echo.MODEL, ("a", " ")), r"input\[1\] has 0 tokens", id="a text without words"),
        pytest.param(
            texts_for(echo.MODEL, ("a " * (echo.CONTEXT_TOKENS + 1),)), f"{echo.CONTEXT_TOKENS + 1} tokens", id="a text over the context"
        ),
        pytest.param(texts_for(echo.MODEL, ("a",), 17), "dimensions is 17", id="more dimensions than there are"),
    ],
)
async def test_echo_refuses_like_a_model(echoing: echo.EchoBackend, job: Embed, message: str) -> None:
    with pytest.raises(errors.BadRequest, match=message):
        await echoing.embed(job, VectorReader())


# --- the service ----------------------------------------------------------------------------------------------------------


async def test_embedding_request_is_measured(echoing: echo.EchoBackend) -> None:
    node = Node()
    await worker(node, echoing).run_embedding(Embed(echo.MODEL, ("one two",), new_request_id()), VectorReader())
    text = node.metrics.render()
    assert 'ai_platform_tokens_total{model="echo",type="input"} 2.0' in text
    assert 'method="embed",model="echo"' in text


async def test_rankings_are_not_counted_as_embeddings(echoing: echo.EchoBackend) -> None:
    node = Node()
    await worker(node, echoing).run_embedding(Embed(echo.MODEL, ("one two",), new_request_id(), query="one"), VectorReader())
    text = node.metrics.render()
    assert 'gen_ai_operation_name="rerank"' in text
    assert 'method="rerank",model="echo"' in text
    assert '"embeddings"' not in text


async def test_backend_without_vectors_refuses() -> None:
    class Answers(echo.EchoBackend):
        name = "openai"
        embed = Backend.embed

    request = Embed(echo.MODEL, ("one",), new_request_id())
    with pytest.raises(errors.UnknownMethod, match="openai has no embeddings"):
        await worker(Node(), Answers(0, 1, Watch())).run_embedding(request, VectorReader())


# --- SmolLM2 in its process -----------------------------------------------------------------------------------------------

MANY = tuple(
    f"{kind} {where}"
    for kind in (
        "The cat sleeps",
        "Stock markets fell",
        "My sister cooks soup",
        "A rocket lands",
        "Rain falls",
        "The king spoke",
        "Two boats met",
        "I sing",
    )
    for where in ("in the garden.", "on Tuesday night!", "because of the war,", "near Paris?", "as 40 children laugh")
)


@pytest.mark.nightly("long")
@pytest.mark.asyncio(loop_scope="module")
async def test_engine_computes_vectors_while_it_answers(backend: LlamaBackend) -> None:
    text_reader = Reader()
    prompt_job = job("Tell a long story about the sea.", max_tokens=60, ignore_eos=True)
    generation, (reader, embedded), (other, _) = await asyncio.gather(
        backend.generate(prompt_job, text_reader), embed(backend, *MANY), embed(backend, MANY[7], MANY[3], dimensions=32)
    )
    assert generation.usage.completion_tokens == len(text_reader.token_ids) == 60
    assert (embedded.dimensions, len(reader.vectors)) == (576, len(MANY))
    assert embedded.prompt_tokens == reader.prompt_tokens
    assert len(set(reader.vectors)) == len(MANY)
    for vector, number in zip(other.vectors, (7, 3), strict=True):
        length = math.hypot(*reader.vectors[number][:32])
        assert of_one_text(vector, [value / length for value in reader.vectors[number][:32]])


@pytest.mark.nightly("long")
@pytest.mark.asyncio(loop_scope="module")
async def test_canceled_request_leaves_the_engine_to_others(backend: LlamaBackend) -> None:
    pid = engine_pid(backend, PACKAGED_MODEL)
    reader = VectorReader()
    task = asyncio.create_task(backend.embed(texts_for(PACKAGED_MODEL, MANY * 6), reader))
    await reader.first.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(reader.vectors) < len(MANY) * 6
    again, _ = await embed(backend, MANY[0])
    assert of_one_text(again.vectors[0], reader.vectors[0])
    assert engine_pid(backend, PACKAGED_MODEL) == pid
    assert backend.models()[0].running == 0


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("inputs", "dimensions", "message"),
    [
        pytest.param(("a", "word " * 600), None, r"input\[1\] has 601 tokens; this model allows 512", id="a text over the context"),
        pytest.param(("a",), 577, "dimensions is 577", id="more dimensions than there are"),
    ],
)
async def test_invalid_request_is_refused_and_the_engine_continues(
    backend: LlamaBackend, inputs: tuple[str, ...], dimensions: int | None, message: str
) -> None:
    pid = engine_pid(backend, PACKAGED_MODEL)
    with pytest.raises(errors.BadRequest, match=message):
        await embed(backend, *inputs, dimensions=dimensions)
    assert engine_pid(backend, PACKAGED_MODEL) == pid


@pytest.mark.asyncio(loop_scope="module")
async def test_engine_crash_ends_the_request_with_one_error(backend: LlamaBackend) -> None:
    pid = engine_pid(backend, PACKAGED_MODEL)
    assert pid is not None
    reader = VectorReader()
    task = asyncio.create_task(backend.embed(texts_for(PACKAGED_MODEL, MANY * 6), reader))
    await reader.first.wait()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(errors.ModelCrashed, match="the engine of smollm2 was killed by signal 9 during this request"):
        await task
    await until(lambda: backend.models()[0].state is ModelState.READY)
    assert len((await embed(backend, "again"))[0].vectors) == 1
