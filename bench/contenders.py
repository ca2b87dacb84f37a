"""Who takes part in the engine's bench: our engine in each of its modes, and the servers that it is measured against.

Each is opened for one measurement and ended after it: an engine that only idles keeps threads spinning for a while, and with
them a core that the next one needs.
"""

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec

from bench import rivals
from services.inference.backends import llama
from services.inference.engine import engine_messages
from services.inference.engine.kv_slots import KvMode
from services.inference.jobs import generation_job
from services.inference.jobs.backend_interface import Watcher
from services.inference.models import catalog, memory, model_discovery
from shared.api.generation import ChatMessage, Sampling
from shared.api.inference import Chunk
from shared.types import ModelName
from stack import processes
from tests.testnet import free_port

#: How tokens are drawn, by all in the same way: our defaults, spelt out for those who have others.
TEMPERATURE, TOP_K, TOP_P = 0.7, 40, 0.95
#: The engine's modes; the first is its default.
MODES = (KvMode.EXACT, KvMode.FAST)
#: A load takes about a second, with Python's own start; longer than this is a machine that cannot run the bench.
START_SECONDS = 60.0
#: A prompt of 4,000 tokens beside four streams takes 20 s, and twenty times that where others use the machine too.
ANSWER_SECONDS = 400.0
STOP_SECONDS = 5.0
LOOK_AGAIN_SECONDS = 0.02
_RECEIVE_BYTES = 64 * 1024

#: Called each time that something of an answer arrives, which is a token or the few that came together.
OnToken = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a contender is started with."""

    slots: int
    #: Of each slot.
    context_tokens: int
    threads: int


@dataclass(frozen=True, slots=True)
class Answer:
    prompt_tokens: int
    completion_tokens: int


class Running(Protocol):
    async def generate(self, prompt: str, max_tokens: int, on_token: OnToken) -> Answer:
        """One user message, answered with ``max_tokens`` whatever the model says. Cancelling ends the generation."""
        ...


class Contender(Protocol):
    name: str

    def opened(self, shape: Shape) -> AbstractAsyncContextManager[Running]:
        """Loaded, warm, and the only one that runs; its processes are gone on leaving."""
        ...


def nothing() -> None:
    """For whoever does not care when a token comes."""


async def _warm(running: Running) -> None:
    await running.generate("Say hello.", 8, nothing)


def everyone() -> list[Contender]:
    """Who takes part in every round."""
    return [*(Ours(mode) for mode in MODES), LlamaServer()]


# --- ours ----------------------------------------------------------------------------------------------------------------


class Ours:
    """Our engine in its process, asked as a worker asks it: through its backend and the socketpair."""

    def __init__(self, mode: KvMode) -> None:
        self.name = f"ours, {mode}"
        self._mode = mode

    @asynccontextmanager
    async def opened(self, shape: Shape) -> AsyncIterator[Running]:
        watcher = _Watcher()
        async with _backend(self._mode, shape, watcher) as backend:
            async with asyncio.timeout(START_SECONDS):
                await backend.load(model_discovery.DEFAULT_MODEL)
                # Without a digest its file is still being read, by a thread of this process.
                while not all(status.digest for status in backend.models()):
                    watcher.news.clear()
                    await watcher.news.wait()
            running = _Engine(backend)
            await _warm(running)
            yield running


def _backend(mode: KvMode, shape: Shape, watcher: Watcher) -> AbstractAsyncContextManager[llama.LlamaBackend]:
    """The only place that knows how our engine is constructed."""
    found = model_discovery.find({}, defaults=catalog.Defaults(slots=shape.slots, context_tokens=shape.context_tokens))
    load = engine_messages.LoadCommand("", shape.slots, shape.context_tokens, shape.threads, gpu_layers=-1, kv_mode=mode)
    return llama.opened(found, load, shape.slots, memory.measure(None), watcher)


class _Watcher:
    def __init__(self) -> None:
        self.news = asyncio.Event()

    def changed(self) -> None:
        self.news.set()

    def restarting(self, model: ModelName) -> None:
        raise AssertionError(f"the engine of {model} died; the log above says why")


class _Engine:
    def __init__(self, backend: llama.LlamaBackend) -> None:
        self._backend = backend
        self._seed = 0

    async def generate(self, prompt: str, max_tokens: int, on_token: OnToken) -> Answer:
        self._seed += 1
        asked = Sampling(
            max_tokens=max_tokens, temperature=TEMPERATURE, top_k=TOP_K, top_p=TOP_P, min_p=0.0, seed=self._seed, ignore_eos=True
        )
        job = generation_job.check(model_discovery.DEFAULT_MODEL, prompt, asked, context_tokens=None, draw_seed=lambda: 0)
        # One tenant, as all callers are to llama-server: what a prompt has in common with an earlier one may be reused by both.
        job = replace(job, salt="bench")
        async with asyncio.timeout(ANSWER_SECONDS):
            usage = (await self._backend.generate(job, _Arrivals(on_token))).usage
        return Answer(usage.prompt_tokens, usage.completion_tokens)


class _Arrivals:
    """A sink that only tells that something came."""

    def __init__(self, on_token: OnToken) -> None:
        self._on_token = on_token

    def accept(self, prompt_tokens: int | None) -> None:
        pass

    async def send(self, item: Chunk) -> None:
        if item.token_ids:
            self._on_token()


# --- servers -------------------------------------------------------------------------------------------------------------


class LlamaServer:
    """llama.cpp's own server, with the context, slots and threads that we have, and what else it has by default.

    It keeps its own batch sizes, too, which are larger than ours and better for it. It gets no copy of idle prompts in memory
    (--cache-ram): nothing here asks for them, and copying takes time.
    """

    name = "llama-server"

    @asynccontextmanager
    async def opened(self, shape: Shape) -> AsyncIterator[Running]:
        port = free_port()
        words = [str(rivals.ensure().server), "--model", str(model_discovery.packaged()), "--host", "127.0.0.1", "--port", str(port)]
        words += ["--threads", str(shape.threads), "--threads-batch", str(shape.threads), "--parallel", str(shape.slots)]
        words += ["--ctx-size", str(shape.slots * shape.context_tokens), "--cache-ram", "0", "--no-webui", "--offline"]
        request = ChatRequest(ignore_eos=True, samplers=("top_k", "top_p", "temperature"), top_k=TOP_K, min_p=0.0)
        async with _program(words, port, "/health"):
            running = HttpChat(port, request)
            await _warm(running)
            yield running


class PythonServer:
    """llama-cpp-python's own server, which answers one request after the other. It knows no ignore_eos: what it gives is counted."""

    name = "llama_cpp.server"

    @asynccontextmanager
    async def opened(self, shape: Shape) -> AsyncIterator[Running]:
        port = free_port()
        words = [
            str(rivals.ensure_python_server()),
            "-m",
            "llama_cpp.server",
            "--model",
            str(model_discovery.packaged()),
            "--port",
            str(port),
        ]
        words += ["--n_threads", str(shape.threads), "--n_threads_batch", str(shape.threads), "--n_ctx", str(shape.context_tokens)]
        # Otherwise each new request ends the stream of the one before.
        words += ["--host", "127.0.0.1", "--interrupt_requests", "false"]
        async with _program(words, port, "/v1/models"):
            running = HttpChat(port, ChatRequest(top_k=TOP_K, min_p=0.0))
            await _warm(running)
            yield running


@asynccontextmanager
async def _program(words: list[str], port: int, ready_path: str) -> AsyncIterator[None]:
    """A server that answers at ``ready_path`` until the block ends."""
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=processes.dies_with_parent(signal.SIGKILL, os.getpid()),
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                while not await _answers(port, ready_path):
                    if process.returncode is not None:
                        log.seek(0)
                        raise AssertionError(f"{words[0]} ended: {log.read()[-2000:].decode(errors='replace')}")
                    await asyncio.sleep(LOOK_AGAIN_SECONDS)
            yield
        finally:
            await stop(process)


async def stop(process: asyncio.subprocess.Process) -> None:
    """End a program, by force if it does not hear. Safe when it has ended."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def _answers(port: int, path: str) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode())
        return b" 200 " in await reader.readline()
    except OSError:
        return False
    finally:
        writer.close()


# --- as a client of a server ---------------------------------------------------------------------------------------------


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An OpenAI request, with the fields of llama.cpp's servers besides."""

    model: str = "default"
    messages: tuple[ChatMessage, ...] = ()
    max_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 0.0
    stream: bool = False
    stream_options: dict[str, bool] = {}
    top_k: int | None = None
    min_p: float | None = None
    ignore_eos: bool = False
    samplers: tuple[str, ...] = ()


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int


class _Event(msgspec.Struct, frozen=True):
    usage: _Usage | None = None


class HttpChat:
    """POST /v1/chat/completions as a stream, over bare asyncio streams.

    As cheap as a client can be, for it shares the cores with the server: it looks for the content's field in the bytes and
    decodes the one event that has the counts. httpx takes several times as long for each event.
    """

    def __init__(self, port: int, request: ChatRequest, headers: tuple[str, ...] = ()) -> None:
        self._port = port
        self._request = request
        self._headers = headers

    async def generate(self, prompt: str, max_tokens: int, on_token: OnToken) -> Answer:
        async with asyncio.timeout(ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                writer.write(self._bytes(prompt, max_tokens))
                status = await reader.readline()
                assert b" 200 " in status, status + await reader.read(2000)
                events = EventCounter()
                while received := await reader.read(_RECEIVE_BYTES):
                    for _ in range(events.feed(received)):
                        on_token()
                return events.answer()
            finally:
                writer.close()

    def _bytes(self, prompt: str, max_tokens: int) -> bytes:
        request = msgspec.structs.replace(
            self._request,
            messages=(ChatMessage("user", prompt),),
            max_tokens=max_tokens,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            stream=True,
            stream_options={"include_usage": True},
        )
        body = msgspec.json.encode(request)
        lines = ["POST /v1/chat/completions HTTP/1.1", "host: 127.0.0.1", "connection: close", "content-type: application/json"]
        lines += [f"content-length: {len(body)}", *self._headers]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class EventCounter:
    """What arrives of a streamed answer: bytes in, arrivals and counts out."""

    def __init__(self) -> None:
        self._rest = b""
        self._arrived = 0
        self._usage: _Usage | None = None

    def feed(self, received: bytes) -> int:
        """How many events with content are complete now."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        arrived = 0
        for line in lines:
            # The first event of OpenAI's own form has a role and no content.
            arrived += (b'"content":"' in line and b'"content":""' not in line) or b'"content": "' in line
            if b'"usage":{' in line:
                self._usage = msgspec.json.decode(line[line.index(b"{") :], type=_Event).usage
        self._arrived += arrived
        return arrived

    def answer(self) -> Answer:
        """The server's counts; without them, each event with content is taken for a token."""
        if self._usage is None:
            return Answer(0, self._arrived)
        return Answer(self._usage.prompt_tokens, self._usage.completion_tokens)
