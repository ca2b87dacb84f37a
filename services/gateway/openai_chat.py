"""A request to OpenAI's chat API, and what of it this gateway takes. Pure.

A parameter that would change the answer and is not built is refused; one that changes nothing is let through, because
clients and frameworks send such ones unasked.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import msgspec

from services.gateway import bodies
from services.gateway.admission import BadField
from shared.api.gateway import InferenceRequest
from shared.api.generation import ChatMessage, FormatKind, OutputFormat, Tool, ToolCall, ToolChoice
from shared.types import ModelName

#: A schema is passed on as it came, to be read by whoever knows schemas.
JsonObject: TypeAlias = dict[str, Any]

#: No vocabulary has a million million tokens, and no number of a thousand digits is made of a key.
_TOKEN_DIGITS = 12


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: str
    text: str | None = None


class FunctionCallBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    #: JSON.
    arguments: str


class ToolCallBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    function: FunctionCallBody
    type: Literal["function"] = "function"
    #: Clients that put a streamed answer together leave it in.
    index: int | None = None


class ChatBodyMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: system (or developer, its newer name), user, assistant or tool.
    role: str
    #: May be null beside tool calls.
    content: str | tuple[TextPart, ...] | None = None
    tool_calls: tuple[ToolCallBody, ...] = ()
    tool_call_id: str | None = None


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool = False
    include_obfuscation: bool = False


class FunctionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    description: str | None = None
    #: A JSON schema.
    parameters: JsonObject | None = None
    strict: bool | None = None


class ToolBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    function: FunctionBody
    type: Literal["function"] = "function"


class NamedFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class NamedTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    function: NamedFunction
    type: Literal["function"] = "function"


class SchemaBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str = ""
    description: str | None = None
    schema: JsonObject | bool = True
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaBody | None = None


class ChatBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Beyond these, parameters of OpenAI's that change nothing here are taken and ignored: user, metadata, store=false, …"""

    messages: tuple[ChatBodyMessage, ...]
    model: ModelName | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    #: Token ids, as text, and what is added to their logits.
    logit_bias: dict[str, float] | None = None
    n: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    tools: tuple[ToolBody, ...] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    #: These five are not OpenAI's, but of the local engines.
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    ignore_eos: bool = False
    #: GBNF.
    grammar: str | None = None
    stop: str | tuple[str, ...] | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None


def _any(_value: object) -> bool:
    return True


def _one_of(*values: object) -> Callable[[object], bool]:
    # `1 == True` in Python, but not in JSON.
    return lambda value: any(type(value) is type(good) and value == good for good in values)


#: Parameter of OpenAI's -> the values that change nothing here. Null always counts as absent.
HARMLESS: Mapping[str, Callable[[object], bool]] = {
    "user": _any,
    "metadata": _any,
    "safety_identifier": _any,
    "prompt_cache_key": _any,
    "prompt_cache_retention": _any,
    "parallel_tool_calls": _any,
    "store": _one_of(False),
    "functions": _one_of([]),
    "function_call": _one_of("none", "auto"),
    "service_tier": _one_of("auto", "default"),
    "modalities": _one_of(["text"]),
    "reasoning_effort": _one_of("none"),
    "verbosity": _one_of("medium"),
    "audio": _one_of(),
    "prediction": _one_of(),
    "web_search_options": _one_of(),
    "moderation": _one_of(),
}

#: Fields of a message that clients send back as they got them, as null or empty.
_EMPTY_IN_MESSAGES = ("refusal", "annotations", "audio", "function_call", "tool_calls", "tool_call_id", "reasoning_content", "name")


def read(body: bytes) -> ChatBody:
    """Raises BadRequest that names the field."""
    found = bodies.read_object(body)
    for name, is_harmless in HARMLESS.items():
        if name not in found:
            continue
        value = found.pop(name)
        if value is not None and not is_harmless(value):
            raise BadField(name, "is not supported with this value; leave it out")
    if isinstance(messages := found.get("messages"), list):
        found["messages"] = [_without_empty(message) if isinstance(message, dict) else message for message in messages]
    chat = bodies.convert(found, ChatBody)
    if chat.stream_options is not None and not chat.stream:
        raise BadField("stream_options", "is only for stream=true")
    return chat


def to_request(chat: ChatBody) -> InferenceRequest:
    """Raises BadRequest that names the field."""
    if not chat.messages:
        raise BadField("messages", "is empty")
    if chat.max_tokens is not None and chat.max_completion_tokens not in {None, chat.max_tokens}:
        raise BadField("max_tokens", "and max_completion_tokens differ; give one of them")
    tools, tool_choice = _tools(chat)
    return InferenceRequest(
        messages=tuple(_message(position, message) for position, message in enumerate(chat.messages)),
        model=chat.model,
        max_tokens=chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens,
        temperature=chat.temperature,
        top_p=chat.top_p,
        top_k=chat.top_k,
        stop=(chat.stop,) if isinstance(chat.stop, str) else chat.stop or (),
        seed=chat.seed,
        min_p=chat.min_p,
        repeat_penalty=chat.repeat_penalty,
        frequency_penalty=chat.frequency_penalty,
        presence_penalty=chat.presence_penalty,
        logit_bias=_bias(chat.logit_bias or {}),
        ignore_eos=chat.ignore_eos,
        n=chat.n,
        top_logprobs=_top_logprobs(chat),
        format=_format(chat),
        tools=tools,
        tool_choice=tool_choice,
    )


def _top_logprobs(chat: ChatBody) -> int | None:
    if chat.top_logprobs and not chat.logprobs:
        raise BadField("top_logprobs", "is only for logprobs=true")
    return (chat.top_logprobs or 0) if chat.logprobs else None


def _bias(named: dict[str, float]) -> dict[int, float]:
    if not all(token.isascii() and token.isdecimal() and len(token) <= _TOKEN_DIGITS for token in named):
        raise BadField("logit_bias", "must have token ids as its keys")
    return {int(token): value for token, value in named.items()}


def _format(chat: ChatBody) -> OutputFormat | None:
    if chat.grammar is not None:
        if chat.response_format is not None:
            raise BadField("grammar", "and response_format exclude each other; give one of them")
        return OutputFormat(FormatKind.GBNF, chat.grammar)
    asked = chat.response_format
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return OutputFormat(FormatKind.JSON)
    if asked.json_schema is None:
        raise BadField("response_format.json_schema", "is missing")
    return OutputFormat(FormatKind.JSON_SCHEMA, _json_text(asked.json_schema.schema))


def _tools(chat: ChatBody) -> tuple[tuple[Tool, ...], ToolChoice]:
    """Which may be called, and whether one must be."""
    tools = tuple(
        Tool(tool.function.name, tool.function.description or "", _json_text(tool.function.parameters or {})) for tool in chat.tools or ()
    )
    if isinstance(chat.tool_choice, NamedTool):
        name = chat.tool_choice.function.name
        chosen = tuple(tool for tool in tools if tool.name == name)
        if not chosen:
            raise BadField("tool_choice", f"names {name[:64]!r}, which is not among the tools")
        return chosen, ToolChoice.REQUIRED
    choice = ToolChoice(chat.tool_choice or ToolChoice.AUTO)
    return (() if choice is ToolChoice.NONE else tools), choice


def _json_text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _message(position: int, message: ChatBodyMessage) -> ChatMessage:
    role = "system" if message.role == "developer" else message.role
    if role == "tool" and not message.tool_call_id:
        raise BadField(f"messages[{position}].tool_call_id", "is missing; it says which call this answers")
    calls = tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls)
    return ChatMessage(role, _content(position, message), calls, message.tool_call_id)


def _content(position: int, message: ChatBodyMessage) -> str:
    if message.content is None:
        if not message.tool_calls:
            raise BadField(f"messages[{position}].content", "is missing")
        return ""
    if isinstance(message.content, str):
        return message.content
    for part_position, part in enumerate(message.content):
        if part.type != "text" or part.text is None:
            raise BadField(f"messages[{position}].content[{part_position}]", "must be a text part; other media are not supported")
    return "".join(part.text or "" for part in message.content)


def _without_empty(message: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in message.items() if not (name in _EMPTY_IN_MESSAGES and value in (None, [], ""))}
