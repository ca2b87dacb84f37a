"""LiteLLM, as OpenAI's and as Anthropic's client."""

import os

import litellm

MODEL, KEY, URL = os.environ["MODEL"], os.environ["OPENAI_API_KEY"], os.environ["OPENAI_BASE_URL"]
litellm.num_retries = 0
messages = [{"role": "user", "content": "What is the weather in Rome?"}]
tool = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]},
    },
}
for model, base in ((f"openai/{MODEL}", URL), (f"anthropic/{MODEL}", URL.removesuffix("/v1"))):
    there = {"model": model, "api_base": base, "api_key": KEY}
    assert litellm.completion(**there, messages=messages, max_tokens=20).choices[0].message.content
    assert [chunk for chunk in litellm.completion(**there, messages=messages, max_tokens=20, stream=True) if chunk.choices[0].delta.content]
    called = litellm.completion(**there, messages=messages, tools=[tool], tool_choice="required", max_tokens=100)
    assert called.choices[0].message.tool_calls[0].function.name == "get_weather"
assert len(litellm.embedding(model=f"openai/{MODEL}", input=["Rome", "Paris"], api_base=URL, api_key=KEY).data) == 2
refused = False
try:
    litellm.completion(model=f"openai/{MODEL}", api_base=URL, api_key=KEY, messages=[{"role": "user", "content": "word " * 50_000}])
except litellm.ContextWindowExceededError:
    refused = True
assert refused
