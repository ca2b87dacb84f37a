"""A word that a form brings, as one of the words that there are. Pure."""

from enum import StrEnum
from typing import TypeVar

from shared import errors

Word = TypeVar("Word", bound=StrEnum)


def read(kind: type[Word], text: str, what: str) -> Word:
    """Raises BadRequest."""
    try:
        return kind(text)
    except ValueError:
        words = ", ".join(kind)
        raise errors.BadRequest(f"{what}: not one of those that there are", hint=f"choose one of {words}") from None
