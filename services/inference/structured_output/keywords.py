"""Classifies the keywords of JSON schemas as supported, unsupported or ignored, reads their values, and merges schemas.  Pure."""

from collections.abc import Callable, Mapping
from typing import cast

from services.inference.structured_output.gbnf import SchemaRefused

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


class Contradiction(Exception):
    """No value fits both schemas. Callers with alternatives drop this one; others refuse."""


def merged(first: Schema, second: Schema, path: str) -> Schema:
    """Merge two schemas, without annotations. Properties of both are allowed even if one has additionalProperties: false, because that
    is what authors of allOf mean. Raises Contradiction, and SchemaRefused if one schema can't express both."""
    result = constraints(first)
    for keyword, value in constraints(second).items():
        if keyword not in result or result[keyword] == value:
            result[keyword] = value
        elif keyword in _MERGE:
            result[keyword] = _MERGE[keyword](result[keyword], value, f"{path}.{keyword}")
        else:
            raise SchemaRefused(f"{path}: two different values of `{keyword}` cannot be merged; write a single value that covers both")
    return result


def both(first: Json, second: Json, path: str) -> Json:
    """Merge like `merged`, but also accept true and false."""
    if first is False or second is False:
        return False
    if first is True:
        return second
    if second is True:
        return first
    if not isinstance(first, dict) or not isinstance(second, dict):
        raise SchemaRefused(f"{path}: a schema must be an object, true or false")
    if constraints(first) == constraints(second):
        return first
    # References are only resolved when they are converted.
    return {"allOf": [first, second]}


def _types(first: Json, second: Json, _path: str) -> Json:
    left, right = _type_set(first), _type_set(second)
    common = (left & right) | (
        {"integer"} if "integer" in left | right and "number" in left & _wide(right) | right & _wide(left) else set()
    )
    if not common:
        raise Contradiction
    return cast("Json", sorted(common))


def _wide(types: set[str]) -> set[str]:
    return types | {"number"} if "integer" in types else types


def _type_set(value: Json) -> set[str]:
    names = value if isinstance(value, list) else [value]
    return {name for name in names if isinstance(name, str) and name in TYPES}


def _values(first: Json, second: Json, path: str) -> Json:
    if not isinstance(first, list) or not isinstance(second, list):
        raise SchemaRefused(f"{path} must be a list")
    common = [value for value in first if value in second]
    if not common:
        raise Contradiction
    return common


def _contradiction(_first: Json, _second: Json, _path: str) -> Json:
    raise Contradiction


def _properties(first: Json, second: Json, path: str) -> Json:
    if not isinstance(first, dict) or not isinstance(second, dict):
        raise SchemaRefused(f"{path} must be an object")
    return {name: both(first.get(name, True), second.get(name, True), f"{path}.{name}") for name in first | second}


def _names(first: Json, second: Json, path: str) -> Json:
    if not isinstance(first, list) or not isinstance(second, list):
        raise SchemaRefused(f"{path} must be a list of strings")
    return first + [name for name in second if name not in first]


def _extreme(of: Callable[[float, float], float]) -> Callable[[Json, Json, str], Json]:
    def merge(first: Json, second: Json, path: str) -> Json:
        if not isinstance(first, int | float) or not isinstance(second, int | float):
            raise SchemaRefused(f"{path} must be a number")
        return of(first, second)

    return merge


def _neither(first: Json, second: Json, _path: str) -> Json:
    return first is True and second is True


_MERGE: dict[str, Callable[[Json, Json, str], Json]] = {
    "type": _types,
    "enum": _values,
    "const": _contradiction,
    "properties": _properties,
    "required": _names,
    "additionalProperties": both,
    "propertyNames": both,
    "items": both,
    "nullable": _neither,
    **dict.fromkeys(("minProperties", "minItems", "minLength", "minimum", "exclusiveMinimum"), _extreme(max)),
    **dict.fromkeys(("maxProperties", "maxItems", "maxLength", "maximum", "exclusiveMaximum"), _extreme(min)),
}
