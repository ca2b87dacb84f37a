"""Reads the JSON that users send: strictly typed, unknown fields refused, every mistake a BadRequest that names the field."""

import re
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec

from services.gateway.admission.prompt_admission import BadField
from shared import errors

S = TypeVar("S", bound=msgspec.Struct)

_AT = re.compile(r"(?P<what>.*?) - at `\$\.?(?P<path>.*)`$", re.DOTALL)
_FIELD = re.compile(r"Object (?P<what>contains unknown|missing required) field `(?P<field>[^`]*)`")
_CAMEL_HUMP = re.compile(r"(?<=[a-z0-9])[A-Z]")


def read_object(body: bytes) -> dict[str, object]:
    """The top of a JSON object; raises BadRequest for anything else, NaN and other inventions included."""
    try:
        # The C decoder stops at the interpreter's recursion limit, so nesting costs nothing and ends here.
        found = msgspec.json.decode(body, type=dict[str, object])
    except msgspec.ValidationError as error:
        raise errors.BadRequest(f"the body must be a JSON object: {str(error).partition(' - at ')[0]}") from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise errors.BadRequest(f"the body is not JSON: {why}") from error
    return found


def convert(found: Mapping[str, object], kind: type[S]) -> S:
    """``found`` as a ``kind``; raises BadField. A field that is null counts as absent where it may be absent."""
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise _mistake(str(error)) from error
    except RecursionError as error:
        raise errors.BadRequest("the body is nested too deeply") from error


def read_either_case(body: bytes, kind: type[S]) -> S:
    """As ``convert``, with camelCase names taken as well as snake_case ones."""
    return convert(snake_names(read_object(body)), kind)


def snake_names(found: Mapping[str, object]) -> dict[str, object]:
    """The same object under snake_case names, at the top only. Raises BadField for a field that is there in both."""
    renamed: dict[str, object] = {}
    for name, value in found.items():
        snake = _CAMEL_HUMP.sub(lambda hump: "_" + hump[0].lower(), name)
        if snake in renamed:
            raise BadField(snake, "is there twice")
        renamed[snake] = value
    return renamed


def read_query(query: bytes, kind: type[S]) -> S:
    """The fields behind the question mark, with numbers and times read from their text. Raises BadRequest or BadField."""
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, strict_parsing=bool(query), errors="strict", max_num_fields=20)
    except ValueError as error:
        raise errors.BadRequest("what stands behind the question mark cannot be read", hint="name=value, joined by &") from error
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name in fields:
            raise BadField(name, "is there twice")
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
        return BadField(name, "is not a field that this takes" if field["what"] == "contains unknown" else "is missing")
    if path:
        return BadField(path, f"does not fit: {what[:1].lower()}{what[1:]}")
    return errors.BadRequest(what)
