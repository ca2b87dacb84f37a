"""Pydantic AI's models for the three APIs, with every feature that the newest models of their vendors have."""

import base64
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anthropic
import openai
import pydantic
from checklist import Checklist, script
from pydantic_ai import Agent, BinaryContent, ModelSettings
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

checks = Checklist()
SCRIPTED = os.environ["SCRIPTED_MODEL"]
APIS = ("chat", "responses", "anthropic")
HELLO = {"say": "Hello you."}
ROME = ["get_weather", {"city": "Rome"}]
RESULT = "Results: 18 degrees in Rome; images: 0"
THINKING = {"think": "Let me see.", "say": "Hello you."}
EVERYTHING = {"think": "Let me see.", "say": "One moment.", "calls": [ROME]}
THINKS: dict[str, Any] = {
    "chat": {},
    "responses": {},
    "reasoning": {"openai_reasoning_summary": "auto"},
    "anthropic": {"anthropic_thinking": {"type": "adaptive"}},
}
#: A red pixel.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
IMAGE = BinaryContent(base64.b64decode(PNG), media_type="image/png")
OPENAI = {
    "supports_thinking": True,
    "openai_supports_prompt_cache_breakpoints": True,
    "openai_supports_phase": True,
}
#: OpenAI's reasoning models have no sampling parameters.
REASONING = {
    **OPENAI,
    "openai_supports_reasoning": True,
    "openai_supports_encrypted_reasoning_content": True,
    "openai_responses_supports_reasoning_mode": True,
    "openai_responses_supports_prompt_cache_diagnostics": True,
}
ANTHROPIC = {
    "supports_json_schema_output": True,
    "anthropic_supports_adaptive_thinking": True,
    "anthropic_supports_effort": True,
    "anthropic_supports_fast_speed": True,
    "anthropic_supports_task_budgets": True,
    "supports_inline_system_prompts": True,
}


class Person(pydantic.BaseModel):
    name: str
    age: int


ANN = Person(name="Ann", age=5)
CALL = {"calls": [["final_result", ANN.model_dump()]]}


class Seen:
    """What the answers' headers name as ignored."""

    def __init__(self) -> None:
        self.ignored: list[str] = []

    async def read(self, response: Any) -> None:
        self.ignored += [name for name in response.headers.get("x-aimesh-ignored", "").split(", ") if name]


@asynccontextmanager
async def opened(api: str, seen: Seen | None = None, name: str = SCRIPTED) -> AsyncIterator[Model]:
    """Return a model for one event loop."""
    hooks = {"response": [(seen or Seen()).read]}
    if api == "anthropic":
        async with anthropic.AsyncAnthropic(max_retries=0, http_client=anthropic.DefaultAsyncHttpxClient(event_hooks=hooks)) as client:
            yield AnthropicModel(name, provider=AnthropicProvider(anthropic_client=client), profile=ANTHROPIC)
        return
    async with openai.AsyncOpenAI(max_retries=0, http_client=openai.DefaultAsyncHttpxClient(event_hooks=hooks)) as client:
        kind = OpenAIChatModel if api == "chat" else OpenAIResponsesModel
        yield kind(name, provider=OpenAIProvider(openai_client=client), profile=REASONING if api == "reasoning" else OPENAI)


async def get_weather(city: str) -> str:
    """Say the weather."""
    return f"18 degrees in {city}"


async def run(
    api: str,
    turn: dict[str, Any],
    *content: Any,
    settings: ModelSettings | None = None,
    ignores: Sequence[str] | None = (),
    history: Any = None,
    **agent: Any,
) -> Any:
    """Return the result of a run in which only ``ignores`` has no effect; None for anything."""
    seen = Seen()
    async with opened(api, seen) as model:
        prompt = [script(**turn), *content] if content else script(**turn)
        result = await Agent(model, **agent).run(prompt, model_settings=settings, message_history=history)
    assert ignores is None or sorted(set(seen.ignored)) == sorted(ignores), seen.ignored
    return result


async def report(api: str, path: str, *content: Any, **more: Any) -> Any:
    """Return what reached the model at a path of the chat."""
    return json.loads((await run(api, {"report": [path]}, *content, **more)).output)[path]


async def error_of(kind: type[Exception], running: Any) -> Exception:
    """Return the error that a run ends with."""
    try:
        await running
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def each(name: str, check: Any, apis: Any = APIS, *more: Any) -> None:
    """Add a check for each API."""
    for api in apis:
        checks.add(f"{api}: {name}", partial(check, api, *more))
