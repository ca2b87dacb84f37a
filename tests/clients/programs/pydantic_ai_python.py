"""Pydantic AI: structured output, streams and tools."""

import asyncio
import os

import pydantic
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel

MODEL = OpenAIChatModel(os.environ["MODEL"])


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=20)
    age: int = pydantic.Field(ge=0, le=120)


assert Agent(MODEL, model_settings={"max_tokens": 30}).run_sync("Say hello.").output
for output in (ToolOutput(Person), NativeOutput(Person)):
    agent = Agent(MODEL, output_type=output, model_settings={"max_tokens": 200})
    assert isinstance(agent.run_sync("Describe a person.").output, Person)


async def stream() -> None:
    async with Agent(MODEL, model_settings={"max_tokens": 30}).run_stream("Say hello.") as result:
        assert [text async for text in result.stream_text(delta=True)]


asyncio.run(stream())
