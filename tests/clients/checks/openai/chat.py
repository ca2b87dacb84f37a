"""Every field, event and helper of chat completions."""

import json
from functools import partial
from typing import Any

import pydantic
from checklist import script

from checks.openai.client import NO_EFFECT, PARAMETERS, PNG, SCRIPTED, checks, client, has_no_effect, is_refused, works

FUNCTION = {"name": "get_weather", "description": "Says the weather.", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}
CUSTOM = {"type": "custom", "custom": {"name": "shell", "description": "Runs a command.", "format": {"type": "text"}}}
ROME = ["get_weather", {"city": "Rome"}]


class Person(pydantic.BaseModel):
    name: str
    age: int


def said(*messages: Any, **turn: Any) -> dict[str, Any]:
    """Return the fields of a request to the scripted model."""
    return {"model": SCRIPTED, "messages": [*messages, {"role": "user", "content": script(**turn)}]}


create = client.chat.completions.with_raw_response.create


def ask(*messages: Any, turn: dict[str, Any] | None = None, **fields: Any) -> Any:
    """Return the first choice of an answer whose fields all have an effect."""
    return works(create, **said(*messages, **(turn or {"say": "Hello."})), **fields).choices[0]


def report(field: str, *messages: Any, **fields: Any) -> Any:
    """Return what reached the model of a field."""
    return json.loads(ask(*messages, turn={"report": [field]}, **fields).message.content)[field]


# --- fields that reach the model ------------------------------------------------------------------------------------------------


def _reaches(name: str, value: Any) -> None:
    assert report(name, **{name: value}) == value


REACHING = {
    "temperature": 0.25,
    "top_p": 0.5,
    "frequency_penalty": 0.5,
    "presence_penalty": -0.5,
    "seed": 7,
    "logit_bias": {"42": -50},
    "reasoning_effort": "low",
    "max_tokens": 77,
}
for name, value in REACHING.items():
    checks.add(f"chat.{name}", partial(_reaches, name, value))


@checks("chat.max_completion_tokens")
def _() -> None:
    assert report("max_tokens", max_completion_tokens=55) == 55


@checks("chat.model")
def _() -> None:
    assert works(create, **said(say="Hi")).model == SCRIPTED


@checks("chat.stop")
def _() -> None:
    assert report("stop", stop="END") == ["END"]
    assert report("stop", stop=["END", "STOP"]) == ["END", "STOP"]


@checks("chat.n")
def _() -> None:
    answer = works(create, **said(say="Hi"), n=2)
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [(0, "Hi"), (1, "Hi")]


@checks("chat.logprobs", "chat.top_logprobs")
def _() -> None:
    tokens = ask(turn={"say": "Hello you"}, logprobs=True, top_logprobs=2).logprobs.content
    assert [token.token for token in tokens] == ["Hello ", "you"]
    assert [(token.logprob, len(token.top_logprobs)) for token in tokens] == [(-0.5, 2)] * 2
    assert bytes(tokens[0].bytes) == b"Hello "


@checks("chat.response_format")
def _() -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"], "additionalProperties": False}
    formats = {"type": "json_schema", "json_schema": {"name": "person", "description": "One.", "strict": True, "schema": schema}}
    assert report("response_format", response_format=formats)["json_schema"]["schema"] == schema
    assert report("response_format", response_format={"type": "json_object"})["type"] == "json_object"
    assert report("response_format", response_format={"type": "text"}) is None


# --- tools ----------------------------------------------------------------------------------------------------------------------


@checks("chat.tools")
def _() -> None:
    strict = {**TOOL, "function": {**FUNCTION, "strict": True}}
    assert report("tools", tools=[strict]) == [TOOL]
    choice = ask(turn={"say": "Wait.", "calls": [ROME, ROME]}, tools=[TOOL])
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Wait."
    assert [(call.type, call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls] == [
        ("function", "get_weather", {"city": "Rome"})
    ] * 2
    assert len({call.id for call in choice.message.tool_calls}) == 2


@checks("chat.tools custom")
def _() -> None:
    answer = has_no_effect(create, "tools[custom]", **said(report=["tools"]), tools=[TOOL, CUSTOM])
    assert json.loads(answer.choices[0].message.content)["tools"] == [TOOL]


@checks("chat.tool_choice")
def _() -> None:
    assert report("tools", tools=[TOOL], tool_choice="none") is None
    assert report("tool_choice", tools=[TOOL], tool_choice="auto") is None
    assert report("tool_choice", tools=[TOOL], tool_choice="required") == "required"


@checks("chat.tool_choice function")
def _() -> None:
    other = {"type": "function", "function": {"name": "other"}}
    chosen = {"type": "function", "function": {"name": "get_weather"}}
    assert report("tools", tools=[TOOL, other], tool_choice=chosen) == [TOOL]


@checks("chat.tool_choice allowed_tools")
def _() -> None:
    other = {"type": "function", "function": {"name": "other"}}
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "get_weather"}}]}
    assert report("tools", tools=[TOOL, other], tool_choice={"type": "allowed_tools", "allowed_tools": allowed}) == [TOOL]


@checks("chat.tool_choice custom")
def _() -> None:
    is_refused(create, "names 'shell'", **said(say="Hi"), tools=[TOOL, CUSTOM], tool_choice={"type": "custom", "custom": {"name": "shell"}})


@checks("chat.parallel_tool_calls")
def _() -> None:
    assert report("parallel_tool_calls", tools=[TOOL], parallel_tool_calls=False) is False
    assert report("parallel_tool_calls", tools=[TOOL], parallel_tool_calls=True) is None


@checks("chat.functions")
def _() -> None:
    message = ask(turn={"calls": [ROME, ROME]}, functions=[FUNCTION])
    assert message.finish_reason == "function_call"
    assert json.loads(message.message.function_call.arguments) == {"city": "Rome"}
    assert message.message.tool_calls is None
    stream = client.chat.completions.create(**said(calls=[ROME]), functions=[FUNCTION], stream=True)
    found = [chunk.choices[0].delta.function_call for chunk in stream if chunk.choices[0].delta.function_call]
    assert (found[0].name, json.loads("".join(part.arguments for part in found))) == ("get_weather", {"city": "Rome"})


@checks("chat.function_call")
def _() -> None:
    assert report("tools", functions=[FUNCTION, {"name": "other"}], function_call={"name": "get_weather"}) == [TOOL]
    assert report("tools", functions=[FUNCTION], function_call="none") is None
    assert report("tool_choice", functions=[FUNCTION], function_call="auto") is None


# --- messages -------------------------------------------------------------------------------------------------------------------


def _message(reached: dict[str, Any], message: dict[str, Any]) -> None:
    assert report("messages", message)[0] == reached


def _call(name: str = "call_1") -> dict[str, Any]:
    return {"id": name, "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


checks.add("chat.messages system", partial(_message, {"role": "system", "content": "Be kind."}, {"role": "system", "content": "Be kind."}))
checks.add(
    "chat.messages developer", partial(_message, {"role": "system", "content": "Be"}, {"role": "developer", "content": [text("Be")]})
)
checks.add("chat.messages user", partial(_message, {"role": "user", "content": "Hi"}, {"role": "user", "content": [text("Hi")]}))
checks.add("chat.messages assistant", partial(_message, {"role": "assistant", "content": "Yes"}, {"role": "assistant", "content": "Yes"}))
refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
checks.add("chat.messages content refusal", partial(_message, {"role": "assistant", "content": "No."}, refusal))
checks.add("chat.messages.refusal", partial(_message, {"role": "assistant", "content": "No."}, {"role": "assistant", "refusal": "No."}))


@checks("chat.messages", "chat.messages.tool_calls", "chat.messages tool")
def _() -> None:
    called = {"role": "assistant", "tool_calls": [_call("call_1"), _call("call_2")]}
    results = [{"role": "tool", "tool_call_id": f"call_{n}", "content": content} for n, content in enumerate(["18", [text("19")]], 1)]
    answer = works(create, model=SCRIPTED, messages=[{"role": "user", "content": script(calls=[ROME])}, called, *results], tools=[TOOL])
    assert answer.choices[0].message.content == "Results: 18, 19; images: 0"


@checks("chat.messages content image_url")
def _() -> None:
    picture = {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}
    reached = report("messages", {"role": "user", "content": [text("Look: "), picture]})[0]["content"]
    assert reached[0] == text("Look: ")
    assert reached[1]["image_url"]["url"].startswith("data:image/png;base64,")


@checks("chat.messages tool image_url")
def _() -> None:
    content = [text("A map"), {"type": "image_url", "image_url": {"url": PNG}}]
    messages = [
        {"role": "user", "content": script(calls=[ROME])},
        {"role": "assistant", "tool_calls": [_call()]},
        {"role": "tool", "tool_call_id": "call_1", "content": content},
    ]
    answer = works(create, model=SCRIPTED, messages=messages, tools=[TOOL])
    assert answer.choices[0].message.content == "Results: A map; images: 1"


@checks("chat.messages.name")
def _() -> None:
    has_no_effect(create, "messages.name", **said({"role": "user", "content": "Hi", "name": "ada"}, say="Hi"))


@checks("chat.messages content input_audio")
def _() -> None:
    audio = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    is_refused(create, "audio", **said({"role": "user", "content": [audio]}, say="Hi"), param="messages[0].content[0]")


@checks("chat.messages content file")
def _() -> None:
    file = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}}
    is_refused(create, "files are not supported", **said({"role": "user", "content": [file]}, say="Hi"), param="messages[0].content[0]")


@checks("chat.messages.audio")
def _() -> None:
    spoken = {"role": "assistant", "audio": {"id": "audio_1"}}
    is_refused(create, "models only read text and images", **said(spoken, say="Hi"), param="messages[0].audio")


@checks("chat.messages.function_call", "chat.messages function")
def _() -> None:
    called = {"role": "assistant", "content": None, "function_call": {"name": "get_weather", "arguments": "{}"}}
    result = {"role": "function", "name": "get_weather", "content": "18"}
    messages = [{"role": "user", "content": script(calls=[ROME])}, called, result]
    answer = create(model=SCRIPTED, messages=messages, functions=[FUNCTION]).parse()
    assert answer.choices[0].message.content == "Results: 18; images: 0"


# --- fields without effect, and refused ones ------------------------------------------------------------------------------------


def _ignored(name: str, value: Any) -> None:
    has_no_effect(create, name, **said(say="Hi"), **{name: value})


def _refused(name: str, value: Any, sentence: str) -> None:
    is_refused(create, sentence, **said(say="Hi"), **{name: value}, param=name)


IGNORED = {
    **NO_EFFECT,
    "store": True,
    "verbosity": "low",
    "prediction": {"type": "content", "content": "Hi"},
    "web_search_options": {"search_context_size": "low"},
}
for name, value in IGNORED.items():
    checks.add(f"chat.{name}", partial(_ignored, name, value))


@checks("chat.service_tier")
def _() -> None:
    assert works(create, **said(say="Hi"), service_tier="flex").service_tier == "flex"
    assert works(create, **said(say="Hi"), service_tier="auto").service_tier == "default"


checks.add("chat.audio", partial(_refused, "audio", {"voice": "alloy", "format": "wav"}, "models only generate text"))
checks.add("chat.moderation", partial(_refused, "moderation", {"model": "omni-moderation-latest"}, "policies decide"))


@checks("chat.modalities")
def _() -> None:
    ask(modalities=["text"])
    _refused("modalities", ["text", "audio"], "models only generate text")


@checks("chat.metadata")
def _() -> None:
    assert ask(metadata={"conversation_id": "c1", "project": "x"}).message.content == "Hello."


@checks("chat extra_body")
def _() -> None:
    assert report("top_k", extra_body={"top_k": 5}) == 5
    has_no_effect(create, "next_year", **said(say="Hi"), extra_body={"next_year": 1})
