"""Finds the calls of tools in a model's answer while it is written, and passes on everything else.  Pure.

A text that cannot be the beginning of a call goes on at once; one that may be is held back until it is a call, or is not.
What looks like a call and is none (of a tool that nobody offered, broken JSON, too long) is the answer's text: nothing is
lost and nothing raises. Where the pieces of the answer begin and end makes no difference. Only what a model says in a channel
of its own for its thoughts (`tool_styles`) is neither.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from services.inference.tool_calls import tagged_values
from services.inference.tool_calls.call_findings import CallFinding, Finder
from services.inference.tool_calls.json_calls import WholeAnswer
from services.inference.tool_calls.marked_calls import MarkedCalls
from services.inference.tool_calls.tool_format import ToolStyle
from services.inference.tool_calls.tool_styles import STYLES
from shared.api.generation import Tool, ToolCall

_ID_CHARACTERS = 24
_ID_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

#: Styles whose calls are the whole answer, and what may stand before them.
_WHOLE_ANSWERS = {ToolStyle.LLAMA: "<|python_tag|>", ToolStyle.GENERIC: ""}


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a piece of the answer turned out to be."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()


class ToolCallParser:
    """Reads one answer to a request with these tools; ``draw_id`` gives each call its id, in their order."""

    def __init__(self, style: ToolStyle, tools: tuple[Tool, ...], draw_id: Callable[[], str]) -> None:
        self._draw_id = draw_id
        self._finder = _finder(style, tools)

    def push(self, text: str) -> Parsed:
        """The next piece of the answer."""
        return self._parsed(self._finder.push(text))

    def finish(self) -> Parsed:
        """The answer is over; what was held back is decided now."""
        return self._parsed(self._finder.finish())

    def _parsed(self, found: CallFinding) -> Parsed:
        return Parsed(found.text, tuple(ToolCall(self._draw_id(), name, arguments) for name, arguments in found.calls))


def _finder(style: ToolStyle, tools: tuple[Tool, ...]) -> Finder:
    if style in _WHOLE_ANSWERS:
        return WholeAnswer(_WHOLE_ANSWERS[style], frozenset(tool.name for tool in tools))
    # What the parameters are tells the types of arguments that a model writes without quotes.
    return MarkedCalls(STYLES[style], {tool.name: tagged_values.properties_of(tool) for tool in tools})


def ids_of(request: str) -> Callable[[], str]:
    """Draws `call_` and 24 characters: always the same for one request, so that another worker goes on with the same ids."""
    drawn = 0

    def draw() -> str:
        nonlocal drawn
        number = int.from_bytes(hashlib.sha256(f"{request}\0{drawn}".encode()).digest())
        drawn += 1
        characters = (_ID_ALPHABET[number // len(_ID_ALPHABET) ** place % len(_ID_ALPHABET)] for place in range(_ID_CHARACTERS))
        return "call_" + "".join(characters)

    return draw
