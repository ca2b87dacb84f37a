"""Finds U+0000, which PostgreSQL and file systems can't store, in what people and machines send. Pure."""

import re

import msgspec

#: An escape, and no escaped backslash before the word.
_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")

MISTAKE = "must not contain the character U+0000"


def are_in_json(body: bytes) -> bool:
    """Return whether a text in JSON has the character; outside of an escape, JSON itself refuses it."""
    return b"\\u0000" in body and _ESCAPE.search(body) is not None


def are_in(request: msgspec.Struct, packed: bytes) -> bool:
    """Return whether a text of a request has the character; ``packed``: its MessagePack."""
    # Few have such a byte at all, such as in a number.
    return b"\0" in packed and _is_in(request)


def _is_in(value: object) -> bool:
    match value:
        case str():
            return "\0" in value
        case msgspec.Struct():
            return any(_is_in(getattr(value, name)) for name in value.__struct_fields__)
        case dict():
            return any(_is_in(key) or _is_in(each) for key, each in value.items())
        case tuple() | list() | set() | frozenset():
            return any(map(_is_in, value))
    return False
