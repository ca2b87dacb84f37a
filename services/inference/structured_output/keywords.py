"""Classifies the keywords of JSON schemas as supported, unsupported or ignored, and reads their values.  Pure."""

from collections.abc import Mapping
from typing import cast

from services.inference.structured_output.schema_errors import SchemaRefused

#: What msgspec decodes JSON to.
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Schema = dict[str, Json]

#: Supported: answers follow them.
HONOURED = {
    *("type", "enum", "const", "nullable", "$ref", "allOf", "anyOf", "oneOf"),
    *("properties", "required", "additionalProperties", "propertyNames", "minProperties", "maxProperties"),
    *("items", "prefixItems", "additionalItems", "minItems", "maxItems"),
    *("minLength", "maxLength", "pattern", "format"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
#: Not expressible in our grammars. They are refused, because answers would silently violate them.
NOT_POSSIBLE = {
    *("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "patternProperties"),
    *("contains", "minContains", "maxContains", "$dynamicRef", "$recursiveRef"),
}
#: Not expressible either, but ignored like annotations and unknown keywords, because real tool schemas often have them and answers are
#: useful without. unevaluatedProperties and unevaluatedItems are nearly always false, which answers follow anyway.
PASSED_OVER = {"uniqueItems", "multipleOf", "unevaluatedProperties", "unevaluatedItems"}

#: Keywords that imply a type.
_KEYWORDS_BY_TYPE = {
    "object": {"properties", "required", "additionalProperties", "propertyNames", "minProperties", "maxProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
}
TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")


def constraints(schema: Schema) -> Schema:
    """Return the schema without annotations, definitions, unknown keywords, and null values, which some programs write for missing
    ones."""
    return {key: value for key, value in schema.items() if key in HONOURED and (value is not None or key == "const")}


def check_possible(schema: Schema, path: str) -> None:
    """Raises SchemaRefused for an unsupported keyword."""
    if impossible := sorted(keyword for keyword in NOT_POSSIBLE if schema.get(keyword) is not None):
        raise SchemaRefused(f"{path}: `{impossible[0]}` is not supported; leave it out or use other keywords")


def types_of(schema: Schema, path: str) -> list[str]:
    """Return the types that a value may have; empty if the schema doesn't restrict them."""
    declared = schema.get("type")
    if declared is None:
        types = [name for name, implying in _KEYWORDS_BY_TYPE.items() if implying & schema.keys()]
    else:
        types = [name for name in (declared if isinstance(declared, list) else [declared]) if isinstance(name, str)]
        unknown = [name for name in types if name not in TYPES]
        if unknown or not types:
            raise SchemaRefused(f"{path}.type must be one of {', '.join(TYPES)}, or a list of some of them")
    if not types:
        return []
    if schema.get("nullable") is True and "null" not in types:
        types.append("null")
    return types


def is_of_type(value: Json, name: str) -> bool:
    if name in ("integer", "number"):
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return not isinstance(value, bool) and (whole if name == "integer" else isinstance(value, int | float))
    kinds: Mapping[str, type] = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    return isinstance(value, kinds[name])


def count_of(schema: Schema, keyword: str, path: str) -> int | None:
    """Read a size such as minLength."""
    value = schema.get(keyword)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise SchemaRefused(f"{path}.{keyword} must be a non-negative whole number")
    return value


def number_of(schema: Schema, keyword: str, path: str) -> float | int | None:
    value = schema.get(keyword)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SchemaRefused(f"{path}.{keyword} must be a number")
    return value


def text_of(schema: Schema, keyword: str, path: str) -> str | None:
    value = schema.get(keyword)
    if value is not None and not isinstance(value, str):
        raise SchemaRefused(f"{path}.{keyword} must be a string")
    return value


def texts_of(schema: Schema, keyword: str, path: str) -> list[str]:
    """Read a list of texts such as required. Draft 3 has a boolean there, which doesn't concern this schema's properties."""
    value = schema.get(keyword, [])
    if isinstance(value, bool):
        return []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise SchemaRefused(f"{path}.{keyword} must be a list of strings")
    return cast("list[str]", value)


def list_of(schema: Schema, keyword: str, path: str) -> list[Json]:
    value = schema.get(keyword, [])
    if not isinstance(value, list) or (keyword in schema and not value):
        raise SchemaRefused(f"{path}.{keyword} must be a list with at least one element")
    return value


def mapping_of(schema: Schema, keyword: str, path: str) -> dict[str, Json]:
    value = schema.get(keyword, {})
    if not isinstance(value, dict):
        raise SchemaRefused(f"{path}.{keyword} must be an object")
    return value
