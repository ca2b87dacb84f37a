"""Two real llama-servers behind one worker: an answer survives the death of one of them."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import msgspec
import pytest

from bench import rivals
from features.remote_servers.worker import openai
from features.remote_servers.worker.remote_backend import RemoteBackend
from features.remote_servers.worker.remote_server import RemoteServer
from features.remote_servers.worker.upstreams import Upstream
from services.inference.backends import llama
from services.inference.engine import engine_messages
from services.inference.engine.sampling import Parameters
from services.inference.jobs import GenerationJob
from services.inference.models import catalog, memory, model_discovery
from shared import model_folder
from shared.api.generation import GenerationEnd
from shared.api.inference import Chunk
from shared.types import FinishReason, ModelName
from tests.services.inference.standins import Reader, Watch, job, until
from tests.testnet import free_port

SERVER = rivals.programs_folder() / rivals.PROGRAMS[0]
pytestmark = pytest.mark.skipif(not SERVER.exists(), reason="needs llama-server, which `python -m bench.rivals` builds in 10 minutes")

START_SECONDS = 60.0
DIGEST = "ab" * 32
MODEL = ModelName("m")


@asynccontextmanager
async def llama_servers(count: int) -> AsyncIterator[tuple[RemoteBackend, list[int]]]:
    """Run servers of the packaged model. Yield a backend that knows their abilities, and their process ids."""
    async with AsyncExitStack() as stack:
        ports, pids = [free_port() for _ in range(count)], []
        for port in ports:
            words = (
                SERVER, "--model", model_discovery.packaged(), "--alias", MODEL, "--host", "127.0.0.1", "--port", port,
                "-np", 2, "-c", 4096, "-t", 1, "--no-warmup",
            )  # fmt: skip
            pids.append(await stack.enter_async_context(rivals.program(words, port, "/health", START_SECONDS)))
        upstreams = (Upstream(name=f"u{port}", url=f"http://127.0.0.1:{port}/v1", digest=DIGEST, only_models=(MODEL,)) for port in ports)
        backend = await stack.enter_async_context(openai.opened_all(tuple(upstreams), 2, 8, Watch()))
        await until(lambda: all(isinstance(one, RemoteServer) and one.tokens.proved(MODEL) for one in backend.servers))
        yield backend, pids


class KillingReader(Reader):
    """Kills the server that is answering, after some tokens."""

    def __init__(self, backend: RemoteBackend, pids: list[int], after: int) -> None:
        super().__init__()
        self._backend = backend
        self._pids = pids
        self._after = after
        self.has_killed = False

    async def send(self, item: Chunk) -> None:
        await super().send(item)
        if not self.has_killed and len(self.token_ids) >= self._after:
            self.has_killed = True
            busy = [one.models.load(MODEL).busy for one in self._backend.servers]
            os.kill(self._pids[busy.index(max(busy))], signal.SIGKILL)


@pytest.mark.parametrize(
    ("prompt", "after"),
    [("Say hello with emoji 🙃 twice.", 5), pytest.param("Write a long story about a dog.", 20, marks=pytest.mark.nightly("long"))],
)
async def test_an_answer_survives_the_death_of_its_server(prompt: str, after: int) -> None:
    asked = job(prompt, model=MODEL, max_tokens=40, temperature=0.0, repeat_penalty=1.1)
    async with llama_servers(2) as (backend, pids):
        whole, reader = Reader(), KillingReader(backend, pids, after)
        expected = await backend.generate(asked, whole)
        assert (len(whole.token_ids), whole.prompt_tokens) == (expected.usage.completion_tokens, expected.usage.prompt_tokens)
        end = await backend.generate(asked, reader)
        assert reader.has_killed
        assert (reader.text, reader.token_ids) == (whole.text, whole.token_ids)
        assert replace_cached(end) == replace_cached(expected)


def replace_cached(end: GenerationEnd) -> GenerationEnd:
    return msgspec.structs.replace(end, usage=msgspec.structs.replace(end.usage, cached_tokens=0))


@pytest.mark.nightly("long")
async def test_an_answer_moves_between_the_engine_and_a_server() -> None:
    """Both have the same vocabulary, and count prompts alike."""
    found = model_discovery.find({}, defaults=catalog.Defaults(slots=1, context_tokens=1024))
    load = engine_messages.LoadCommand("", 1, 1024, 1, 0)
    asked = job("Write a long story about a dog.", max_tokens=24, temperature=0.0)
    async with llama_servers(1) as (server, _), llama.opened(found, load, 4, memory.measure(None), Watch()) as engine:
        ways = ((engine, model_folder.PACKAGED_MODEL), (server, MODEL))
        for (first, first_model), (second, second_model) in (ways, ways[::-1]):
            begun, rest = Reader(), Reader()
            start = await first.generate(replace(asked, model=first_model, parameters=shortened(asked, 10)), begun)
            end = await second.generate(replace(asked, model=second_model, delivered=tuple(begun.token_ids)), rest)
            assert (len(begun.token_ids), len(rest.token_ids), end.finish_reason) == (10, 14, FinishReason.LENGTH)
            assert start.usage.prompt_tokens == end.usage.prompt_tokens
            assert not rest.text.startswith(begun.text[:5])
            assert f"{begun.text}{rest.text}".startswith("Once upon a time, ")


def shortened(asked: GenerationJob, tokens: int) -> Parameters:
    return msgspec.structs.replace(asked.parameters, max_tokens=tokens)
