"""SmolLM2 with a template for thoughts and tools in its header: a real reasoning model."""

import json
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from services.inference.backends import llama
from services.inference.backends.llama import LlamaBackend
from services.inference.chat import library
from services.inference.engine import engine_messages
from services.inference.models import memory, model_discovery
from services.inference.models.catalog import Catalog, CatalogEntry
from shared import errors
from shared.api.generation import GenerationEnd, ReasoningEffort, Tool, ToolChoice
from shared.types import FinishReason, ModelName
from tests.services.inference.standins import Reader, Watch, job

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not library.PATH.exists(), reason="libaimesh_chat was not built: python -m tools.engine_libraries"),
]

TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\nTools:' }}
{%- for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.reasoning_content %}{{ '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + '}\\n</tool_call>' }}
{%- endfor %}{{ '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"""
WEATHER = Tool("get_weather", "", '{"type":"object","properties":{"city":{"type":"string","maxLength":12}},"required":["city"]}')
NAME = ModelName("thinker")
BUDGET = 6


def with_template(path: Path, template: str) -> None:
    """Write the packaged model with another template."""
    raw = model_discovery.packaged().read_bytes()
    key = b"tokenizer.chat_template"
    # After the key: four bytes of type, eight of length, then the text.
    at = raw.index(key) + len(key) + 4
    (length,) = struct.unpack_from("<Q", raw, at)
    # Keep the tensors aligned.
    text = template.encode() + b" " * ((length - len(template.encode())) % 32)
    path.write_bytes(raw[:at] + struct.pack("<Q", len(text)) + text + raw[at + 8 + length :])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LlamaBackend]:
    path = tmp_path_factory.mktemp("model") / "thinker.gguf"
    with_template(path, TEMPLATE)
    entry = CatalogEntry(name=NAME, file=path, slots=2, context_tokens=512, reasoning_budget=BUDGET)
    options = engine_messages.LoadCommand(path="", slots=2, context_tokens=512, threads=1, gpu_layers=0)
    async with llama.opened(Catalog((entry,)), options, 4, memory.MemoryBudget(2**30, "a test"), Watch()) as opened:
        yield opened


async def answer(backend: LlamaBackend, delivered: tuple[int, ...] = (), **sampling: object) -> tuple[Reader, GenerationEnd]:
    reader = Reader()
    asked = replace(job("What is the weather in Rome?", model=NAME, temperature=0, **sampling), delivered=delivered, request="r")
    numerics = backend.models()[0].numerics
    return reader, await backend.generate(replace(asked, numerics=numerics), reader)


def reasoning(reader: Reader) -> str:
    return "".join(chunk.reasoning for chunk in reader.chunks)


async def test_thoughts_come_apart_and_end_at_the_budget(backend: LlamaBackend) -> None:
    reader, end = await answer(backend, max_tokens=24)
    assert reasoning(reader).strip()
    assert reader.text.strip()
    assert "think>" not in reader.text + reasoning(reader)
    assert BUDGET < end.usage.reasoning_tokens < 24
    for delivered in (2, BUDGET + 1, 16):
        rest, rest_end = await answer(backend, tuple(reader.token_ids[:delivered]), max_tokens=24)
        assert rest.token_ids == reader.token_ids[delivered:]
        assert (reader.text.endswith(rest.text), reasoning(reader).endswith(reasoning(rest))) == (True, True)
        assert rest_end.finish_reason == end.finish_reason


async def test_an_answer_that_another_engine_began_is_not_continued(backend: LlamaBackend) -> None:
    reader, _ = await answer(backend, max_tokens=3)
    assert backend.models()[0].numerics
    asked = replace(job("What is the weather in Rome?", model=NAME), delivered=tuple(reader.token_ids[:2]), numerics="other")
    with pytest.raises(errors.UnknownModel, match="computes other tokens than the worker that began the answer"):
        await backend.generate(asked, reader)


async def test_effort_none_writes_no_thoughts(backend: LlamaBackend) -> None:
    reader, _ = await answer(backend, max_tokens=12, reasoning_effort=ReasoningEffort.NONE)
    assert (reasoning(reader).strip(), "think" in reader.text) == ("", False)
    assert reader.text.strip()


async def test_forced_call_follows_the_thoughts(backend: LlamaBackend) -> None:
    reader, end = await answer(backend, max_tokens=120, tools=(WEATHER,), tool_choice=ToolChoice.REQUIRED, parallel_tool_calls=False)
    parts = [part for chunk in reader.chunks for part in chunk.call_parts]
    assert [part.name for part in parts if part.name] == ["get_weather"]
    assert json.loads("".join(part.arguments for part in parts)).keys() == {"city"}
    assert (reader.text.strip(), end.finish_reason) == ("", FinishReason.STOP)
    assert reasoning(reader).strip()


# Last, so that no other test has to load the model again.
async def test_the_model_is_said_to_think(backend: LlamaBackend) -> None:
    await backend.load(NAME)
    await backend.unload(NAME)
    assert backend.models()[0].abilities == ("tools", "reasoning"), "also when it isn't loaded"
