"""The contenders of the engine's bench: our engine in each of its modes, and the servers it is compared with.

Each is started for one measurement and ended after it: an idle engine keeps threads spinning for a while, on a core that the next one
needs.
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

#: The same sampling for all: our defaults, given explicitly to the others.
TEMPERATURE, TOP_K, TOP_P = 0.7, 40, 0.95
#: The engine's modes; the first is its default.
MODES = (KvMode.EXACT, KvMode.FAST)
#: A load takes about a second, including Python's start.
START_SECONDS = 60.0
#: A prompt of 4,000 tokens beside four streams takes 20 s, and up to twenty times that on a shared machine.
ANSWER_SECONDS = 400.0
STOP_SECONDS = 5.0
LOOK_AGAIN_SECONDS = 0.02
_RECEIVE_BYTES = 64 * 1024

#: Called for each piece of an answer: a token, or a few that arrived together.
OnToken = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a contender."""

    slots: int
    #: For each slot.
    context_tokens: int
    threads: int


@dataclass(frozen=True, slots=True)
class Answer:
    prompt_tokens: int
    completion_tokens: int


class Running(Protocol):
    async def generate(self, prompt: str, max_tokens: int, on_token: OnToken) -> Answer:
        """Answer one user message with ``max_tokens`` tokens, ignoring the model's own end. Cancelling ends the generation."""
        ...


class Contender(Protocol):
    name: str

    def opened(self, shape: Shape) -> AbstractAsyncContextManager[Running]:
        """Start it alone, load the model and warm up; end its processes on leaving."""
        ...


def nothing() -> None:
    """Ignore the token."""


async def _warm(running: Running) -> None:
    await running.generate("Say hello.", 8, nothing)


def everyone() -> list[Contender]:
    """Return the contenders of every round."""
    return [*(Ours(mode) for mode in MODES), LlamaServer()]


# --- ours ----------------------------------------------------------------------------------------------------------------


class Ours:
    """Our engine in its process, called as a worker does: through its backend and the socketpair."""

    def __init__(self, mode: KvMode) -> None:
        self.name = f"ours, {mode}"
        self._mode = mode

    @asynccontextmanager
    async def opened(self, shape: Shape) -> AsyncIterator[Running]:
        watcher = _Watcher()
        async with _backend(self._mode, shape, watcher) as backend:
            async with asyncio.timeout(START_SECONDS):
                await backend.load(model_discovery.DEFAULT_MODEL)
                # Without a digest, a thread of this process is still reading the file.
                while not all(status.digest for status in backend.models()):
                    watcher.news.clear()
                    await watcher.news.wait()
            running = _Engine(backend)
            await _warm(running)
            yield running


def _backend(mode: KvMode, shape: Shape, watcher: Watcher) -> AbstractAsyncContextManager[llama.LlamaBackend]:
    """Start our engine. Only this function knows how."""
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
        # One tenant, as in llama-server, so that both may reuse prefixes of earlier prompts.
        job = replace(job, salt="bench")
        async with asyncio.timeout(ANSWER_SECONDS):
            usage = (await self._backend.generate(job, _Arrivals(on_token))).usage
        return Answer(usage.prompt_tokens, usage.completion_tokens)


class _Arrivals:
    """Only reports that something arrived."""

    def __init__(self, on_token: OnToken) -> None:
        self._on_token = on_token

    def accept(self, prompt_tokens: int | None) -> None:
        pass

    async def send(self, item: Chunk) -> None:
        if item.token_ids:
            self._on_token()


# --- servers -------------------------------------------------------------------------------------------------------------


class LlamaServer:
    """llama.cpp's own server, with our context, slots and threads, and its own defaults for the rest.

    Its default batch sizes are larger than ours and better for it. It keeps no copies of idle prompts in memory (--cache-ram): nothing here
    uses them, and copying takes time.
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
    """llama-cpp-python's own server, which answers one request at a time. It does not know ignore_eos, so its tokens are counted."""

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
        # Otherwise each new request ends the stream of the previous one.
        words += ["--host", "127.0.0.1", "--interrupt_requests", "false"]
        async with _program(words, port, "/v1/models"):
            running = HttpChat(port, ChatRequest(top_k=TOP_K, min_p=0.0))
            await _warm(running)
            yield running


@asynccontextmanager
async def _program(words: list[str], port: int, ready_path: str) -> AsyncIterator[None]:
    """Run a server that answers at ``ready_path``."""
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
    """End a program, by force if it does not react. Safe if it has ended."""
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


# --- HTTP clients --------------------------------------------------------------------------------------------------------


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An OpenAI request, with additional fields of llama.cpp's servers."""

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
    """POST /v1/chat/completions as a stream, over plain asyncio streams.

    It must be cheap, because it shares the cores with the server: it searches the bytes for the content's field and decodes only the event
    with the counts. httpx takes several times as long for each event.
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
    """Count the events of a streamed answer."""

    def __init__(self) -> None:
        self._rest = b""
        self._arrived = 0
        self._usage: _Usage | None = None

    def feed(self, received: bytes) -> int:
        """Return how many events with content are complete now."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        arrived = 0
        for line in lines:
            # The first event in OpenAI's format has a role and no content.
            arrived += (b'"content":"' in line and b'"content":""' not in line) or b'"content": "' in line
            if b'"usage":{' in line:
                self._usage = msgspec.json.decode(line[line.index(b"{") :], type=_Event).usage
        self._arrived += arrived
        return arrived

    def answer(self) -> Answer:
        """Return the server's counts; without them, each event with content counts as a token."""
        if self._usage is None:
            return Answer(0, self._arrived)
        return Answer(self._usage.prompt_tokens, self._usage.completion_tokens)
