"""openai's Python client."""

import os

import openai
import pydantic

MODEL = os.environ["MODEL"]
client = openai.OpenAI(max_retries=0)
messages = [{"role": "user", "content": "What is the weather in Rome? Use the tool."}]
tool = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]},
    },
}


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=20)
    age: int = pydantic.Field(ge=0, le=120)


# A limit above every context length, as many programs send.
chat = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Say hello."}], max_tokens=10_000_000, stop=["."])
assert chat.choices[0].message.content
assert chat.usage.total_tokens > 0

with client.chat.completions.stream(model=MODEL, messages=messages, max_tokens=20) as stream:
    assert [event for event in stream if event.type == "content.delta"]

called = client.chat.completions.create(
    model=MODEL, messages=messages, tools=[tool], tool_choice="required", parallel_tool_calls=False
).choices[0]
assert called.finish_reason == "tool_calls", called
(call,) = called.message.tool_calls
result = {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}
client.chat.completions.create(model=MODEL, messages=[*messages, called.message, result], tools=[tool], max_tokens=20)
with client.chat.completions.stream(
    model=MODEL, messages=messages, tools=[tool], tool_choice={"type": "function", "function": {"name": "get_weather"}}
) as stream:
    assert stream.get_final_completion().choices[0].message.tool_calls[0].function.name == "get_weather"

parsed = client.chat.completions.parse(model=MODEL, messages=messages, response_format=Person)
assert isinstance(parsed.choices[0].message.parsed, Person)
both = client.chat.completions.parse(model=MODEL, messages=messages, response_format=Person, tools=[openai.pydantic_function_tool(Person)])
assert both.choices[0].message.parsed or both.choices[0].message.tool_calls

texts = client.embeddings.create(model=MODEL, input=["Rome", "Paris"])
ids = client.embeddings.create(model=MODEL, input=[[1, 2, 3], [4]], encoding_format="float")
assert len(texts.data[0].embedding) == len(ids.data[1].embedding) > 100

response = client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=20)
assert response.output_text
refused = None
try:
    client.chat.completions.create(model="gpt-9", messages=messages)
except openai.NotFoundError as error:
    refused = error.code
assert refused == "model_not_found", refused
try:
    client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 50_000}])
except openai.BadRequestError as error:
    refused = error.code
assert refused == "context_length_exceeded", refused
