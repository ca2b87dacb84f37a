"""Answers, and every stream event and helper of chat completions."""

import json
import os
from functools import partial
from typing import Any

import openai
from checklist import error_of, script
from openai.types.chat import completion_create_params
from pydantic import BaseModel

from checks.openai.chat import FUNCTION, ROME, TOOL, ask, create, said
from checks.openai.client import SCRIPTED, checks, client, has_no_effect, works

REFUSED_API_KEY = os.environ["REFUSED_API_KEY"]


class Person(BaseModel):
    name: str
    age: int


# --- answers --------------------------------------------------------------------------------------------------------------------


@checks("chat answer usage")
def _() -> None:
    usage = works(create, **said(think="Well, well.", say="Hi you")).usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert (usage.prompt_tokens_details.cached_tokens, usage.completion_tokens_details.reasoning_tokens) == (3, 2)


@checks("chat answer finish_reason")
def _() -> None:
    assert [ask(turn={"say": "Hi", "finish": finish}).finish_reason for finish in ("stop", "length")] == ["stop", "length"]


@checks("chat answer")
def _() -> None:
    answer = works(create, **said(say="Hi"))
    assert (answer.object, answer.choices[0].message.role, answer.choices[0].message.refusal) == ("chat.completion", "assistant", None)
    assert answer.id
    assert answer.created > 1_700_000_000
    assert answer._request_id


@checks("chat answer reasoning_content")
def _() -> None:
    assert ask(turn={"think": "Well.", "say": "Hi"}).message.reasoning_content == "Well."


# --- streams and helpers -------------------------------------------------------------------------------------------------------


@checks("chat.stream", "chat event chunk")
def _() -> None:
    chunks = list(client.chat.completions.create(**said(think="Well.", say="Hi you"), stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hi you"
    assert "".join(getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in chunks) == "Well."
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert not any(chunk.usage for chunk in chunks)


@checks("chat.stream_options")
def _() -> None:
    *chunks, last = client.chat.completions.create(**said(say="Hi you"), stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage.total_tokens > last.usage.completion_tokens > 0
    assert not any(chunk.usage for chunk in chunks)
    assert works(create, **said(say="Hi"), stream_options={"include_usage": True}).usage.total_tokens > 0


@checks("chat.stream_options include_obfuscation")
def _() -> None:
    has_no_effect(
        create, "stream_options.include_obfuscation", **said(say="Hi"), stream=True, stream_options={"include_obfuscation": False}
    )


def _events(kind: str, turn: dict[str, Any], **fields: Any) -> list[Any]:
    with client.chat.completions.stream(**said(**turn), **fields) as stream:
        found = [event for event in stream if event.type == kind]
    assert found
    return found


@checks("chat event content.delta")
def _() -> None:
    assert _events("content.delta", {"say": "Hi you"})[-1].snapshot == "Hi you"


@checks("chat event content.done")
def _() -> None:
    (done,) = _events("content.done", {"say": '{"name": "Ada", "age": 36}'}, response_format=Person)
    assert done.parsed == Person(name="Ada", age=36)


@checks("chat event tool_calls.function.arguments.delta")
def _() -> None:
    tools = [openai.pydantic_function_tool(Person)]
    found = _events("tool_calls.function.arguments.delta", {"calls": [["Person", {"name": "Ada", "age": 36}]]}, tools=tools)
    assert len(found) > 1
    assert json.loads("".join(event.arguments_delta for event in found)) == {"name": "Ada", "age": 36}


@checks("chat event tool_calls.function.arguments.done")
def _() -> None:
    tools = [openai.pydantic_function_tool(Person)]
    found = _events("tool_calls.function.arguments.done", {"calls": [["Person", {"name": "Ada", "age": 36}]] * 2}, tools=tools)
    assert [(event.index, event.parsed_arguments) for event in found] == [(n, Person(name="Ada", age=36)) for n in (0, 1)]


@checks("chat event logprobs.content.delta")
def _() -> None:
    found = _events("logprobs.content.delta", {"say": "Hi you"}, logprobs=True)
    assert [token.token for event in found for token in event.content] == ["Hi ", "you"]


@checks("chat event logprobs.content.done")
def _() -> None:
    (done,) = _events("logprobs.content.done", {"say": "Hi you"}, logprobs=True)
    assert len(done.content) == 2


@checks("chat.completions.stream()")
def _() -> None:
    with client.chat.completions.stream(**said(say="Hi"), stream_options={"include_usage": True}) as stream:
        final = stream.get_final_completion()
    assert (final.choices[0].message.content, final.choices[0].finish_reason) == ("Hi", "stop")
    assert final.usage.total_tokens > 0


@checks("chat.completions.parse()")
def _() -> None:
    answer = client.chat.completions.parse(**said(say='{"name": "Ada", "age": 36}'), response_format=Person)
    assert answer.choices[0].message.parsed == Person(name="Ada", age=36)


@checks("pydantic_function_tool()")
def _() -> None:
    tools = [openai.pydantic_function_tool(Person)]
    answer = client.chat.completions.parse(**said(calls=[["Person", {"name": "Ada", "age": 36}]]), tools=tools)
    assert answer.choices[0].message.tool_calls[0].function.parsed_arguments == Person(name="Ada", age=36)


@checks("chat LengthFinishReasonError")
def _() -> None:
    parse = partial(client.chat.completions.parse, **said(say="{", finish="length"), response_format=Person)
    assert error_of(openai.LengthFinishReasonError, parse).completion.choices[0].finish_reason == "length"


@checks("chat with_streaming_response")
def _() -> None:
    with client.chat.completions.with_streaming_response.create(**said(say="Hi"), stream=True) as answer:
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"


@checks("chat AsyncOpenAI")
async def _() -> None:
    async with openai.AsyncOpenAI(max_retries=0) as async_client, async_client.chat.completions.stream(**said(say="Hi you")) as stream:
        texts = [event.delta async for event in stream if event.type == "content.delta"]
    assert "".join(texts) == "Hi you"


@checks("chat answers sent back")
def _() -> None:
    """A client sends the message that it received with the conversation."""
    first = works(create, **said(think="Well.", say="Wait.", calls=[ROME]), tools=[TOOL]).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "18"}
    messages = [{"role": "user", "content": script(report=["messages"])}, first, result]
    parsed = client.chat.completions.parse(model=SCRIPTED, messages=messages, tools=[{**TOOL, "function": {**FUNCTION, "strict": True}}])
    assert parsed.choices[0].message.content == "Results: 18; images: 0"


@checks("chat ContentFilterFinishReasonError")
def _() -> None:
    """The answers of this key are refused at their first word."""
    guarded = client.with_options(api_key=REFUSED_API_KEY)
    answer = guarded.chat.completions.create(**said(say="Hello you"))
    assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == ("content_filter", "")
    error_of(openai.ContentFilterFinishReasonError, partial(guarded.chat.completions.parse, **said(say="Hello"), response_format=Person))


@checks("responses answer content_filter")
def _() -> None:
    answer = client.with_options(api_key=REFUSED_API_KEY).responses.create(model=SCRIPTED, input=script(say="Hello you"))
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "content_filter")


checks.ensure_named("chat", completion_create_params.CompletionCreateParamsBase.__annotations__)
