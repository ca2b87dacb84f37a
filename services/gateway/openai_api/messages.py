"""The messages, tools and output formats of OpenAI's APIs, converted for a worker. Pure."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from services.gateway.admission.prompt_admission import BadField
from shared.api.generation import ChatMessage, FormatKind, OutputFormat, Tool, ToolCall, ToolChoice

#: Roles that a model here knows under another name.
_ROLES = {"developer": "system"}


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    text: str


class RefusalPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="refusal"):
    refusal: str


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
    #: May be null beside tool calls or a refusal. Text parts are put together.
    content: str | tuple[TextPart | RefusalPart, ...] | None = None
    tool_calls: tuple[ToolCallBody, ...] = ()
    tool_call_id: str | None = None
    #: An answer that a model once gave.
    refusal: str | None = None
    #: Taken and ignored: models are shown roles, not names.
    name: str | None = None


#: Fields of a message that clients send back as they got them, as null or empty.
_EMPTY = ("refusal", "annotations", "audio", "function_call", "tool_calls", "tool_call_id", "reasoning_content")
#: What OpenAI's Python client adds to an answer for its user, and sends along when the answer is sent back.
_PARSED, _PARSED_ARGUMENTS = "parsed", "parsed_arguments"
_TEXTS = ("text", "refusal", None)


def tidy(messages: object) -> object:
    """Without fields that say nothing. Raises BadField for what is no text."""
    if not isinstance(messages, list):
        return messages
    return [_tidy(position, message) if isinstance(message, dict) else message for position, message in enumerate(messages)]


def to_messages(messages: tuple[ChatBodyMessage, ...]) -> tuple[ChatMessage, ...]:
    """Raises BadField."""
    if not messages:
        raise BadField("messages", "is empty")
    return tuple(_message(position, message) for position, message in enumerate(messages))


def _tidy(position: int, message: dict[str, object]) -> dict[str, object]:
    tidied = {name: value for name, value in message.items() if name != _PARSED and not (name in _EMPTY and value in (None, [], ""))}
    if tidied.get("function_call") is not None or message.get("role") == "function":
        raise BadField(f"messages[{position}]", "is of an older form; use tool_calls and the role tool")
    if isinstance(calls := tidied.get("tool_calls"), list):
        tidied["tool_calls"] = [_call(call) for call in calls]
    if isinstance(content := tidied.get("content"), list):
        tidied["content"] = [_part(f"messages[{position}].content[{place}]", part) for place, part in enumerate(content)]
    return tidied


def _call(call: object) -> object:
    if not isinstance(call, dict) or not isinstance(function := call.get("function"), dict):
        return call
    return {**call, "function": {name: value for name, value in function.items() if name != _PARSED_ARGUMENTS}}


def _part(field: str, part: object) -> object:
    if not isinstance(part, dict):
        return part
    if part.get("type") not in _TEXTS:
        raise BadField(field, "must be a text part; images, sounds and files are not taken")
    # Where OpenAI's cache of prompts may cut; here the cache finds its places by itself.
    return {name: value for name, value in part.items() if name != "prompt_cache_breakpoint"}


def _message(position: int, message: ChatBodyMessage) -> ChatMessage:
    role = _ROLES.get(message.role, message.role)
    if role == "tool" and not message.tool_call_id:
        raise BadField(f"messages[{position}].tool_call_id", "is missing; it says which call this answers")
    calls = tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls)
    return ChatMessage(role, _content(position, message), calls, message.tool_call_id)


def _content(position: int, message: ChatBodyMessage) -> str:
    if message.content is None:
        if not message.tool_calls and message.refusal is None:
            raise BadField(f"messages[{position}].content", "is missing")
        return message.refusal or ""
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text if isinstance(part, TextPart) else part.refusal for part in message.content)


#: A schema is passed on as it came, to be read by whoever knows schemas.
JsonObject: TypeAlias = dict[str, Any]


class FunctionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    description: str | None = None
    #: A JSON schema.
    parameters: JsonObject | None = None
    #: Taken and ignored: where a call is asked for, its arguments always fit.
    strict: bool | None = None


class ToolBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    function: FunctionBody
    type: Literal["function"] = "function"


class NamedFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class NamedTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    function: NamedFunction


class AllowedTools(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mode: Literal["auto", "required"]
    tools: tuple[NamedTool, ...]


class AllowedToolsChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"):
    allowed_tools: AllowedTools


class SchemaBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str = ""
    description: str | None = None
    schema: JsonObject | bool = True
    #: Taken and ignored: an answer always fits its schema.
    strict: bool | None = None


Chosen = tuple[tuple[Tool, ...], ToolChoice]


def tool(name: str, description: str | None, parameters: JsonObject | None) -> Tool:
    return Tool(name, description or "", json_text(parameters or {}))


def ensure_functions(tools: object) -> None:
    """Raises BadField for a tool of another kind: those run at OpenAI's."""
    for position, one in enumerate(tools if isinstance(tools, list) else ()):
        if isinstance(one, dict) and one.get("type", "function") != "function":
            raise BadField(f"tools[{position}].type", "must be function; other tools are not there, offer a function of your own")


def choose(tools: tuple[Tool, ...], choice: str | None) -> Chosen:
    """Which may be called, and whether one must be."""
    chosen = ToolChoice(choice or ToolChoice.AUTO)
    return (() if chosen is ToolChoice.NONE else tools), chosen


def choose_of(tools: tuple[Tool, ...], names: Sequence[str], mode: str) -> Chosen:
    """Raises BadField for a name that is not among the tools."""
    for name in names:
        if not any(tool.name == name for tool in tools):
            raise BadField("tool_choice", f"names {name[:64]!r}, which is not among the tools")
    return tuple(tool for tool in tools if tool.name in names), ToolChoice(mode)


def json_format(kind: Literal["text", "json_object", "json_schema"], schema: JsonObject | bool | None) -> OutputFormat | None:
    if kind == "text":
        return None
    if kind == "json_object":
        return OutputFormat(FormatKind.JSON)
    return OutputFormat(FormatKind.JSON_SCHEMA, json_text(schema))


def json_text(value: object) -> str:
    return msgspec.json.encode(value).decode()
