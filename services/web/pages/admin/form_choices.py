"""Parse a form value as a member of an enum. Pure."""

from enum import StrEnum
from typing import TypeVar

from shared import errors

Word = TypeVar("Word", bound=StrEnum)


def read(kind: type[Word], text: str, what: str) -> Word:
    """Return the member. Raises BadRequest."""
    try:
        return kind(text)
    except ValueError:
        words = ", ".join(kind)
        raise errors.BadRequest(f"unknown {what}", hint=f"choose one of {words}") from None
