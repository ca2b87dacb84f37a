"""Anthropic's Python client."""

import os

import anthropic

MODEL = os.environ["MODEL"]
client = anthropic.Anthropic(
    base_url=os.environ["OPENAI_BASE_URL"].removesuffix("/v1"), api_key=os.environ["OPENAI_API_KEY"], max_retries=0
)
messages = [{"role": "user", "content": "What is the weather in Rome?"}]
tool = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]},
}

chat = client.messages.create(model=MODEL, max_tokens=20, system="Be brief.", messages=messages)
assert chat.content[0].text
assert chat.usage.output_tokens > 0

with client.messages.stream(model=MODEL, max_tokens=20, messages=messages) as stream:
    text = "".join(stream.text_stream)
    final = stream.get_final_message()
assert text == final.content[0].text
assert final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0) > 0

called = client.messages.create(model=MODEL, max_tokens=100, messages=messages, tools=[tool], tool_choice={"type": "any"})
assert called.stop_reason == "tool_use", called
use = called.content[-1]
assert use.input["city"]
answered = [*messages, {"role": "assistant", "content": called.content}]
result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "18 degrees"}]}
client.messages.create(model=MODEL, max_tokens=20, messages=[*answered, result], tools=[tool])
with client.messages.stream(
    model=MODEL, max_tokens=100, messages=messages, tools=[tool], tool_choice={"type": "tool", "name": "get_weather"}
) as stream:
    assert stream.get_final_message().content[-1].input["city"]
refused = None
try:
    client.messages.create(model="claude-9", max_tokens=5, messages=messages)
except anthropic.NotFoundError as error:
    refused = error.body["error"]["type"]
assert refused == "not_found_error", refused
