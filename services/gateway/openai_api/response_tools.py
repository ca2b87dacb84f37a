"""Tools of OpenAI's Responses API. Models only know functions: namespaces are flattened, and a custom tool has one text argument. Pure."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, NamedTuple, TypeAlias

import msgspec

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import chat_messages
from services.gateway.http_api.chat_messages import OF_TOOLS, ChosenTools, JsonObject
from services.gateway.requests.request_validation import MAX_TOOL_NAME
from shared.api.generation import MAX_TOOLS, Tool


class FunctionTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    name: str
    #: A JSON schema.
    parameters: JsonObject | None = None
    #: Accepted and ignored: the arguments of a required call always match.
    strict: bool | None = None
    description: str | None = None


class InputFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["text", "grammar"] = "text"
    #: lark or regex.
    syntax: str | msgspec.UnsetType = msgspec.UNSET
    #: Models read it, but aren't forced to follow it.
    definition: str | msgspec.UnsetType = msgspec.UNSET


class CustomTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="custom"):
    name: str
    description: str = ""
    format: InputFormat = InputFormat()


class NamespaceTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="namespace"):
    name: str
    description: str = ""
    tools: Annotated[tuple[FunctionTool | CustomTool, ...], OF_TOOLS] = ()


ToolBody: TypeAlias = FunctionTool | CustomTool | NamespaceTool


class ChosenFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="function"):
    name: str
    namespace: str | msgspec.UnsetType = msgspec.UNSET


class ChosenCustomTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="custom"):
    name: str
    namespace: str | msgspec.UnsetType = msgspec.UNSET


class AllowedTools(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"):
    mode: Literal["auto", "required"]
    tools: Annotated[tuple[ChosenFunction | ChosenCustomTool, ...], OF_TOOLS]


ToolChoiceBody: TypeAlias = Literal["none", "auto", "required"] | ChosenFunction | ChosenCustomTool | AllowedTools

#: The only argument of a custom tool.
_ARGUMENT = "input"
_PARAMETERS: JsonObject = {
    "type": "object",
    "properties": {_ARGUMENT: {"type": "string", "description": "The whole input, as plain text."}},
    "required": [_ARGUMENT],
    "additionalProperties": False,
}
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")


class OfferedTool(NamedTuple):
    body: FunctionTool | CustomTool
    namespace: NamespaceTool | None


def flat_name(name: str, namespace: str | msgspec.UnsetType | None) -> str:
    """Return the name by which models know a tool."""
    if not namespace:
        return name
    full = f"{namespace}__{name}"
    flat = _NOT_IN_NAMES.sub("_", full)
    if flat == full and len(flat) <= MAX_TOOL_NAME:
        return flat
    # Two names that only differ where they are changed stay two.
    return f"{flat[: MAX_TOOL_NAME - 9]}_{hashlib.sha256(full.encode()).hexdigest()[:8]}"


def offered(bodies: Iterable[ToolBody]) -> Mapping[str, OfferedTool]:
    """Return the tools by the names that models know. Raises BadField if two have the same."""
    found: dict[str, OfferedTool] = {}
    for body in bodies:
        tools, namespace = (body.tools, body) if isinstance(body, NamespaceTool) else ((body,), None)
        for tool in tools:
            name = flat_name(tool.name, None if namespace is None else namespace.name)
            if name in found:
                spaces = {each.name[:MAX_TOOL_NAME] for each in (namespace, found[name].namespace) if each is not None}
                why = f": models know the tools of the namespace {' and '.join(sorted(spaces))} by such names; rename one" if spaces else ""
                raise BadField("tools", f"has {name[:MAX_TOOL_NAME]} twice{why}")
            found[name] = OfferedTool(tool, namespace)
            if len(found) > MAX_TOOLS:
                raise BadField("tools", f"must have at most {MAX_TOOLS} entries")
    return found


def chosen(tools: Mapping[str, OfferedTool], choice: ToolChoiceBody) -> ChosenTools:
    """Return the callable tools as models know them, and whether a call is required. Raises BadField."""
    introduced: set[str] = set()
    known = tuple(_as_function(name, tool, introduced) for name, tool in tools.items())
    match choice:
        case ChosenFunction() | ChosenCustomTool():
            return chat_messages.choose_of(known, (flat_name(choice.name, choice.namespace),), "required")
        case AllowedTools(mode=mode, tools=allowed):
            return chat_messages.choose_of(known, tuple(flat_name(tool.name, tool.namespace) for tool in allowed), mode)
        case word:
            return chat_messages.choose(known, word)


def _as_function(name: str, tool: OfferedTool, introduced: set[str]) -> Tool:
    """``introduced``: the namespaces that an earlier tool has described."""
    body, about = tool.body, tool.body.description or ""
    if tool.namespace is not None and tool.namespace.description and tool.namespace.name not in introduced:
        introduced.add(tool.namespace.name)
        about += f"\n\nAbout all tools of {tool.namespace.name}: {tool.namespace.description}"
    if isinstance(body, FunctionTool):
        return chat_messages.tool(name, about, body.parameters)
    if body.format.definition:
        about += f"\n\nThe input must match this {body.format.syntax} grammar:\n{body.format.definition}"
    return chat_messages.tool(name, about, _PARAMETERS)


def arguments_of(text: str) -> str:
    """Return the arguments of a custom tool's call as a model writes them."""
    return chat_messages.json_text({_ARGUMENT: text})


#: Models write no more spaces than this before it.
_MAX_BEGINNING = 256
#: The beginning of the arguments, and as much of their text as can be decoded alone: no half escape, and no half of a surrogate pair.
#: Its repeats are not possessive: those of Python before 3.11.5, such as Debian 12's, may fail where they should match.
_BEGINNING = re.compile(rf'\s*\{{\s*"{_ARGUMENT}"\s*:\s*"')
_DECODABLE = re.compile(
    r'(?:[^"\\]+|\\["\\/bfnrt]|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*'
)


class CustomInput:
    """Reads the input of a custom tool's call from its arguments, which arrive in parts."""

    def __init__(self) -> None:
        self._unread = ""
        self._has_begun = False
        self._read: list[str] = []

    def add(self, arguments: str) -> str:
        """Return the next part of the input."""
        self._unread += arguments
        if not self._has_begun:
            beginning = _BEGINNING.match(self._unread, 0, _MAX_BEGINNING)
            if beginning is None:
                return ""
            self._has_begun, self._unread = True, self._unread[beginning.end() :]
        found = _DECODABLE.match(self._unread)
        assert found is not None  # it may be empty
        self._unread = self._unread[found.end() :]
        # Models also write line ends as they are.
        text: str = json.loads(f'"{found[0]}"', strict=False)
        self._read.append(text)
        return text

    @property
    def text(self) -> str:
        """Return the input as far as it is known; the arguments themselves if they have another form."""
        return "".join(self._read) + self.rest

    @property
    def rest(self) -> str:
        """Return the part of ``text`` that ``add`` has not returned."""
        return "" if self._has_begun else self._unread
