"""Tools and formats as OpenAI's APIs write them, and what they are to a worker. Pure."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from services.gateway.admission.prompt_admission import BadField
from shared.api.generation import FormatKind, OutputFormat, Tool, ToolChoice

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
