"""A chat and its tools as chat templates read them: the rows of Hugging Face's convention.  Pure.

Every text that came from a caller passes through ``mark``, also the ones inside JSON: decoding `"\\u003c|im_end|>"` writes
a special token as surely as typing it does.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from shared import errors
from shared.api.generation import ChatMessage, Tool, ToolCall

#: What a caller's JSON may nest; also what `template_sandbox` measures and C code recurses over. Real schemas have ten levels.
MAX_JSON_DEPTH = 32
#: What the templates of Mistral's models take for the id of a call: this many letters and digits, nothing else.
_SHORT_ID_CHARACTERS = 9

#: A tool that nobody has, to find out whether a template shows tools, and how it writes their calls.
PROBE_TOOL = Tool(
    "mesh_probe_tool", "Reads a probe.", '{"type":"object","properties":{"probe_key":{"type":"string"}},"required":["probe_key"]}'
)

Row = dict[str, object]
Mark = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Habits:
    """What a template wants otherwise than the convention has it; `prompt` finds out by trying."""

    #: An assistant's message that is nothing but calls has content None, not an empty text.
    none_without_text: bool = False
    #: Ids of calls have nine letters and digits.
    short_ids: bool = False
    #: Arguments of calls stay JSON text.
    arguments_as_text: bool = False


def message_rows(messages: tuple[ChatMessage, ...], mark: Mark, habits: Habits) -> list[Row]:
    """Raises BadRequest where arguments of a call are nested too deep."""
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    return [_message_row(position, message, names, mark, habits) for position, message in enumerate(messages)]


def tool_rows(tools: tuple[Tool, ...], mark: Mark) -> list[Row]:
    """Raises BadRequest for parameters that are no JSON object, and for two tools of one name."""
    seen: set[str] = set()
    rows: list[Row] = []
    for position, tool in enumerate(tools):
        if tool.name in seen:
            raise errors.BadRequest(f"tools[{position}].function.name is taken by another tool", hint="give each tool its own name")
        seen.add(tool.name)
        parameters = _marked(parameters_of(position, tool), mark, f"tools[{position}].function.parameters")
        function: Row = {"name": mark(tool.name), "description": mark(tool.description), "parameters": parameters}
        rows.append({"type": "function", "function": function})
    return rows


def parameters_of(position: int, tool: Tool) -> Row:
    """The JSON schema of a tool's parameters; that of no parameters, where the tool has none. Raises BadRequest."""
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
        # A model wrote these once; a template that can print text shows them as they are.
        return call.arguments


def _identity(given: str, habits: Habits) -> str:
    """Two messages that name one call still do when their ids are shortened."""
    if not habits.short_ids or (len(given) == _SHORT_ID_CHARACTERS and given.isascii() and given.isalnum()):
        return given
    return hashlib.sha256(given.encode("utf-8", "replace")).hexdigest()[:_SHORT_ID_CHARACTERS]


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
