"""The text and tool calls that were found in a piece of an answer.  Pure."""

from dataclasses import dataclass
from typing import Protocol

#: The longest call, with the text held back before it.
MAX_HELD_CHARACTERS = 64 * 1024
#: Blanks around a call belong to it; more than these are text.
MAX_BLANKS = 64

BLANKS = " \t\r\n"

#: Name and arguments, a JSON text.
Call = tuple[str, str]


@dataclass(frozen=True, slots=True)
class CallFinding:
    text: str = ""
    calls: tuple[Call, ...] = ()


class Finder(Protocol):
    """Finds the calls in one answer, however it is split into pieces."""

    def push(self, text: str) -> CallFinding: ...
    def finish(self) -> CallFinding: ...
