"""Instructor's clients in each of its modes, and what the scripted model answers in them."""

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anthropic
import instructor
import openai
import pydantic
from checklist import Checklist, script
from instructor import Mode

checks = Checklist()
SCRIPTED = os.environ["SCRIPTED_MODEL"]


class Person(pydantic.BaseModel):
    name: str
    age: int


class City(pydantic.BaseModel):
    city: str


ANN, BOB, ROME = Person(name="Ann", age=5), Person(name="Bob", age=6), City(city="Rome")


MAKERS = {"openai": instructor.from_openai, "openrouter": instructor.from_openrouter, "anthropic": instructor.from_anthropic}


@dataclass(frozen=True)
class Asker:
    """A mode of one vendor's client."""

    vendor: str
    mode: Mode
    #: The answer is a call, JSON, or JSON in a code block.
    answers: str = "call"
    #: A retry does not tell the model what it answered before, so its script begins again.
    forgets: bool = False

    @property
    def name(self) -> str:
        return f"{self.vendor} {self.mode.name}"

    @property
    def client(self) -> instructor.Instructor:
        client = anthropic.Anthropic(max_retries=0) if self.vendor == "anthropic" else openai.OpenAI(max_retries=0)
        return MAKERS[self.vendor](client, mode=self.mode)

    @asynccontextmanager
    async def async_client(self) -> AsyncIterator[Any]:
        kind = anthropic.AsyncAnthropic if self.vendor == "anthropic" else openai.AsyncOpenAI
        async with kind(max_retries=0) as client:
            yield MAKERS[self.vendor](client, mode=self.mode)

    def turn(self, value: pydantic.BaseModel, name: str = "") -> dict[str, Any]:
        """Return the turn of the model that answers with a value."""
        if self.answers == "call":
            return {"calls": [[name or type(value).__name__, value.model_dump()]]}
        return {"say": f"```json\n{value.model_dump_json()}\n```" if self.answers == "block" else value.model_dump_json()}

    def asked(self, *values: pydantic.BaseModel, name: str = "", **more: Any) -> dict[str, Any]:
        """Return the arguments of a call that the model answers with these values in turn."""
        turns = [self.turn(value, name) for value in values]
        messages = [{"role": "user", "content": script(turns=turns)}]
        limit = {"max_tokens": 500} if self.vendor == "anthropic" else {}
        return {"model": SCRIPTED, "messages": messages, "response_model": Person, "max_retries": 0, **limit, **more}


def ensure_same(found: Iterable[Any], *values: pydantic.BaseModel) -> None:
    """Fail if the answers, which have a class of Instructor's, are not these values."""
    assert [each.model_dump() for each in found] == [value.model_dump() for value in values]


TOOLS = Asker("openai", Mode.TOOLS)
ASKERS = (
    TOOLS,
    Asker("openai", Mode.TOOLS_STRICT),
    Asker("openai", Mode.JSON, "json"),
    Asker("openai", Mode.JSON_O1, "json"),
    Asker("openai", Mode.MD_JSON, "block"),
    Asker("openai", Mode.JSON_SCHEMA, "json"),
    Asker("openai", Mode.RESPONSES_TOOLS, forgets=True),
    Asker("openai", Mode.RESPONSES_TOOLS_WITH_INBUILT_TOOLS, forgets=True),
    Asker("openrouter", Mode.OPENROUTER_STRUCTURED_OUTPUTS, "json"),
    Asker("anthropic", Mode.ANTHROPIC_TOOLS),
    Asker("anthropic", Mode.ANTHROPIC_REASONING_TOOLS),
    Asker("anthropic", Mode.ANTHROPIC_JSON, "json", forgets=True),
    Asker("anthropic", Mode.JSON_SCHEMA, "json", forgets=True),
)
