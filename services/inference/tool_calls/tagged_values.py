"""Arguments that a model wrote between tags, without quotes: a tool's schema tells texts from other values.  Pure."""

import json
from collections.abc import Mapping
from types import NoneType

import msgspec

from shared.api.generation import Tool

#: The parameters of one tool: name -> schema.
Properties = Mapping[str, object]

#: Templates that print a value as Python does have taught their models to write it so.
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}

#: What schemas call the values that JSON is read as.
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
    """Empty where the tool says nothing of its parameters, or nothing that can be read."""
    try:
        properties = msgspec.json.decode(tool.parameters or "{}", type=dict[str, object]).get("properties")
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return {}
    return properties if isinstance(properties, dict) else {}


def arguments_of(values: Mapping[str, str], properties: Properties) -> str:
    """JSON of an object. What the schema says is a text stays one; anything else is JSON if it can be read so, and else a text."""
    members = (f"{json.dumps(name, ensure_ascii=False)}: {_json_of(text, properties.get(name))}" for name, text in values.items())
    return "{" + ", ".join(members) + "}"


def _json_of(text: str, schema: object) -> str:
    types = _types(schema)
    bare = text.strip()
    word = _PYTHON_WORDS.get(bare, bare) if types else bare
    # What is JSON goes on as it was written: no digit of a number is lost in between.
    is_other = bool(_types_of(word) & (types - {"string"})) if "string" in types else bool(_types_of(word))
    return word if is_other else json.dumps(text, ensure_ascii=False)


def _types(schema: object) -> frozenset[str]:
    """What the schema allows; empty where it does not say."""
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
    """Of a JSON text, as schemas name them; empty if it is none."""
    try:
        return _TYPES[type(msgspec.json.decode(text))]
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return frozenset()
