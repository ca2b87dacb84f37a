"""Converts a chat and its tools to the form of Hugging Face's chat templates.  Pure.

Every text of a caller passes through ``mark``, also inside JSON, because decoding `"\\u003c|im_end|>"` also produces a special token.
"""

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from shared import errors
from shared.api.generation import ChatMessage, Tool, ToolCall

#: Depth of a caller's JSON, over which C code recurses. Real schemas have about ten levels.
MAX_JSON_DEPTH = 32
#: Templates of Mistral's models require call ids of exactly so many letters and digits.
_SHORT_ID_CHARACTERS = 9

#: For probing whether a template supports tools, and how it writes their calls.
PROBE_TOOL = Tool(
    "mesh_probe_tool", "Reads a probe.", '{"type":"object","properties":{"probe_key":{"type":"string"}},"required":["probe_key"]}'
)

#: The instructions for a model whose template has none; together under 100 tokens.
_FUNCTIONS = "You can call these functions. Their parameters are JSON schemas:"
_HOW_TO_CALL = 'To call one, answer only with JSON like this: {"name": "the function\'s name", "arguments": {"a parameter": "its value"}}'

Row = dict[str, object]
Mark = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Habits:
    """A template's deviations from the convention; `prompt` finds them by trying."""

    #: The content of an assistant's message with only calls is None instead of an empty text.
    none_without_text: bool = False
    #: Call ids have nine letters and digits.
    short_ids: bool = False
    #: Arguments are JSON text instead of objects.
    arguments_as_text: bool = False


def message_rows(messages: tuple[ChatMessage, ...], mark: Mark, habits: Habits) -> list[Row]:
    """Raises BadRequest if a call's arguments are nested too deep."""
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return [_message_row(position, message, names, mark, habits) for position, message in enumerate(messages)]


def tool_rows(tools: tuple[Tool, ...], mark: Mark) -> list[Row]:
    """Raises BadRequest for parameters that are not a JSON object, and for two tools with the same name."""
    seen: set[str] = set()
    rows: list[Row] = []
    for position, tool in enumerate(tools):
        if tool.name in seen:
            raise errors.BadRequest(f"tools[{position}].function.name is used by another tool", hint="give each tool a unique name")
        seen.add(tool.name)
        parameters = _marked(parameters_of(position, tool), mark, f"tools[{position}].function.parameters")
        function: Row = {"name": mark(tool.name), "description": mark(tool.description), "parameters": parameters}
        rows.append({"type": "function", "function": function})
    return rows


def as_text(messages: tuple[ChatMessage, ...], tools: tuple[Tool, ...], *, with_system: bool) -> tuple[ChatMessage, ...]:
    """Write tools, calls and results as plain messages, for a template without tools; calls as `ToolStyle.GENERIC` has them.

    The tools are in a message of the system, or of the user unless ``with_system``. Results become messages of the user. Neighbors with
    the same role are joined, because templates may require that roles alternate. Raises BadRequest like ``tool_rows``.
    """
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    plain = [_plain_message(message, names) for message in messages]
    if tools:
        functions = [msgspec.json.encode(row["function"]).decode() for row in tool_rows(tools, str)]
        plain.insert(0, ChatMessage("system" if with_system else "user", "\n".join((_FUNCTIONS, *functions, _HOW_TO_CALL))))
    return tuple(
        ChatMessage(role, "\n\n".join(message.content for message in neighbors))
        for role, neighbors in itertools.groupby(plain, key=lambda message: message.role)
    )


def _plain_message(message: ChatMessage, names: dict[str, str]) -> ChatMessage:
    if message.role == "tool":
        return ChatMessage("user", f"Result of {names.get(message.tool_call_id or '', 'the function')}: {message.content}")
    calls = [f'{{"name": {msgspec.json.encode(call.name).decode()}, "arguments": {call.arguments or "{}"}}}' for call in message.tool_calls]
    return ChatMessage(message.role, "\n".join(text for text in (message.content, *calls) if text))


def parameters_of(position: int, tool: Tool) -> Row:
    """Return the JSON schema of a tool's parameters, or of an empty object if it has none. Raises BadRequest."""
    try:
        decoded = msgspec.json.decode(tool.parameters or "{}", type=dict[str, object])
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise errors.BadRequest(f"tools[{position}].function.parameters must be a JSON schema of an object: {error}") from None
    return decoded or {"type": "object", "properties": {}}


def _message_row(position: int, message: ChatMessage, names: dict[str, str], mark: Mark, habits: Habits) -> Row:
    bare = habits.none_without_text and message.tool_calls and not message.content
    row: Row = {"role": message.role, "content": None if bare else mark(message.content)}
    if message.tool_calls:
        row["tool_calls"] = [
            _call_row(f"messages[{position}].tool_calls[{at}]", call, mark, habits) for at, call in enumerate(message.tool_calls)
        ]
    if message.tool_call_id is not None:
        row["tool_call_id"] = mark(_identity(message.tool_call_id, habits))
        if message.tool_call_id in names:
            row["name"] = mark(names[message.tool_call_id])
    return row


def _call_row(place: str, call: ToolCall, mark: Mark, habits: Habits) -> Row:
    arguments = mark(call.arguments) if habits.arguments_as_text else _marked(_arguments_of(call), mark, f"{place}.function.arguments")
    function: Row = {"name": mark(call.name), "arguments": arguments}
    return {"id": mark(_identity(call.id, habits)), "type": "function", "function": function}


def _arguments_of(call: ToolCall) -> object:
    try:
        return msgspec.json.decode(call.arguments or "{}", type=dict[str, object])
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        # A model wrote these; a template that accepts text shows them unchanged.
        return call.arguments


def _identity(call_id: str, habits: Habits) -> str:
    """Shorten an id if needed, so that messages still refer to the same call."""
    if not habits.short_ids or (len(call_id) == _SHORT_ID_CHARACTERS and call_id.isascii() and call_id.isalnum()):
        return call_id
    return hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:_SHORT_ID_CHARACTERS]


def _marked(value: object, mark: Mark, place: str, depth: int = 0) -> object:
    if depth > MAX_JSON_DEPTH:
        raise errors.BadRequest(f"{place} is nested deeper than {MAX_JSON_DEPTH} levels")
    match value:
        case str():
            return mark(value)
        case list():
            return [_marked(item, mark, place, depth + 1) for item in value]
        case dict():
            return {mark(key): _marked(item, mark, place, depth + 1) for key, item in value.items()}
        case _:
            return value
