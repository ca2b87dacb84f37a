"""Merges two schemas for the same value into one, for `allOf` and keywords beside `anyOf` or `$ref`.  Pure."""

from collections.abc import Callable
from typing import cast

from services.inference.structured_output.keywords import TYPES, Json, Schema, constraints
from services.inference.structured_output.schema_errors import SchemaRefused


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
            raise SchemaRefused(f"{path}: two different values of `{keyword}` cannot be merged; write one that covers both")
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
    """Add number to integer."""
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
