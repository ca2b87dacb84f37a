"""The contenders of the engine's bench: our engine in each of its modes, and the servers it is compared with.

Each is started for one measurement and ended after it: an idle engine keeps threads spinning for a while, on a core that the next one
needs.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import NamedTuple, Protocol

from bench import http_load, rivals
from bench.http_load import Client
from services.inference import jobs
from services.inference.backends import llama
from services.inference.engine import engine_messages
from services.inference.engine.kv_slots import KvMode
from services.inference.models import catalog, memory, model_discovery
from shared.api.generation import Sampling
from shared.api.inference import Chunk
from shared.types import ModelName
from tests.testnet import free_port

#: The same sampling for all: our defaults, given explicitly to the others.
TEMPERATURE, TOP_K, TOP_P = 0.7, 40, 0.95
#: The engine's modes; the first is its default.
MODES = (KvMode.EXACT, KvMode.FAST)
#: A load takes about a second, including Python's start.
START_SECONDS = 60.0
#: A prompt of 4,000 tokens beside four streams takes 20 s, and up to twenty times that on a shared machine.
ANSWER_SECONDS = 400.0

_COUNTS = re.compile(rb'"(prompt|completion)_tokens": ?(\d+)')

#: Called for each piece of an answer: a token, or a few that arrived together.
OnToken = Callable[[], None]


class Shape(NamedTuple):
    """The size of a contender."""

    slots: int
    #: For each slot.
    context_tokens: int
    threads: int


class Counts(NamedTuple):
    prompt_tokens: int
    completion_tokens: int


class Running(Protocol):
    async def generate(self, prompt: str, max_tokens: int, on_token: OnToken) -> Counts:
        """Answer one user message with ``max_tokens`` tokens, ignoring the model's own end. Cancelling ends the generation."""
        ...


class Contender(Protocol):
    name: str

    def started(self, shape: Shape) -> AbstractAsyncContextManager[Running]:
        """Start it alone and load the model; end its processes on leaving."""
        ...


def everyone() -> list[Contender]:
    """Return the contenders of every round."""
    return [*(Ours(mode) for mode in MODES), LlamaServer()]


@asynccontextmanager
async def opened(contender: Contender, shape: Shape) -> AsyncIterator[Running]:
    """Start it and warm up."""
    async with contender.started(shape) as running:
        await running.generate("Say hello.", 8, lambda: None)
        yield running


class Ours:
    """Our engine in its process, called as a worker does: through its backend and the socketpair."""

    def __init__(self, mode: KvMode) -> None:
        self.name = f"ours, {mode}"
        self._mode = mode

    @asynccontextmanager
    async def started(self, shape: Shape) -> AsyncIterator[Running]:
        engine = _Engine()
        found = model_discovery.find({}, defaults=catalog.Defaults(slots=shape.slots, context_tokens=shape.context_tokens))
        load = engine_messages.LoadCommand("", shape.slots, shape.context_tokens, shape.threads, gpu_layers=-1, kv_mode=self._mode)
        async with llama.opened(found, load, shape.slots, memory.measure(None), engine) as engine.backend:
            async with asyncio.timeout(START_SECONDS):
                await engine.backend.load(model_discovery.DEFAULT_MODEL)
                # Without a digest, a thread of this process is still reading the file.
                while not all(status.digest for status in engine.backend.models()):
                    engine.news.clear()
                    await engine.news.wait()
            yield engine


class _Engine:
    """Watches its backend, and generates with it."""

    backend: llama.LlamaBackend

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self._seed = 0

    def changed(self) -> None:
        self.news.set()

    def restarting(self, model: ModelName) -> None:
        raise AssertionError(f"the engine of {model} died; the log above says why")

    async def generate(self, prompt: str, max_tokens: int, on_token: OnToken) -> Counts:
        self._seed += 1
        asked = Sampling(
            max_tokens=max_tokens,
            temperature=TEMPERATURE,
            top_k=TOP_K,
            top_p=TOP_P,
            min_p=0.0,
            repeat_penalty=1.0,
            seed=self._seed,
            ignore_eos=True,
        )
        job = jobs.check_prompt(model_discovery.DEFAULT_MODEL, prompt, asked, context_tokens=None, draw_seed=lambda: 0)
        # One tenant, as in llama-server, so that both may reuse prefixes of earlier prompts.
        job = replace(job, salt="bench")
        async with asyncio.timeout(ANSWER_SECONDS):
            usage = (await self.backend.generate(job, _Arrivals(on_token))).usage
        return Counts(usage.prompt_tokens, usage.completion_tokens)


class _Arrivals:
    """Only reports that something arrived."""

    def __init__(self, on_token: OnToken) -> None:
        self._on_token = on_token

    def accept(self, prompt_tokens: int | None) -> None:
        pass

    async def send(self, item: Chunk) -> None:
        if item.token_ids:
            self._on_token()


class LlamaServer:
    """llama.cpp's own server, with our context, slots and threads, and its own defaults for the rest.

    Its default batch sizes are larger than ours and better for it. It keeps no copies of idle prompts in memory (--cache-ram): nothing here
    uses them, and copying takes time.
    """

    name = "llama-server"

    @asynccontextmanager
    async def started(self, shape: Shape) -> AsyncIterator[Running]:
        port = free_port()
        words = (
            rivals.ensure().server, "--model", model_discovery.packaged(), "--host", "127.0.0.1", "--port", port,
            "--threads", shape.threads, "--threads-batch", shape.threads, "--parallel", shape.slots,
            "--ctx-size", shape.slots * shape.context_tokens, "--cache-ram", 0, "--no-webui", "--offline",
        )  # fmt: skip
        fields = {"ignore_eos": True, "samplers": ("top_k", "top_p", "temperature"), "top_k": TOP_K, "min_p": 0.0}
        async with rivals.program(words, port, "/health", START_SECONDS):
            yield HttpChat(port, fields)


class PythonServer:
    """llama-cpp-python's own server, which answers one request at a time. It does not know ignore_eos, so its tokens are counted."""

    name = "llama_cpp.server"

    @asynccontextmanager
    async def started(self, shape: Shape) -> AsyncIterator[Running]:
        port = free_port()
        words = (
            rivals.ensure_python_server(), "-m", "llama_cpp.server", "--model", model_discovery.packaged(), "--host", "127.0.0.1",
            "--port", port, "--n_threads", shape.threads, "--n_threads_batch", shape.threads, "--n_ctx", shape.context_tokens,
            # Otherwise each new request ends the stream of the previous one.
            "--interrupt_requests", "false",
        )  # fmt: skip
        async with rivals.program(words, port, "/v1/models", START_SECONDS):
            yield HttpChat(port, {"top_k": TOP_K, "min_p": 0.0})


class HttpChat:
    """POST /v1/chat/completions as a stream. It must be cheap, because it shares the cores with the server."""

    def __init__(self, port: int, fields: Mapping[str, object], *headers: str) -> None:
        self._port = port
        self._fields = {"model": "default", "temperature": TEMPERATURE, "top_p": TOP_P, "stream": True, **fields}
        self._headers = ("connection: close", *headers)

    async def generate(self, prompt: str, max_tokens: int, on_token: OnToken) -> Counts:
        asked = {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "stream_options": {"include_usage": True}}
        request = http_load.post("/v1/chat/completions", json.dumps(asked | self._fields), *self._headers)
        async with asyncio.timeout(ANSWER_SECONDS):
            answer, body = await Client(self._port).ask(request.encode(), on_token)
        assert answer.is_good, body[:2000]
        return counts_of(body, answer.pieces)


def counts_of(body: bytes | bytearray, pieces: int) -> Counts:
    """Return the server's counts; without them, each piece of text counts as a token."""
    counts = {name: int(count) for name, count in _COUNTS.findall(body)}
    return Counts(counts.get(b"prompt", 0), counts.get(b"completion", pieces))
