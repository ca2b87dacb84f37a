"""Finds the tool calls in a model's answer while it is written, and passes on the other text.  Pure.

Text that may be the start of a call is held back until that is decided; other text is passed on at once. A failed call (an unknown
tool, broken JSON, too long) becomes text: nothing is lost and nothing raises. The result doesn't depend on how the answer is split into
pieces. Only text in a channel for the model's thoughts (`tool_styles`) is dropped.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from services.inference.tool_calls import tagged_values
from services.inference.tool_calls.call_json import BLANKS, MAX_BLANKS, MAX_HELD_CHARACTERS, Call, JsonScanner, Scan, calls_in
from services.inference.tool_calls.call_reader import CallReader, NoCall, Waiting
from services.inference.tool_calls.tagged_values import Properties
from services.inference.tool_calls.tool_format import ToolStyle
from services.inference.tool_calls.tool_styles import STYLES, Style
from shared.api.generation import Tool, ToolCall

_ID_CHARACTERS = 24
_ID_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

#: Styles whose calls are the whole answer -> the optional mark before them.
_WHOLE_ANSWERS = {ToolStyle.LLAMA: "<|python_tag|>", ToolStyle.GENERIC: ""}
#: The first key of a call must be in so many characters.
_LOOK_CHARACTERS = 128
#: A call's object starts with one of these keys; any other object is text, and is not held back.
_FIRST_KEYS = ("name", "arguments", "parameters", "type", "id", "function")
#: The blanks before a call are held back too.
_MOST_CHARACTERS = MAX_HELD_CHARACTERS - MAX_BLANKS


@dataclass(frozen=True, slots=True)
class CallFinding:
    """The text and calls, without ids, in a piece of the answer."""

    text: str = ""
    calls: tuple[Call, ...] = ()


class WholeAnswer:
    """Finds tool calls in an answer that consists only of JSON values, with blanks or semicolons between them."""

    def __init__(self, opening: str, names: Collection[str]) -> None:
        """``opening`` is an optional mark before them."""
        self._opening = opening
        self._names = names
        self._held = ""
        #: The start of the current value in the held text, and how far it is scanned.
        self._begin = self._at = 0
        #: None between two values.
        self._scanner: JsonScanner | None = None
        self._calls: list[Call] = []
        #: The answer isn't calls, so all of it is text.
        self._is_plain_text = False

    def push(self, text: str) -> CallFinding:
        if self._is_plain_text:
            return CallFinding(text)
        self._held += text
        if len(self._held) <= MAX_HELD_CHARACTERS and self._may_be_calls():
            return CallFinding()
        self._is_plain_text = True
        return self._all_text()

    def finish(self) -> CallFinding:
        if self._is_plain_text or self._scanner is not None or not self._calls:
            return self._all_text()
        return CallFinding("", tuple(self._calls))

    def _all_text(self) -> CallFinding:
        held, self._held = self._held, ""
        return CallFinding(held)

    def _may_be_calls(self) -> bool:
        """Scan the new text; return False once the answer can't be calls."""
        while self._at < len(self._held):
            if self._scanner is None:
                if not self._between():
                    # Only an incomplete mark is worth waiting for.
                    return self._begun_mark()
            elif not self._inside(self._scanner):
                return False
        return self._scanner is None or _may_be_call(self._held[self._begin : self._begin + _LOOK_CHARACTERS])

    def _between(self) -> bool:
        character = self._held[self._at]
        if character in "{[":
            self._begin, self._scanner = self._at, JsonScanner()
            return True
        if character in BLANKS or (character == ";" and self._calls):
            self._at += 1
            return True
        if self._opening and not self._calls and self._held.startswith(self._opening, self._at):
            self._at += len(self._opening)
            return True
        return False

    def _inside(self, scanner: JsonScanner) -> bool:
        scan = scanner.step(self._held[self._at])
        self._at += 1
        if scan is Scan.CLOSED:
            self._scanner = None
            value = self._held[self._begin : self._at]
            calls = calls_in(value, self._names) if _may_be_call(value) else ()
            self._calls.extend(calls)
            return bool(calls)
        return scan is Scan.OPEN

    def _begun_mark(self) -> bool:
        return not self._calls and self._opening.startswith(self._held[self._at :])


def _may_be_call(value: str) -> bool:
    """Return whether a JSON value, or the start of one, may be an object or a list of objects whose first key is a call's."""
    rest = value[:_LOOK_CHARACTERS].lstrip("[" + BLANKS)
    if not rest:
        return True
    inside = rest[1:].lstrip(BLANKS)
    if rest[0] != "{" or (inside and inside[0] != '"'):
        return False
    key, quote, _ = inside[1:].partition('"')
    return key in _FIRST_KEYS if quote else any(known.startswith(key) for known in _FIRST_KEYS)


class MarkedCalls:
    """Finds tool calls that start with a mark, anywhere in an answer; `tool_styles` parses them."""

    def __init__(self, style: Style, offered: Mapping[str, Properties]) -> None:
        self._style = style
        self._reader = CallReader(offered)
        #: Between calls: blanks and a possible start of a mark. In a call: the blanks before it and its text.
        self._held = ""
        self._blanks = 0
        #: Parses the current call; None between calls.
        self._steps: Waiting | None = style.read(self._reader) if style.from_start else None
        self._called = False

    def push(self, text: str) -> CallFinding:
        self._held += text
        found: list[CallFinding] = []
        while (part := self._between() if self._steps is None else self._inside(self._steps)) is not None:
            found.append(part)
        return CallFinding("".join(part.text for part in found), tuple(call for part in found for call in part.calls))

    def finish(self) -> CallFinding:
        held, self._held = self._held, ""
        if self._steps is not None:
            return CallFinding() if self._reader.may_end else self._text(held)
        return CallFinding() if self._called and not held.strip(BLANKS) else self._text(held)

    # Both consume held text and return the findings, or None if they need more text.

    def _between(self) -> CallFinding | None:
        """Pass on text up to the next mark."""
        places = [at for at in (self._held.find(mark) for mark in self._style.marks) if at >= 0]
        mark = min(places, default=len(self._held) - self._begun_mark())
        end = mark - _blanks_before(self._held, mark)
        shown, self._held = self._held[:end], self._held[end:]
        if places:
            self._blanks = mark - end
            self._reader.begin()
            self._steps = self._style.read(self._reader)
            return self._text(shown)
        return self._text(shown) if shown else None

    def _inside(self, steps: Waiting) -> CallFinding | None:
        reader = self._reader
        reader.text = self._held[self._blanks : self._blanks + _MOST_CHARACTERS]
        try:
            next(steps)
            is_waiting = len(reader.text) < _MOST_CHARACTERS
        except StopIteration:
            is_waiting = False
        except NoCall:
            is_waiting = False
        if is_waiting:
            return self._taken() if reader.calls else None
        self._steps = None
        rejected = self._held[: self._blanks] if not reader.settled else ""
        rejected += reader.text[reader.settled : reader.at]
        self._held = self._held[self._blanks + reader.at :]
        return CallFinding(self._text(rejected).text, self._taken().calls)

    def _taken(self) -> CallFinding:
        calls = tuple(self._reader.calls)
        self._reader.calls.clear()
        self._called = self._called or bool(calls)
        return CallFinding("", calls)

    def _text(self, text: str) -> CallFinding:
        return CallFinding(text if self._reader.is_shown else "")

    def _begun_mark(self) -> int:
        """Return the length of the longest suffix of the held text that starts a mark."""
        longest = max(map(len, self._style.marks)) - 1
        lengths = range(min(longest, len(self._held)), 0, -1)
        return next((length for length in lengths if any(mark.startswith(self._held[-length:]) for mark in self._style.marks)), 0)


def _blanks_before(text: str, end: int) -> int:
    first = max(0, end - MAX_BLANKS)
    return end - first - len(text[first:end].rstrip(BLANKS))


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
        return self._parsed(self._finder.push(text))

    def finish(self) -> ParsedText:
        """Decide about held text at the end of the answer."""
        return self._parsed(self._finder.finish())

    def _parsed(self, found: CallFinding) -> ParsedText:
        return ParsedText(found.text, tuple(ToolCall(self._draw_id(), name, arguments) for name, arguments in found.calls))


def _finder(style: ToolStyle, tools: tuple[Tool, ...]) -> WholeAnswer | MarkedCalls:
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
