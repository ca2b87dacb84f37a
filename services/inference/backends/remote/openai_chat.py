"""A job as the body of OpenAI's POST /chat/completions, in the dialect of the server that gets it.  Pure.

Only what the caller asked for is sent: a server's own defaults suit its models better than ours. What was asked for and the
server's API has no word for is refused, and never dropped in silence.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from services.inference.backends.remote.event_stream import UNREADABLE
from services.inference.upstreams import Dialect
from shared import errors
from shared.api.generation import ChatMessage, FormatKind, OutputFormat, Sampling, Tool, ToolCall, ToolChoice

JsonObject = dict[str, object]

#: Fields of Sampling that are one number, one flag or one table here and there.
_PLAIN = (
    "temperature", "top_p", "top_k", "min_p", "seed", "repeat_penalty", "frequency_penalty", "presence_penalty", "logit_bias", "ignore_eos",
    "n",
)  # fmt: skip
#: Field -> the value that changes nothing; where a server lacks the field, it is left out rather than refused.
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
class _Words:
    """How one kind of server calls things."""

    #: Field of Sampling -> its name there. What is missing is not understood there.
    fields: Mapping[str, str]
    max_tokens: str = "max_tokens"
    #: Field -> how its value must be changed.
    values: Mapping[str, Callable[[object], object]] = field(default_factory=dict)
    #: The field that takes a GBNF grammar; empty where there is none.
    grammar: str = ""


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_OPENAI = _same("temperature", "top_p", "seed", "frequency_penalty", "presence_penalty", "logit_bias", "n")
_LOCAL = _OPENAI | _same("top_k", "min_p", "ignore_eos")

_WORDS: Mapping[Dialect, _Words] = {
    # Its reasoning models refuse max_tokens, the older name; servers that copy it often know no other.
    Dialect.OPENAI: _Words(_OPENAI, max_tokens="max_completion_tokens"),
    Dialect.COMPATIBLE: _Words(_OPENAI),
    # Before 0.9, "all tokens" was written -1 only.
    Dialect.VLLM: _Words(_LOCAL | {"repeat_penalty": "repetition_penalty"}, values={"top_k": lambda value: value or -1}),
    # Its seed has 32 bits, of which all ones means "any".
    Dialect.LLAMA_CPP: _Words(
        _LOCAL | _same("repeat_penalty"), values={"seed": lambda value: _whole(value) % 0xFFFF_FFFF}, grammar="grammar"
    ),
    # It reads n, logit_bias and presence_penalty and does not use them.
    Dialect.TGI: _Words(_same("temperature", "top_p", "seed", "frequency_penalty")),
    Dialect.AIMESH: _Words(_LOCAL | _same("repeat_penalty")),
}


def body(name: str, dialect: Dialect, model: str, messages: tuple[ChatMessage, ...], asked: Sampling, *, max_tokens: int) -> bytes:
    """``name`` is the server's in messages, ``model`` the server's own name for it. Raises BadRequest, which names the field."""
    words = _WORDS[dialect]
    if asked.raw:
        raise refused(name, "is asked for chats alone", "raw")
    request: JsonObject = {
        "model": model,
        "messages": [_message(message) for message in messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        words.max_tokens: max_tokens,
        **_plain(name, dialect, words, asked),
        **_format(name, dialect, words, asked.format),
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
    """A tool in the form that OpenAI's and Ollama's API share."""
    parameters = decoded(f"tools[{position}].parameters", offered.parameters)
    return {"type": "function", "function": {"name": offered.name, "description": offered.description, "parameters": parameters}}


def decoded(field: str, text: str) -> JsonObject:
    """The JSON object in ``text``. Raises BadRequest, which names the field."""
    try:
        return msgspec.json.decode(text, type=JsonObject)
    except UNREADABLE as error:
        raise errors.BadRequest(f"{field} is not the text of a JSON object: {str(error)[:200]}") from error


def refused(name: str, what: str, field: str) -> errors.BadRequest:
    return errors.BadRequest(f"{field} cannot be passed on: {name} {what}", hint="leave it out, or ask for a model of another backend")


def _plain(name: str, dialect: Dialect, words: _Words, asked: Sampling) -> JsonObject:
    request: JsonObject = {}
    for asked_field in _PLAIN:
        value = getattr(asked, asked_field)
        if value is None or (asked_field in ("logit_bias", "ignore_eos") and not value):
            continue
        if (there := words.fields.get(asked_field)) is not None:
            adapt = words.values.get(asked_field)
            request[there] = value if adapt is None else adapt(value)
        elif value != _NEUTRAL.get(asked_field):
            raise refused(name, f"({dialect}) does not have it", asked_field)
    if dialect is Dialect.TGI and request.get("top_p") == 1:
        # It refuses the value that changes nothing.
        del request["top_p"]
    return request


def _format(name: str, dialect: Dialect, words: _Words, asked: OutputFormat | None) -> JsonObject:
    if asked is None:
        return {}
    if asked.kind is FormatKind.GBNF:
        if not words.grammar:
            raise refused(name, f"({dialect}) takes no GBNF grammar", "format")
        return {words.grammar: asked.text}
    schema: JsonObject = {"type": "object"} if asked.kind is FormatKind.JSON else decoded("format.text", asked.text)
    if dialect is Dialect.TGI:
        return {"response_format": {"type": "json_object", "value": schema}}
    if asked.kind is FormatKind.JSON:
        return {"response_format": {"type": "json_object"}}
    # strict: without it OpenAI takes the schema for a wish.
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}}


def _tools(asked: Sampling) -> JsonObject:
    if not asked.tools:
        return {}
    tools = [tool(position, offered) for position, offered in enumerate(asked.tools)]
    return {"tools": tools} if asked.tool_choice is ToolChoice.AUTO else {"tools": tools, "tool_choice": asked.tool_choice}


def _message(message: ChatMessage) -> JsonObject:
    written: JsonObject = {"role": message.role, "content": message.content}
    if message.tool_calls:
        # An assistant that only called tools said nothing, which is null and not an empty text.
        written |= {"content": message.content or None, "tool_calls": [_call(call) for call in message.tool_calls]}
    if message.tool_call_id is not None:
        written["tool_call_id"] = message.tool_call_id
    return written


def _call(call: ToolCall) -> JsonObject:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _whole(value: object) -> int:
    assert isinstance(value, int)
    return value
