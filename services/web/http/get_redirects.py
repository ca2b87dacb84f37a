"""Find the page to redirect to when a browser sends GET to a path that only accepts forms. Pure.

That happens when a user reloads such a path in another tab or returns to it from the history. The parent page has the form.
"""

import re
from collections.abc import Iterable

_PARAMETER = re.compile(r"\{\w+(?::(\w+))?\}")
_KINDS = {"uuid": "[0-9A-Fa-f-]{36}"}


def find(path: str, readable: Iterable[str]) -> str:
    """Return the closest parent path that matches a readable route pattern. The root matches always."""
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
