"""Reads JSON from users: strictly typed, without unknown fields; every mistake is a BadRequest that names the field."""

import re
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec

from services.gateway.request_validation import BadField
from shared import errors
from shared.api.method import field_name

S = TypeVar("S", bound=msgspec.Struct)

_AT = re.compile(r"(?P<what>.*?) - at `\$\.?(?P<path>.*)`$", re.DOTALL)
#: May be more than the mesh's messages can hold.
LONG_NUMBER = re.compile(rb"[0-9]{19}")
_FIELD = re.compile(r"Object (?P<what>contains unknown|missing required) field `(?P<field>[^`]*)`")


def read_object(body: bytes) -> dict[str, object]:
    """Parse a JSON object. Raises BadRequest for anything else, including NaN."""
    try:
        # The C decoder stops at the interpreter's recursion limit, so deep nesting is cheap to reject.
        found = msgspec.json.decode(body, type=dict[str, object])
    except msgspec.ValidationError as error:
        raise errors.BadRequest(f"the body must be a JSON object: {str(error).partition(' - at ')[0]}") from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise errors.BadRequest(f"the body is not valid JSON: {why}") from error
    if LONG_NUMBER.search(body):
        _check_numbers(found)
    return found


def read_given(body: bytes) -> dict[str, object]:
    """Parse a JSON object in which null counts as absent, as in OpenAI's API. Raises as ``read_object``."""
    return {name: value for name, value in read_object(body).items() if value is not None}


def _check_numbers(found: dict[str, object]) -> None:
    """Raise BadField for a whole number that the mesh's messages can't hold."""
    waiting: list[tuple[str, object]] = list(found.items())
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise BadField(path[:200], "must be a number of at most 64 bits")
        if isinstance(value, dict):
            waiting += [(f"{path}.{name}", child) for name, child in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{path}.{position}", child) for position, child in enumerate(value)]


def convert(found: Mapping[str, object], kind: type[S]) -> S:
    """Convert ``found`` to a ``kind``. Null counts as absent for optional fields. Raises BadField."""
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise _mistake(str(error)) from error
    except RecursionError as error:
        raise errors.BadRequest("the body is nested too deeply") from error


def read_either_case(body: bytes, kind: type[S]) -> S:
    """Parse a body with camelCase or snake_case names."""
    return convert(snake_names(read_object(body)), kind)


def snake_names(found: Mapping[str, object]) -> dict[str, object]:
    """Rename the top-level fields to snake_case. Raises BadField for a field in both spellings."""
    renamed: dict[str, object] = {}
    for name, value in found.items():
        snake = field_name(name)
        if snake in renamed:
            raise BadField(snake, "occurs twice")
        renamed[snake] = value
    return renamed


def read_query(query: bytes, kind: type[S]) -> S:
    """Parse a query with camelCase or snake_case names, converting numbers and times. Raises BadRequest or BadField."""
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, strict_parsing=bool(query), errors="strict", max_num_fields=20)
    except ValueError as error:
        raise errors.BadRequest("the query string is not valid", hint="write name=value pairs joined by &") from error
    fields: dict[str, str] = {}
    for given, value in pairs:
        name = field_name(given)
        if name in fields:
            raise BadField(name, "occurs twice")
        fields[name] = value
    try:
        return msgspec.convert(fields, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _mistake(str(error)) from error


def _mistake(message: str) -> errors.BadRequest:
    at = _AT.match(message)
    what, path = (at["what"], at["path"]) if at else (message, "")
    if field := _FIELD.match(what):
        name = f"{path}.{field['field']}" if path else field["field"]
        return BadField(name, "is not a supported field" if field["what"] == "contains unknown" else "is missing")
    if path:
        return BadField(path, f"is invalid: {what[:1].lower()}{what[1:]}")
    return errors.BadRequest(what)
