"""The styles in which models write tool calls: how to recognize them in a chat template, and the JSON of each.  Pure.

A new style needs a name, a shape, and patterns to recognize it; `tool_styles` parses its calls.
"""

import json
import re
from dataclasses import dataclass
from enum import StrEnum

from services.inference.tool_calls import chat_rows
from services.inference.tool_calls.chat_rows import PROBE_TOOL
from shared import errors
from shared.api.generation import Tool


class ToolStyle(StrEnum):
    #: Qwen and Hermes: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, several of them, text before them allowed.
    HERMES = "hermes"
    #: Qwen3-Coder, Qwen 3.5, Nemotron 3: `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`.
    FUNCTION_TAGS = "function_tags"
    #: GLM from 4.5 on: `<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>`.
    KEY_TAGS = "key_tags"
    #: Llama 3: the whole answer is `{"name": …, "parameters": {…}}`, sometimes after `<|python_tag|>`.
    LLAMA = "llama"
    #: Mistral: `[TOOL_CALLS]` and a list of `{"name": …, "arguments": {…}}`.
    MISTRAL = "mistral"
    #: Mistral since 2025: `[TOOL_CALLS]name[ARGS]{…}`, some with `[CALL_ID]id` before the arguments.
    MISTRAL_NAMED = "mistral_named"
    #: DeepSeek V3 and R1: a list between marks, each call `function`, a mark, the name and a fence of JSON.
    DEEPSEEK_FENCED = "deepseek_fenced"
    #: DeepSeek V3.1: the same list, each call the name, a mark and JSON.
    DEEPSEEK = "deepseek"
    #: gpt-oss: messages in channels, `to=functions.name` in the header of a call.
    HARMONY = "harmony"
    #: Any other model: the whole answer is such an object or a list of them.
    GENERIC = "generic"


@dataclass(frozen=True, slots=True)
class CallShape:
    """The texts of one style."""

    #: Special tokens in many models. With tools, the engine must show them as text (`llama_token_to_piece` with special=True), or else
    #: no call is found.
    spellings: tuple[str, ...]
    #: Around a required call with its name in the JSON.
    before: str = ""
    after: str = ""
    #: The key beside "name".
    arguments_key: str = "arguments"
    #: Calls are in a list.
    listed: bool = False
    #: Around the arguments of a required call of the only tool, if the style has the name outside the JSON.
    before_arguments: str = ""
    after_arguments: str = ""


_TAGS = ("<tool_call>", "</tool_call>")
_KEY_TAGS = (*_TAGS, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
_LIST, _LIST_END = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")
_HARMONY = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>")
_TO_FUNCTIONS, _JSON_MESSAGE = "<|channel|>commentary to=functions", " <|constrain|>json<|message|>"

SHAPES: dict[ToolStyle, CallShape] = {
    ToolStyle.HERMES: CallShape(_TAGS, "<tool_call>\n", "\n</tool_call>"),
    ToolStyle.FUNCTION_TAGS: CallShape(_TAGS, "<tool_call>\n", "\n</tool_call>"),
    ToolStyle.KEY_TAGS: CallShape(_KEY_TAGS, "<tool_call>\n", "\n</tool_call>"),
    ToolStyle.LLAMA: CallShape(("<|python_tag|>",), arguments_key="parameters"),
    ToolStyle.MISTRAL: CallShape(("[TOOL_CALLS]",), "[TOOL_CALLS]", listed=True),
    ToolStyle.MISTRAL_NAMED: CallShape(
        ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"), "[TOOL_CALLS]", listed=True, before_arguments="[TOOL_CALLS]{name}[ARGS]"
    ),
    ToolStyle.DEEPSEEK_FENCED: CallShape(
        _DEEPSEEK,
        _LIST,
        _LIST_END,
        before_arguments=_LIST + "function<｜tool▁sep｜>{name}\n```json\n",
        after_arguments="\n```" + _LIST_END,
    ),
    ToolStyle.DEEPSEEK: CallShape(_DEEPSEEK, _LIST, _LIST_END, before_arguments=_LIST + "{name}<｜tool▁sep｜>", after_arguments=_LIST_END),
    # The end of a call also ends the answer, which a grammar can't express.
    ToolStyle.HARMONY: CallShape(_HARMONY, _TO_FUNCTIONS + _JSON_MESSAGE, before_arguments=_TO_FUNCTIONS + ".{name}" + _JSON_MESSAGE),
    ToolStyle.GENERIC: CallShape(()),
}

_PROBE_NAME = rf'"name"\s*:\s*"{PROBE_TOOL.name}"'
#: Patterns of each style in a rendered chat, …
_RENDERED = (
    (ToolStyle.HERMES, re.compile(rf"<tool_call>\s*\{{\s*{_PROBE_NAME}")),
    (ToolStyle.FUNCTION_TAGS, re.compile(rf"<tool_call>\s*<function={PROBE_TOOL.name}>\s*<parameter=")),
    (ToolStyle.KEY_TAGS, re.compile(rf"<tool_call>\s*{PROBE_TOOL.name}\s*<arg_key>")),
    (ToolStyle.MISTRAL, re.compile(rf"\[TOOL_CALLS\]\s*\[\s*\{{\s*{_PROBE_NAME}")),
    (ToolStyle.MISTRAL_NAMED, re.compile(rf"\[TOOL_CALLS\]\s*{PROBE_TOOL.name}\s*(\[CALL_ID\]\w+)?\[ARGS\]")),
    (ToolStyle.DEEPSEEK_FENCED, re.compile(rf"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{PROBE_TOOL.name}\s*```json")),
    (ToolStyle.DEEPSEEK, re.compile(rf"<｜tool▁call▁begin｜>{PROBE_TOOL.name}<｜tool▁sep｜>")),
    (ToolStyle.HARMONY, re.compile(rf"to=functions\.{PROBE_TOOL.name}\b[^{{]*<\|message\|>")),
    (ToolStyle.LLAMA, re.compile(rf'{_PROBE_NAME}\s*,\s*"parameters"')),
)
#: … and words in the source of a template that renders no calls. The first style with all its words matches.
_SOURCES = (
    (ToolStyle.FUNCTION_TAGS, ("<tool_call>", "<function=", "<parameter=")),
    (ToolStyle.KEY_TAGS, ("<tool_call>", "<arg_key>", "<arg_value>")),
    (ToolStyle.GENERIC, ("<function=",)),
    (ToolStyle.HERMES, ("<tool_call>", "arguments")),
    (ToolStyle.MISTRAL_NAMED, ("[TOOL_CALLS]", "[ARGS]")),
    (ToolStyle.MISTRAL, ("[TOOL_CALLS]",)),
    (ToolStyle.DEEPSEEK_FENCED, ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "```json")),
    (ToolStyle.DEEPSEEK, ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>")),
    (ToolStyle.HARMONY, ("<|channel|>", "to=functions")),
    (ToolStyle.LLAMA, ("<|python_tag|>", "parameters")),
)


def style_of(source: str, rendered_call: str) -> ToolStyle:
    """Find the style of a chat template by its ``source`` and ``rendered_call`` (see `prompt.ChatTemplate`)."""
    if rendered_call:
        return next((style for style, pattern in _RENDERED if pattern.search(rendered_call)), ToolStyle.GENERIC)
    return next((style for style, words in _SOURCES if all(word in source for word in words)), ToolStyle.GENERIC)


@dataclass(frozen=True, slots=True)
class CallFormat:
    """The form of an answer with a required call: ``prefix``, JSON that fits ``schema``, ``suffix``."""

    prefix: str
    schema: str
    suffix: str


def grammar_schema(tools: tuple[Tool, ...], style: ToolStyle) -> CallFormat:
    """Return the form of an answer that must call one of these tools. Raises BadRequest for parameters that aren't an object.

    The name of an only tool is where the style has it. For several tools, the name is in the JSON in every style, so that one schema
    covers the choice; the marks around it are the style's. Arguments between tags have no schema, so those styles also write JSON.
    """
    shape = SHAPES[style]
    if len(tools) == 1 and shape.before_arguments:
        schema = _object_schema(0, tools[0])
        _moved(schema, "")  # raises BadRequest for a schema that is nested too deep
        return CallFormat(shape.before_arguments.format(name=tools[0].name), _json(schema), shape.after_arguments)
    definitions: dict[str, object] = {}
    calls = [_call_schema(position, tool, shape.arguments_key, definitions) for position, tool in enumerate(tools)]
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if shape.listed:
        schema = {"type": "array", "items": schema, "minItems": 1}
    if definitions:
        schema = {**schema, "$defs": definitions}
    return CallFormat(shape.before, _json(schema), shape.after)


def _json(schema: dict[str, object]) -> str:
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def _call_schema(position: int, tool: Tool, arguments_key: str, definitions: dict[str, object]) -> dict[str, object]:
    parameters = _object_schema(position, tool)
    if parameters != _moved(parameters, ""):
        # References start at the root, so move their targets there, under a name for this tool.
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


#: Keywords whose values are data, not schemas: a "$ref" in them is not a reference.
_DATA_KEYWORDS = frozenset({"const", "default", "enum", "example", "examples"})
#: Keywords whose values map names to schemas: a "$ref" among the names is a name.
_NAMED_SCHEMAS = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})


def _moved(schema: object, name: str, depth: int = 0) -> object:
    """Return the schema with its internal references changed for its new place, `#/$defs/<name>`. Raises BadRequest if it is nested too
    deep."""
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
