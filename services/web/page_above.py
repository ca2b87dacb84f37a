"""The page above an address that only takes forms. A browser asks for such an address itself, when somebody reloads it in another tab or
comes back to it from the history; there is nothing to read there, and the page above has the form. Pure."""

import re
from collections.abc import Iterable

_PARAMETER = re.compile(r"\{\w+(?::(\w+))?\}")
_KINDS = {"uuid": "[0-9A-Fa-f-]{36}"}


def find(path: str, readable: Iterable[str]) -> str:
    """``readable`` are the patterns of the pages that can be read. The start page is above all of them."""
    pages = [_compiled(pattern) for pattern in readable]
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        if any(page.fullmatch(path) for page in pages):
            break
    return path


def _compiled(pattern: str) -> re.Pattern[str]:
    pieces = (
        _KINDS.get(found or "", "[^/]+") if number % 2 else re.escape(found) for number, found in enumerate(_PARAMETER.split(pattern))
    )
    return re.compile("".join(pieces))
