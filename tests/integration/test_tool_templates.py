"""Forced tool calls fit their schema: OpenAI's client, the gateway's routes, and SmolLM2 with the chat templates of four families."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import jsonschema
import openai
import pytest
import pytest_asyncio

from services.inference import jobs
from services.inference.backends import llama
from services.inference.backends.llama import LlamaBackend
from services.inference.chat import library
from services.inference.engine import engine_messages
from services.inference.jobs import JobOrigin
from services.inference.models import memory
from services.inference.models.catalog import Catalog, CatalogEntry
from shared.api import inference
from shared.api.generation import GenerationEnd
from shared.types import ModelName
from tests.services.gateway import fakes, openai_clients
from tests.services.gateway.fakes import FakeWorker
from tests.services.inference.backends.test_reasoning_model import with_template
from tests.services.inference.standins import Watch
from tools import engine_libraries

pytestmark = [
    # Each model must be loaded and must process its prompt.
    pytest.mark.nightly("long"),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not library.PATH.exists(), reason="libaimesh_chat was not built: python -m tools.engine_libraries"),
]

#: Template by model name.
TEMPLATES = {
    "minimax": "MiniMax-M2",
    "kimi": "Kimi-K2-Instruct",
    "gemma": "google-gemma-4-31B-it",
    "phi": "microsoft-Phi-3.5-mini-instruct",
}
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Rome", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "get_weather", "description": "Says the weather.", "parameters": PARAMETERS}}
ASKED: Any = {
    "messages": [{"role": "user", "content": "What is the weather in Bern for 9 days?"}],
    "tools": [TOOL],
    "parallel_tool_calls": False,
    "max_tokens": 200,
    "temperature": 1,
    "seed": 7,
}
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


class RealWorker(FakeWorker):
    """Answers with a backend, as a real worker does."""

    def __init__(self, backend: LlamaBackend) -> None:
        super().__init__()
        self._backend = backend

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        checked = jobs.check_prompt(
            prompt.model_config.model,
            prompt.prompt,
            prompt.model_config,
            context_tokens=2048,
            draw_seed=lambda: 1,
            origin=JobOrigin(request="r"),
        )
        chunks: asyncio.Queue[inference.Chunk | None] = asyncio.Queue(4096)

        class Reader:
            def accept(self, _: int | None) -> None:
                pass

            async def send(self, item: inference.Chunk) -> None:
                await chunks.put(item)

        async def generate() -> GenerationEnd:
            try:
                return await self._backend.generate(checked, Reader())
            finally:
                await chunks.put(None)

        generating = asyncio.create_task(generate())
        while (chunk := await chunks.get()) is not None:
            yield chunk
        yield await generating


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[openai.AsyncOpenAI]:
    folder, entries = tmp_path_factory.mktemp("models"), []
    for model, template in TEMPLATES.items():
        path = folder / f"{model}.gguf"
        with_template(path, (engine_libraries.templates_folder() / f"{template}.jinja").read_text(encoding="utf-8"))
        entries.append(CatalogEntry(name=ModelName(model), file=path, slots=2, context_tokens=2048, reasoning_budget=4))
    options = engine_messages.LoadCommand(path="", slots=2, context_tokens=2048, threads=1, gpu_layers=0)
    budget = memory.MemoryBudget(2**32, "a test")
    async with llama.opened(Catalog(tuple(entries)), options, 4, budget, Watch()) as backend, fakes.running_service(free=500) as service:
        # On a busy machine, the model writes 2 tokens a second, and an answer that isn't streamed is cut off at its time limit.
        service.runs.most_seconds = 240.0
        service.add_worker(2, RealWorker(backend), *TEMPLATES)
        async with openai_clients.connected(service) as made:
            yield made


def checked(name: str, arguments: str) -> None:
    assert name == "get_weather"
    jsonschema.Draft202012Validator(PARAMETERS).validate(json.loads(arguments))


@pytest.mark.parametrize("model", TEMPLATES)
async def test_forced_call_has_valid_arguments(client: openai.AsyncOpenAI, model: str) -> None:
    stream = await client.chat.completions.create(model=model, tool_choice="required", stream=True, **ASKED)
    deltas = [delta async for chunk in stream for choice in chunk.choices for delta in choice.delta.tool_calls or ()]
    parts = [delta.function for delta in deltas if delta.function is not None]
    checked("".join(part.name or "" for part in parts), "".join(part.arguments or "" for part in parts))
    assert len(deltas) > 2, "arguments come while they are written"
    # The prompt is cached, so that the rest fits the deadline of an answer that isn't streamed.
    answer = await client.chat.completions.create(model=model, tool_choice=NAMED, **ASKED)
    calls = answer.choices[0].message.tool_calls or []
    assert [answer.choices[0].finish_reason, answer.choices[0].message.content or "", len(calls)] == ["tool_calls", "", 1]
    checked(calls[0].function.name, calls[0].function.arguments)
