"""How a model writes calls of tools: which of the known styles its chat template shows, and the JSON of each.  Pure."""

import json
import re
from dataclasses import dataclass
from enum import StrEnum

from services.inference.engine import chat_rows
from services.inference.engine.chat_rows import PROBE_TOOL
from shared import errors
from shared.api.generation import Tool


class ToolStyle(StrEnum):
    #: Qwen and Hermes: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, several of them, text before them allowed.
    HERMES = "hermes"
    #: Llama 3: the whole answer is `{"name": …, "parameters": {…}}`, at times behind `<|python_tag|>`.
    LLAMA = "llama"
    #: Mistral: `[TOOL_CALLS]` and a list of `{"name": …, "arguments": {…}}`.
    MISTRAL = "mistral"
    #: Any other model: the whole answer is such an object or a list of them.
    GENERIC = "generic"


@dataclass(frozen=True, slots=True)
class Shape:
    """The texts of one style."""

    #: What begins a call; empty where only the JSON tells it.
    opening: str
    closing: str
    #: The name of the key beside "name".
    arguments_key: str
    #: Calls are in a list.
    listed: bool = False
    #: The opening may be left out, and nothing but calls may be in the answer.
    whole_answer: bool = False

    @property
    def spellings(self) -> tuple[str, ...]:
        """Special tokens of many models. The engine has to show them as text (`llama_token_to_piece` with special=True)
        while tools are on, or no call is ever found."""
        return tuple(text for text in (self.opening, self.closing) if text)


SHAPES: dict[ToolStyle, Shape] = {
    ToolStyle.HERMES: Shape("<tool_call>", "</tool_call>", "arguments"),
    ToolStyle.LLAMA: Shape("<|python_tag|>", "", "parameters", whole_answer=True),
    ToolStyle.MISTRAL: Shape("[TOOL_CALLS]", "", "arguments", listed=True),
    ToolStyle.GENERIC: Shape("", "", "arguments", whole_answer=True),
}

_PROBE_NAME = rf'"name"\s*:\s*"{PROBE_TOOL.name}"'
#: How each style looks in a chat that a template has rendered, …
_RENDERED = (
    (ToolStyle.HERMES, re.compile(rf"<tool_call>\s*\{{\s*{_PROBE_NAME}")),
    (ToolStyle.MISTRAL, re.compile(rf"\[TOOL_CALLS\]\s*\[\s*\{{\s*{_PROBE_NAME}")),
    (ToolStyle.LLAMA, re.compile(rf'{_PROBE_NAME}\s*,\s*"parameters"')),
)
#: … and what tells it in the source of one that renders no call: words that must be there, and one that must not.
_SOURCES = (
    (ToolStyle.HERMES, ("<tool_call>", "arguments"), "<function="),
    (ToolStyle.MISTRAL, ("[TOOL_CALLS]",), "[ARGS]"),
    (ToolStyle.LLAMA, ("<|python_tag|>", "parameters"), "<function="),
)


def style_of(source: str, rendered_call: str) -> ToolStyle:
    """The style of a chat template, by its ``source`` and its ``rendered_call`` (of `prompt.ChatTemplate`)."""
    if rendered_call:
        return next((style for style, pattern in _RENDERED if pattern.search(rendered_call)), ToolStyle.GENERIC)
    for style, words, never in _SOURCES:
        if all(word in source for word in words) and never not in source:
            return style
    return ToolStyle.GENERIC


@dataclass(frozen=True, slots=True)
class CallFormat:
    """An answer that calls: ``prefix``, JSON of ``schema`` (JSON text), ``suffix``."""

    prefix: str
    schema: str
    suffix: str


def grammar_schema(tools: tuple[Tool, ...], style: ToolStyle) -> CallFormat:
    """What a model must write that has to call one of these tools. Raises BadRequest for parameters of no object."""
    shape = SHAPES[style]
    definitions: dict[str, object] = {}
    calls = [_call_schema(position, tool, shape.arguments_key, definitions) for position, tool in enumerate(tools)]
    schema: dict[str, object] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if shape.listed:
        schema = {"type": "array", "items": schema, "minItems": 1}
    if definitions:
        schema = {**schema, "$defs": definitions}
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    if style is ToolStyle.HERMES:
        return CallFormat(shape.opening + "\n", text, "\n" + shape.closing)
    return CallFormat("" if shape.whole_answer else shape.opening, text, shape.closing)


def _call_schema(position: int, tool: Tool, arguments_key: str, definitions: dict[str, object]) -> dict[str, object]:
    parameters = _object_schema(position, tool)
    if _has_references(parameters):
        # A reference counts from the root, so what it refers to moves there with it, under a name of this tool.
        moved = _moved(parameters, str(position))
        assert isinstance(moved, dict)
        for keyword in ("$defs", "definitions"):
            inner = moved.pop(keyword, {})
            definitions.update({f"{position}.{name}": schema for name, schema in inner.items()} if isinstance(inner, dict) else {})
        definitions[str(position)] = moved
        parameters = {"$ref": f"#/$defs/{position}"}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, arguments_key: parameters},
        "required": ["name", arguments_key],
        "additionalProperties": False,
    }


def _object_schema(position: int, tool: Tool) -> dict[str, object]:
    parameters = chat_rows.parameters_of(position, tool)
    if parameters.get("type", "object") != "object":
        raise errors.BadRequest(
            f"tools[{position}].function.parameters must describe an object",
            hint='its "type" is "object", and each parameter is one of its "properties"',
        )
    if parameters.get("properties") == {} and "additionalProperties" not in parameters:
        return {**parameters, "type": "object", "additionalProperties": False}
    return {"type": "object", **parameters}


#: Keywords whose values are data, not schemas: a "$ref" in them refers to nothing.
_DATA_KEYWORDS = frozenset({"const", "default", "enum", "example", "examples"})
#: Keywords whose values are schemas by name: a "$ref" among the names is one more name.
_NAMED_SCHEMAS = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})


def _has_references(schema: object) -> bool:
    return schema != _moved(schema, "")


def _moved(schema: object, name: str, depth: int = 0) -> object:
    """The schema with each reference into itself turned into one into its new place, `#/$defs/<name>`."""
    if depth > chat_rows.MAX_JSON_DEPTH:
        raise errors.BadRequest(f"tools: a schema of parameters is nested deeper than {chat_rows.MAX_JSON_DEPTH} levels")
    if isinstance(schema, list):
        return [_moved(item, name, depth + 1) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved: dict[str, object] = {}
    for keyword, value in schema.items():
        if keyword == "$ref" and isinstance(value, str):
            moved[keyword] = _moved_reference(value, name)
        elif keyword in _DATA_KEYWORDS:
            moved[keyword] = value
        elif keyword in _NAMED_SCHEMAS and isinstance(value, dict):
            moved[keyword] = {key: _moved(inner, name, depth + 1) for key, inner in value.items()}
        else:
            moved[keyword] = _moved(value, name, depth + 1)
    return moved


def _moved_reference(reference: str, name: str) -> str:
    for keyword in ("#/$defs/", "#/definitions/"):
        if reference.startswith(keyword):
            return f"#/$defs/{name}.{reference.removeprefix(keyword)}"
    return f"#/$defs/{name}{reference.removeprefix('#')}" if reference.startswith("#") else reference
