"""Finds the tool calls in a model's answer while it is written, and passes on the other text.  Pure.

Text that may be the start of a call is held back until that is decided; other text is passed on at once. A failed call (an unknown
tool, broken JSON, too long) becomes text: nothing is lost and nothing raises. The result doesn't depend on how the answer is split into
pieces. Only text in a channel for the model's thoughts (`tool_styles`) is dropped.
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

#: Styles whose calls are the whole answer -> the optional mark before them.
_WHOLE_ANSWERS = {ToolStyle.LLAMA: "<|python_tag|>", ToolStyle.GENERIC: ""}


@dataclass(frozen=True, slots=True)
class ParsedText:
    """The text and calls in a piece of the answer."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()


class ToolCallParser:
    """Parses one answer to a request with these tools; ``draw_id`` returns the id of each call, in order."""

    def __init__(self, style: ToolStyle, tools: tuple[Tool, ...], draw_id: Callable[[], str]) -> None:
        self._draw_id = draw_id
        self._finder = _finder(style, tools)

    def push(self, text: str) -> ParsedText:
        """The next piece of the answer."""
        return self._parsed(self._finder.push(text))

    def finish(self) -> ParsedText:
        """Decide about held text at the end of the answer."""
        return self._parsed(self._finder.finish())

    def _parsed(self, found: CallFinding) -> ParsedText:
        return ParsedText(found.text, tuple(ToolCall(self._draw_id(), name, arguments) for name, arguments in found.calls))


def _finder(style: ToolStyle, tools: tuple[Tool, ...]) -> Finder:
    if style in _WHOLE_ANSWERS:
        return WholeAnswer(_WHOLE_ANSWERS[style], frozenset(tool.name for tool in tools))
    # The parameters define the types of arguments without quotes.
    return MarkedCalls(STYLES[style], {tool.name: tagged_values.properties_of(tool) for tool in tools})


def ids_of(request: str) -> Callable[[], str]:
    """Return a generator of ids, which are the same for a request on every worker, so that another one can continue the answer."""
    drawn = 0

    def draw() -> str:
        nonlocal drawn
        number = int.from_bytes(hashlib.sha256(f"{request}\0{drawn}".encode()).digest())
        drawn += 1
        characters = (_ID_ALPHABET[number // len(_ID_ALPHABET) ** place % len(_ID_ALPHABET)] for place in range(_ID_CHARACTERS))
        return "call_" + "".join(characters)

    return draw
