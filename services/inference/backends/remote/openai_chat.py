"""Builds the request for OpenAI's POST /chat/completions in the dialect of a server.  Pure.

It sends only parameters that the caller set: a server's defaults suit its models better than ours. A parameter that the server
doesn't support is refused, never silently dropped.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from services.inference.backends.remote.event_stream import UNREADABLE
from services.inference.upstreams import Dialect
from shared import errors
from shared.api.generation import ChatMessage, FormatKind, OutputFormat, Sampling, Tool, ToolCall, ToolChoice

JsonObject = dict[str, object]

#: Fields of Sampling that are passed on as they are, apart from their name.
_PLAIN = (
    "temperature", "top_p", "top_k", "min_p", "seed", "repeat_penalty", "frequency_penalty", "presence_penalty", "logit_bias", "ignore_eos",
    "n",
)  # fmt: skip
#: Field -> the value without effect, which is left out rather than refused if a server lacks the field.
_NEUTRAL: Mapping[str, object] = {
    "top_k": 0,
    "min_p": 0,
    "repeat_penalty": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "ignore_eos": False,
    "n": 1,
}


@dataclass(frozen=True, slots=True)
class ServerFields:
    """The parameters of one kind of server."""

    #: Field of Sampling -> the server's name for it. Others are not supported.
    fields: Mapping[str, str]
    max_tokens: str = "max_tokens"
    #: Field -> conversion of its value; None leaves it out.
    values: Mapping[str, Callable[[object], object]] = field(default_factory=dict)
    #: The field for a GBNF grammar; empty if there is none.
    grammar: str = ""


def same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_OPENAI = same("temperature", "top_p", "seed", "frequency_penalty", "presence_penalty", "logit_bias", "n")
_LOCAL = _OPENAI | same("top_k", "min_p", "ignore_eos")

_DIALECTS: Mapping[Dialect, ServerFields] = {
    # OpenAI's reasoning models refuse the older name, max_tokens; many compatible servers only know that one.
    Dialect.OPENAI: ServerFields(_OPENAI, max_tokens="max_completion_tokens"),
    Dialect.COMPATIBLE: ServerFields(_OPENAI),
    # Before vLLM 0.9, only -1 meant "all tokens".
    Dialect.VLLM: ServerFields(_LOCAL | {"repeat_penalty": "repetition_penalty"}, values={"top_k": lambda value: value or -1}),
    # llama.cpp's seed has 32 bits; all ones mean a random seed.
    Dialect.LLAMA_CPP: ServerFields(
        _LOCAL | same("repeat_penalty"), values={"seed": lambda value: whole(value) % 0xFFFF_FFFF}, grammar="grammar"
    ),
    # TGI accepts n, logit_bias and presence_penalty but ignores them. It refuses a top_p of 1, which has no effect.
    Dialect.TGI: ServerFields(
        same("temperature", "top_p", "seed", "frequency_penalty"), values={"top_p": lambda value: None if value == 1 else value}
    ),
    Dialect.AIMESH: ServerFields(_LOCAL | same("repeat_penalty")),
}


def body(name: str, dialect: Dialect, model: str, messages: tuple[ChatMessage, ...], asked: Sampling, *, max_tokens: int) -> bytes:
    """``name`` is the server's name in error messages, ``model`` its name of the model. Raises BadRequest, which names the field."""
    names = _DIALECTS[dialect]
    if asked.raw:
        raise refused(name, "is only used for chats", "raw")
    request: JsonObject = {
        "model": model,
        "messages": [_message(message) for message in messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        names.max_tokens: max_tokens,
        **plain(name, f"({dialect}) does not support it", names, asked),
        # A required call is the whole answer, so the format does not matter.
        **_format(name, dialect, names, None if asked.tool_choice is ToolChoice.REQUIRED else asked.format),
        **_tools(asked),
    }
    if asked.stop:
        request["stop"] = list(asked.stop)
    if asked.top_logprobs is not None:
        request["logprobs"] = True
        if asked.top_logprobs:
            request["top_logprobs"] = asked.top_logprobs
    return msgspec.json.encode(request)


def tool(position: int, offered: Tool) -> JsonObject:
    """Convert a tool to the form of OpenAI's and Ollama's API."""
    parameters = decoded(f"tools[{position}].parameters", offered.parameters)
    return {"type": "function", "function": {"name": offered.name, "description": offered.description, "parameters": parameters}}


def decoded(field: str, text: str) -> JsonObject:
    """Parse a JSON object. Raises BadRequest, which names the field."""
    try:
        return msgspec.json.decode(text, type=JsonObject)
    except UNREADABLE as error:
        raise errors.BadRequest(f"{field} is not a JSON object: {str(error)[:200]}") from error


def refused(name: str, what: str, field: str) -> errors.BadRequest:
    return errors.BadRequest(f"{field} cannot be passed on: {name} {what}", hint="leave it out, or use a model of another backend")


def plain(name: str, lacks: str, names: ServerFields, asked: Sampling) -> JsonObject:
    """Convert the fields of Sampling that need no structure. Raises BadRequest, which says what the server ``lacks``."""
    request: JsonObject = {}
    for asked_field in _PLAIN:
        value = getattr(asked, asked_field)
        if value is None or (asked_field in ("logit_bias", "ignore_eos") and not value):
            continue
        if (there := names.fields.get(asked_field)) is not None:
            adapt = names.values.get(asked_field)
            if (adapted := value if adapt is None else adapt(value)) is not None:
                request[there] = adapted
        elif value != _NEUTRAL.get(asked_field):
            raise refused(name, lacks, asked_field)
    return request


def _format(name: str, dialect: Dialect, names: ServerFields, asked: OutputFormat | None) -> JsonObject:
    if asked is None:
        return {}
    if asked.kind is FormatKind.GBNF:
        if not names.grammar:
            raise refused(name, f"({dialect}) does not support GBNF grammars", "format")
        return {names.grammar: asked.text}
    schema: JsonObject = {"type": "object"} if asked.kind is FormatKind.JSON else decoded("format.text", asked.text)
    if dialect is Dialect.TGI:
        return {"response_format": {"type": "json_object", "value": schema}}
    if asked.kind is FormatKind.JSON:
        return {"response_format": {"type": "json_object"}}
    # Without strict, OpenAI may ignore the schema.
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}}


def _tools(asked: Sampling) -> JsonObject:
    if not asked.tools:
        return {}
    tools = [tool(position, offered) for position, offered in enumerate(asked.tools)]
    return {"tools": tools} if asked.tool_choice is ToolChoice.AUTO else {"tools": tools, "tool_choice": asked.tool_choice}


def _message(message: ChatMessage) -> JsonObject:
    written: JsonObject = {"role": message.role, "content": message.content}
    if message.tool_calls:
        # The API wants null, not an empty text, from an assistant that only called tools.
        written |= {"content": message.content or None, "tool_calls": [_call(call) for call in message.tool_calls]}
    if message.tool_call_id is not None:
        written["tool_call_id"] = message.tool_call_id
    return written


def _call(call: ToolCall) -> JsonObject:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def whole(value: object) -> int:
    assert isinstance(value, int)
    return value
