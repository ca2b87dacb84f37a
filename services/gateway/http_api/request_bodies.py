"""Reads JSON from users: strictly typed, without unknown fields; every mistake is a BadRequest that names the field."""

import json
import math
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec

from services.gateway.facts.bad_field import BadField
from shared import errors
from shared.api.method import field_name
from shared.protocol import field_errors, null_characters

S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")

#: The longest body that is searched for a number that is too large: a longer one would hold the event loop for too long.
_SEARCHED_BYTES = 64 * 1024
#: More than any route has, and longer than any name.
_MAX_FIELDS, _MAX_NAME = 500, 100


def read_object(body: bytes) -> dict[str, object]:
    """Parse a JSON object. Raises BadRequest for anything else, including NaN, and BadField for a number that mesh messages can't hold."""
    ensure_without_null(body)
    try:
        # The C decoder stops at the interpreter's recursion limit, so deep nesting is cheap to reject.
        found = msgspec.json.decode(body, type=dict[str, object])
        ensure_sendable(found)
    except msgspec.ValidationError as error:
        if str(error).startswith(("Number out of range", "Integer value out of range")):
            raise _too_large(body) from error
        raise errors.BadRequest(f"the body must be a JSON object: {str(error).partition(' - at ')[0]}") from error
    except OverflowError as error:
        raise _too_large(body) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise errors.BadRequest(f"the body is not valid JSON: {why}") from error
    if len(found) > _MAX_FIELDS:
        raise errors.BadRequest(f"the body has more than {_MAX_FIELDS} fields")
    return found


def ensure_without_null(body: bytes) -> None:
    """Raises BadRequest for a text with U+0000."""
    if null_characters.are_in_json(body):
        raise errors.BadRequest(f"the texts of the body {null_characters.MISTAKE}", hint="remove it")


def ensure_sendable(found: object) -> None:
    """Raise OverflowError for a number that the mesh's messages can't hold. Searching the JSON for one would take 50 times as long."""
    msgspec.msgpack.encode(found)


def _too_large(body: bytes) -> errors.BadRequest:
    """Return the error for a body with a number that is too large. It names the field unless the body is long."""
    must = "must be a number of at most 64 bits"
    try:
        waiting: list[tuple[str, object]] = [("", json.loads(body))] if len(body) <= _SEARCHED_BYTES else []
    except (ValueError, RecursionError):  # Python reads at most 4,300 digits
        waiting = []
    while waiting:
        path, value = waiting.pop()
        if (isinstance(value, int) and not -(2**63) <= value < 2**64) or (isinstance(value, float) and math.isinf(value)):
            return BadField(path[1:][:200], must, known="")
        children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        waiting += [(f"{path}.{name}", child) for name, child in children]
    return errors.BadRequest(f"each number in the body {must}")


def convert(found: Mapping[str, object], kind: type[S]) -> S:
    """Convert ``found`` to a ``kind``. Null counts as absent for optional fields. Raises BadField."""
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise _mistake(error, kind) from error
    except RecursionError as error:
        raise errors.BadRequest("the body is nested too deeply") from error


def read_either_case(body: bytes, kind: type[S]) -> S:
    """Parse a body with camelCase or snake_case names."""
    return convert(snake_names(read_object(body)), kind)


def snake_names(found: Mapping[str, object]) -> dict[str, object]:
    """Rename the top-level fields to snake_case. Raises BadField for a field in both spellings."""
    renamed: dict[str, object] = {}
    for name, value in found.items():
        if len(name) > _MAX_NAME:
            raise BadField(name[:_MAX_NAME], "is not a supported field", known="")
        snake = field_name(name)
        if snake in renamed:
            raise BadField(snake, "occurs twice", known="")
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
            raise BadField(name, "occurs twice", known="")
        fields[name] = value
    try:
        return msgspec.convert(fields, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _mistake(error, kind) from error


def _mistake(error: msgspec.ValidationError, kind: type) -> errors.BadRequest:
    field, must, known = field_errors.explain(error, kind)
    return BadField(field, must, known=known) if field else errors.BadRequest(must)
