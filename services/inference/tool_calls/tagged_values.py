"""Converts arguments that a model wrote between tags, without quotes, to JSON, with the types of the tool's schema.  Pure."""

import json
from collections.abc import Mapping
from types import NoneType

import msgspec

from shared.api.generation import Tool

#: The parameters of one tool: name -> schema.
Properties = Mapping[str, object]

#: Models whose templates print values like Python also write them so.
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}

#: The schema types of decoded JSON values.
_TYPES: dict[type, frozenset[str]] = {
    bool: frozenset({"boolean"}),
    dict: frozenset({"object"}),
    float: frozenset({"number"}),
    int: frozenset({"integer", "number"}),
    list: frozenset({"array"}),
    str: frozenset({"string"}),
    NoneType: frozenset({"null"}),
}


def properties_of(tool: Tool) -> Properties:
    """Return the tool's parameters; empty if it has none or they are invalid."""
    try:
        properties = msgspec.json.decode(tool.parameters or "{}", type=dict[str, object]).get("properties")
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return {}
    return properties if isinstance(properties, dict) else {}


def arguments_of(values: Mapping[str, str], properties: Properties) -> str:
    """Return a JSON object. Values that the schema defines as text stay text; others are parsed as JSON if possible."""
    members = (f"{json.dumps(name, ensure_ascii=False)}: {_json_of(text, properties.get(name))}" for name, text in values.items())
    return "{" + ", ".join(members) + "}"


def _json_of(text: str, schema: object) -> str:
    types = _types(schema)
    bare = text.strip()
    word = _PYTHON_WORDS.get(bare, bare) if types else bare
    # Keep JSON as it was written, so that numbers lose no digits.
    is_other = bool(_types_of(word) & (types - {"string"})) if "string" in types else bool(_types_of(word))
    return word if is_other else json.dumps(text, ensure_ascii=False)


def _types(schema: object) -> frozenset[str]:
    """Return the types that the schema allows; empty if it doesn't restrict them."""
    if not isinstance(schema, dict):
        return frozenset()
    named = schema.get("type")
    if isinstance(named, str):
        return frozenset((named,))
    if isinstance(named, list):
        return frozenset(name for name in named if isinstance(name, str))
    for keyword in ("anyOf", "oneOf"):
        if isinstance(choices := schema.get(keyword), list):
            each = [_types(choice) for choice in choices if isinstance(choice, dict)]
            return frozenset().union(*each) if all(each) else frozenset()
    values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema["const"]] if "const" in schema else []
    return frozenset({"string"}) if values and all(isinstance(value, str) for value in values) else frozenset()


def _types_of(text: str) -> frozenset[str]:
    """Return the schema types of a JSON text; empty if it isn't JSON."""
    try:
        return _TYPES[type(msgspec.json.decode(text))]
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return frozenset()
