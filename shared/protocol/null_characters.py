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
    # In C, and only for the few that have such a byte at all, such as a number.
    return b"\0" in packed and are_in_json(msgspec.json.encode(request))
