"""Bounds how many values a large body of a caller has, because reading them holds the interpreter's lock. Pure."""

from collections.abc import Callable
from typing import TypeVar

from shared import errors

T = TypeVar("T")

#: In a whole body. 10,000 messages with tool calls and 512 tools with large schemas have half as many. The commas separate other values,
#: such as numbers.
MAX_NESTED, MAX_TEXTS, MAX_COMMAS = 131_072, 524_288, 1_048_576


class TooManyValues(errors.BadRequest):
    """The body would take too long to read."""


def read(body: bytes, reader: Callable[[bytes], T]) -> T:
    """Return what ``reader`` makes of a body with few values. Raises TooManyValues."""
    ensure_few_values(body)
    return reader(body)


def ensure_few_values(body: bytes) -> None:
    """Raise TooManyValues for JSON with too many arrays, objects, texts or other values. It reads 17 MiB in 15 to 90 ms; eight million
    numbers would take longer, and 70 MB."""
    if _are_few(body) and body.count(b'"') <= 2 * MAX_TEXTS:
        return
    # Only those outside of texts count.
    pieces = body.replace(rb"\\", b"").replace(rb"\"", b"")
    texts = pieces.count(b'"') // 2
    if texts <= MAX_TEXTS and _are_few(b"".join(pieces.split(b'"')[::2])):
        return
    raise TooManyValues(
        f"the body has more than {MAX_NESTED} arrays and objects, or more than {MAX_TEXTS} texts or other values",
        hint="split the request, or shorten it",
    )


def _are_few(content: bytes) -> bool:
    return content.count(b"[") + content.count(b"{") <= MAX_NESTED and content.count(b",") <= MAX_COMMAS
