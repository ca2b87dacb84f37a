"""The keywords of JSON schemas: which only describe, which are honoured, which cannot be; and reading their values.  Pure."""

from collections.abc import Mapping
from typing import cast

from services.inference.structured_output.schema_errors import SchemaRefused

#: What msgspec makes of JSON text.
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Schema = dict[str, Json]

#: Honoured: what is written fits them.
HONOURED = {
    *("type", "enum", "const", "nullable", "$ref", "allOf", "anyOf", "oneOf"),
    *("properties", "required", "additionalProperties", "propertyNames", "minProperties", "maxProperties"),
    *("items", "prefixItems", "additionalItems", "minItems", "maxItems"),
    *("minLength", "maxLength", "pattern", "format"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
#: Would change what is valid, and no grammar of ours says them; an answer would break them without notice, so they are refused by name.
NOT_POSSIBLE = {
    *("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "patternProperties"),
    *("contains", "minContains", "maxContains", "$dynamicRef", "$recursiveRef"),
}
#: As NOT_POSSIBLE, but real tool schemas are full of them and an answer without them is still of use: passed over, as are annotations
#: and keywords nobody knows. unevaluatedProperties and unevaluatedItems are nearly always false, which is what we write in any case.
PASSED_OVER = {"uniqueItems", "multipleOf", "unevaluatedProperties", "unevaluatedItems"}

#: Where there is no `type`, these tell it.
_TELL = {
    "object": {"properties", "required", "additionalProperties", "propertyNames", "minProperties", "maxProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
}
TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")


def constraints(schema: Schema) -> Schema:
    """The schema without what does not narrow it: annotations, definitions, keywords nobody knows, and those that are null,
    as some programs write what they leave out."""
    return {key: value for key, value in schema.items() if key in HONOURED and (value is not None or key == "const")}


def check_possible(schema: Schema, path: str) -> None:
    """Raises Refused for a keyword that no grammar can honour."""
    if impossible := sorted(keyword for keyword in NOT_POSSIBLE if schema.get(keyword) is not None):
        raise SchemaRefused(f"{path}: `{impossible[0]}` cannot be honoured; leave it out or write what it means in other keywords")


def types_of(schema: Schema, path: str) -> list[str]:
    """The types that a value may have; all of them where nothing says."""
    declared = schema.get("type")
    if declared is None:
        types = [name for name, telling in _TELL.items() if telling & schema.keys()]
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
    """A size such as minLength."""
    value = schema.get(keyword)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise SchemaRefused(f"{path}.{keyword} must be a whole number from 0")
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
    """Such as required. Draft 3 had a boolean there, which said nothing about this schema's own properties."""
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
