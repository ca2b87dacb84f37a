"""Instructor: structured output by tools and by schema."""

import os

import instructor
import openai
import pydantic


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=20)
    age: int = pydantic.Field(ge=0, le=120)


messages = [{"role": "user", "content": "Describe a person."}]
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(openai.OpenAI(), mode=mode)
    person = client.chat.completions.create(model=os.environ["MODEL"], response_model=Person, messages=messages, max_retries=0)
    assert isinstance(person, Person)
    assert list(client.chat.completions.create_partial(model=os.environ["MODEL"], response_model=Person, messages=messages, max_retries=0))
