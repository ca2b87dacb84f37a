"""Answers that must fit a format, from the real model through a whole stack, with OpenAI's own client."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletion
from openai.types.chat.completion_create_params import ResponseFormat

from tests.people import Person
from tests.stacks import RunningStack

MODEL = "smollm2"
ANSWERS, AT_ONCE = 100, 16


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


#: Every part is bounded, so that no answer needs more than MAX_TOKENS, and short, because a CPU writes some dozen tokens a second.
SCHEMA = _object(
    crew={
        "type": "array",
        "minItems": 1,
        "maxItems": 2,
        "items": _object(name={"type": "string", "minLength": 2, "maxLength": 4}, rank={"enum": ["A", "B", "C"]}),
    },
    ship=_object(big={"type": "boolean"}),
)
#: A character takes up to four bytes, and a token has at least one.
MAX = {"crew": [{"name": "\N{SHIP}" * 4, "rank": "A"}] * 2, "ship": {"big": False}}
MAX_TOKENS = len(json.dumps(MAX, ensure_ascii=False).encode())


@pytest.fixture
async def client(stack: RunningStack, ann: Person) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key=ann.key.secret, base_url=stack.url("gateway") + "/v1", max_retries=0, timeout=120) as made:
        yield made


async def _ask(client: openai.AsyncOpenAI, prompt: str, form: ResponseFormat, seed: int, max_tokens: int) -> ChatCompletion:
    return await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": prompt}],
        response_format=form,
        temperature=1,
        seed=seed,
        max_tokens=max_tokens,
    )


@pytest.mark.nightly("long")
@pytest.mark.timeout(300)
async def test_a_hundred_answers_fit_a_nested_schema(client: openai.AsyncOpenAI) -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.validate(MAX)
    form: ResponseFormat = {"type": "json_schema", "json_schema": {"name": "crew", "schema": SCHEMA, "strict": True}}
    turns = asyncio.Semaphore(AT_ONCE)

    async def ask(seed: int) -> str:
        async with turns:
            answer = await _ask(client, "Describe a ship and its crew.", form, seed, MAX_TOKENS)
        (choice,) = answer.choices
        assert choice.message.content is not None
        assert choice.finish_reason == "stop", f"seed {seed}: {choice.message.content}"
        return choice.message.content

    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(ask(seed)) for seed in range(ANSWERS)]
    texts = [task.result() for task in asked]
    for text in texts:
        validator.validate(json.loads(text))
    # The model chooses the values, so most answers differ.
    assert len(set(texts)) > ANSWERS / 2


async def test_any_object_is_an_object(client: openai.AsyncOpenAI) -> None:
    form: ResponseFormat = {"type": "json_object"}
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(_ask(client, "Give me the name and the age of a sailor as JSON.", form, seed, 100)) for seed in range(8)]
    ended = 0
    for task in asked:
        (choice,) = task.result().choices
        assert choice.message.content is not None
        assert choice.message.content.startswith("{")
        # The size of a json_object is not limited, so max_tokens may cut off its end.
        if choice.finish_reason == "stop":
            ended += 1
            assert isinstance(json.loads(choice.message.content), dict)
        else:
            assert choice.finish_reason == "length"
    assert ended > 0
