"""Write plain data as YAML, so that every parser of YAML 1.1 and 1.2 reads the same values.  Pure.

PyYAML would be a tenth of the installed package.
"""

import json
import re
from collections.abc import Iterator

#: Text that needs no quotes, unless a parser takes it for a value.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*( [A-Za-z0-9_./-]+)*")
#: Whole numbers below it are exact as floats.
_EXACT = 2**53
_VALUES = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def render(value: object) -> str:
    """Return the lines of objects, lists, texts, numbers, booleans and None."""
    return "".join(f"{line}\n" for line in _lines(value))


def _lines(value: object) -> Iterator[str]:
    match value:
        case dict() if value:
            for name, child in value.items():
                first, *more = _lines(child)
                is_below = isinstance(child, dict | list | tuple) and child
                yield f"{_text(str(name))}:" if is_below else f"{_text(str(name))}: {first}"
                yield from (f"  {line}" for line in ([first, *more] if is_below else ()))
        case list() | tuple() if value:
            for child in value:
                first, *more = _lines(child)
                yield from (f"- {first}", *(f"  {line}" for line in more))
        case str():
            yield _text(value)
        case float() if value.is_integer() and abs(value) < _EXACT:
            yield str(int(value))
        case _:
            # A parser of YAML 1.1 wants a point in a number with an exponent.
            yield re.sub(r"^(-?\d+)e", r"\1.0e", json.dumps(value))


def _text(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _VALUES:
        return text
    return '"' + "".join(char if char.isprintable() and char not in '"\\' else f"\\U{ord(char):08x}" for char in text) + '"'
