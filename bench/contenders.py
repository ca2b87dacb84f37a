"""The contenders of the engine's bench: our engine in each of its modes, and the servers it is compared with.

Each is started for one measurement and ended after it: an idle engine keeps threads spinning for a while, on a core that the next one
needs.
"""

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bench import http_load, rivals
from bench.http_load import Client
from services.inference import gpus, jobs
from services.inference.backend_interface import Backend, UncountedSink
from services.inference.backends import llama
from services.inference.engine import devices
from services.inference.engine.engine_messages import KvMode, KvType, KvTypes, LoadCommand
from services.inference.models import catalog, memory, model_discovery
from shared import model_folder
from shared.api.generation import ChatMessage, FormatKind, OutputFormat, Sampling
from shared.api.inference import Chunk
from shared.types import ModelName
from tests.services.inference.standins import Watch
from tests.testnet import free_port, until

#: The same sampling for all: our defaults, given explicitly to the others.
SAMPLING = Sampling(temperature=0.7, top_k=40, top_p=0.95, min_p=0.0, repeat_penalty=1.0, ignore_eos=True)
SCHEMA = json.dumps(
    {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 40},
                "kind": {"enum": ["keeper", "ship", "storm"]},
                "age": {"type": "integer", "minimum": 0, "maximum": 120},
                "notes": {"type": "array", "items": {"type": "string", "pattern": "^[A-Z][a-z ]+$", "maxLength": 60}, "maxItems": 3},
            },
            "required": ["name", "kind", "age", "notes"],
        },
        "minItems": 100,
    }
)
#: The engine's modes; the first is its default.
MODES = (KvMode.EXACT, KvMode.SHARED)
#: A load takes about a second, including Python's start.
START_SECONDS = 60.0
#: A prompt of 4,000 tokens beside four streams takes 20 s, and up to twenty times that on a shared machine.
ANSWER_SECONDS = 400.0

_COUNTS = re.compile(rb'"(prompt|completion)_tokens": ?(\d+)')


class Shape(NamedTuple):
    """The size of a contender."""

    slots: int
    #: For each slot.
    context_tokens: int
    threads: int
    #: None for the packaged one.
    model: Path | None = None


class Counts(NamedTuple):
    prompt_tokens: int
    completion_tokens: int


#: Called for each piece of an answer: a token, or a few that arrived together.
OnToken = Callable[[], None]
#: Answers one user message with so many tokens, ignoring the model's own end. Cancelling ends the generation.
Generate = Callable[[str, int, OnToken], Awaitable[Counts]]
#: The same also for messages, which may have images.
GenerateChat = Callable[[str | tuple[ChatMessage, ...], int, OnToken], Awaitable[Counts]]


class Contender(NamedTuple):
    name: str
    #: Starts it alone and loads the model; ends its processes on leaving.
    started: Callable[[Shape], AbstractAsyncContextManager[Generate]]


@asynccontextmanager
async def opened(contender: Contender, shape: Shape) -> AsyncIterator[Generate]:
    """Start it and warm up."""
    async with contender.started(shape) as generate:
        await generate("Say hello.", 8, lambda: None)
        yield generate


class EngineEvents(Watch):
    def restarting(self, model: ModelName) -> None:
        raise AssertionError(f"the engine of {model} died; the log above says why")


class _Arrivals(UncountedSink):
    """Only reports that something arrived."""

    def __init__(self, on_token: OnToken) -> None:
        self._on_token = on_token

    async def send(self, item: Chunk) -> None:
        if item.token_ids:
            self._on_token()


async def find_gpus() -> tuple[devices.Device, ...]:
    """Return those that this build of llama.cpp can use."""
    found = await devices.probe() if gpus.find_kind() else None
    return found.devices if found else ()


@asynccontextmanager
async def our_engine(mode: KvMode, shape: Shape, sampling: Sampling = SAMPLING, **settings: Any) -> AsyncIterator[GenerateChat]:
    """Run our engine in its process, called as a worker does: through its backend and the socketpair. ``settings``: of its entry."""
    named: dict[str, str] = {model_folder.PACKAGED_MODEL: str(shape.model)} if shape.model else {}
    found = model_discovery.find(named, defaults=catalog.Defaults(slots=shape.slots, context_tokens=shape.context_tokens))
    found = replace(found, entries=tuple(replace(entry, **settings) for entry in found.entries))
    load = LoadCommand("", shape.slots, shape.context_tokens, shape.threads, gpu_layers=-1, kv_mode=mode)
    budget = memory.measure(None, await find_gpus())
    async with llama.opened(found, load, shape.slots, budget, EngineEvents()) as backend:
        await backend.load(model_folder.PACKAGED_MODEL)
        # Without a digest, a thread of this process is still reading the file.
        await until(lambda: all(status.digest for status in backend.models()), seconds=START_SECONDS)
        yield asking(backend, model_folder.PACKAGED_MODEL, sampling)


def asking(backend: Backend, model: ModelName, sampling: Sampling) -> GenerateChat:
    seeds = itertools.count(1)

    async def generate(prompt: str | tuple[ChatMessage, ...], max_tokens: int, on_token: OnToken) -> Counts:
        asked = msgspec.structs.replace(sampling, max_tokens=max_tokens, seed=next(seeds))
        job = jobs.check_prompt(model, prompt, asked, context_tokens=None, draw_seed=lambda: 0)
        async with asyncio.timeout(ANSWER_SECONDS):
            # One tenant, as in llama-server, so that both may reuse prefixes of earlier prompts.
            usage = (await backend.generate(replace(job, salt="bench"), _Arrivals(on_token))).usage
        return Counts(usage.prompt_tokens, usage.completion_tokens)

    return generate


def chat(port: int, fields: Mapping[str, object], *headers: str, raw: bool = False) -> Generate:
    """Stream from POST /v1/chat/completions, or continue ``raw`` prompts by POST /v1/completions. This must be cheap, because it shares the
    cores with the server."""
    path = "/v1/completions" if raw else "/v1/chat/completions"
    sampling = {name: getattr(SAMPLING, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    fields = {"model": "default", **sampling, "stream": True, "stream_options": {"include_usage": True}, **fields}

    async def generate(prompt: str, max_tokens: int, on_token: OnToken) -> Counts:
        said: dict[str, object] = {"prompt": prompt} if raw else {"messages": [{"role": "user", "content": prompt}]}
        request = http_load.post(path, json.dumps({**said, "max_tokens": max_tokens, **fields}), "connection: close", *headers)
        async with asyncio.timeout(ANSWER_SECONDS):
            answer, body = await Client(port).ask(request.encode(), on_token)
        assert answer.is_good, body[:2000]
        return counts_of(body)

    return generate


def counts_of(body: bytes | bytearray) -> Counts:
    """Return the server's counts. Raises KeyError if it sent none."""
    counts = {name: int(count) for name, count in _COUNTS.findall(body)}
    return Counts(counts[b"prompt"], counts[b"completion"])


@asynccontextmanager
async def _llama_server(shape: Shape) -> AsyncIterator[Generate]:
    async with running_llama_server(shape) as port:
        yield chat(port, {"ignore_eos": True, "samplers": ("top_k", "top_p", "temperature")})


@asynccontextmanager
async def copying_llama_server(shape: Shape) -> AsyncIterator[Generate]:
    """Run llama-server with its own drafts from the text before, at temperature 0."""
    async with running_llama_server(shape, "--spec-type", "ngram-simple") as port:
        yield chat(port, {"ignore_eos": True, "temperature": 0}, raw=True)


@asynccontextmanager
async def running_llama_server(shape: Shape, *options: str) -> AsyncIterator[int]:
    """Run llama.cpp's own server, with our context, slots and threads, and its own defaults for the rest.

    Its default batch sizes are larger than ours and better for it. It keeps no copies of idle prompts in memory (--cache-ram): nothing here
    uses them, and copying takes time.
    """
    port = free_port()
    words = (
        rivals.ensure().server, "--model", shape.model or model_discovery.packaged(), "--host", "127.0.0.1", "--port", port,
        "--threads", shape.threads, "--threads-batch", shape.threads, "--parallel", shape.slots,
        "--ctx-size", shape.slots * shape.context_tokens, "--cache-ram", 0, "--no-webui", "--offline", *options,
    )  # fmt: skip
    async with rivals.program(words, port, "/health", START_SECONDS):
        yield port


OURS = {mode: Contender(f"ours, {mode}", partial(our_engine, mode)) for mode in MODES}
#: Types of the cache that were tried for `exact` (docs/decisions/0011).
F16_KEYS = Contender("f16 keys, bf16 values", partial(our_engine, KvMode.EXACT, kv_type=KvTypes(KvType.F16, KvType.BF16)))
#: Follows a schema that no answer of the bench is long enough to complete.
CONSTRAINED = Contender(
    "ours, with a schema",
    partial(
        our_engine,
        MODES[0],
        sampling=msgspec.structs.replace(SAMPLING, ignore_eos=False, format=OutputFormat(FormatKind.JSON_SCHEMA, SCHEMA)),
    ),
)
LLAMA_SERVER = Contender("llama-server", _llama_server)
#: The contenders of every round.
EVERYONE = (*OURS.values(), LLAMA_SERVER)
