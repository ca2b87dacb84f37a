"""What a piece of an answer turned out to be, before its calls of tools have ids.  Pure."""

from dataclasses import dataclass
from typing import Protocol

#: The longest call, with what is held back before it. Arguments of more than a page or two are a mistake of the model.
MAX_HELD_CHARACTERS = 64 * 1024
#: Blanks around a call belong to it, not to the answer; more than these are a text.
MAX_BLANKS = 64

BLANKS = " \t\r\n"

#: Name and arguments, a JSON text.
Call = tuple[str, str]


@dataclass(frozen=True, slots=True)
class CallFinding:
    text: str = ""
    calls: tuple[Call, ...] = ()


class Finder(Protocol):
    """Of one answer. Where its pieces begin and end makes no difference."""

    def push(self, text: str) -> CallFinding: ...
    def finish(self) -> CallFinding: ...
