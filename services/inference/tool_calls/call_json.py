"""Parses tool calls in JSON, and finds the end of a JSON value while it is being written.  Pure."""

from collections.abc import Collection
from enum import Enum

import msgspec

#: The longest call, with the text held back before it.
MAX_HELD_CHARACTERS = 64 * 1024
#: Blanks around a call belong to it; more than these are text.
MAX_BLANKS = 64

BLANKS = " \t\r\n"

#: Name and arguments, a JSON text.
Call = tuple[str, str]
#: JSON parsers refuse deeper arguments anyway.
MAX_DEPTH = 64

#: The characters of JSON outside strings, except brackets and quotes.
_BETWEEN_STRINGS = frozenset(BLANKS + ",:+-.0123456789Eaeflnrstu")


class Scan(Enum):
    OPEN = "open"
    CLOSED = "closed"
    BROKEN = "broken"


class JsonScanner:
    """Finds the end of a JSON object or list, character by character. It only looks at brackets and strings."""

    def __init__(self) -> None:
        self._brackets: list[str] = []
        self._in_string = False
        self._escaped = False

    def step(self, character: str) -> Scan:
        if self._in_string:
            self._in_string = self._escaped or character != '"'
            self._escaped = character == "\\" and not self._escaped
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._brackets.append("}" if character == "{" else "]")
            return Scan.BROKEN if len(self._brackets) > MAX_DEPTH else Scan.OPEN
        elif character in "}]":
            if self._brackets.pop() != character:
                return Scan.BROKEN
            return Scan.OPEN if self._brackets else Scan.CLOSED
        elif character not in _BETWEEN_STRINGS:
            return Scan.BROKEN
        return Scan.OPEN


class _Written(msgspec.Struct):
    """A call as models write it; either field has the arguments."""

    name: str
    arguments: msgspec.Raw = msgspec.Raw()
    parameters: msgspec.Raw = msgspec.Raw()


_written = msgspec.json.Decoder(_Written | list[_Written])


def calls_in(text: str, names: Collection[str]) -> tuple[Call, ...]:
    """Return the calls in a JSON value; empty if it isn't only calls of available tools."""
    try:
        value = _written.decode(text)
        calls = tuple((call.name, _arguments(call)) for call in (value if isinstance(value, list) else [value]))
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return ()
    return calls if all(name in names and arguments for name, arguments in calls) else ()


def is_object(text: str) -> bool:
    """Return whether the text is a JSON object, as arguments must be."""
    try:
        msgspec.json.decode(text, type=dict[str, object])
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return False
    return True


def _arguments(call: _Written) -> str:
    raw = bytes(call.arguments) or bytes(call.parameters)
    # Some models write the object as a string, like the API.
    text = msgspec.json.decode(raw, type=str) if raw.startswith(b'"') else raw.decode()
    msgspec.json.decode(text, type=dict[str, object])
    return text
