"""Finds tool calls that start with a mark, anywhere in an answer; `tool_styles` parses them.  Pure."""

from collections.abc import Mapping

from services.inference.tool_calls.call_findings import BLANKS, MAX_BLANKS, MAX_HELD_CHARACTERS, CallFinding
from services.inference.tool_calls.call_reader import CallReader, NoCall, Waiting
from services.inference.tool_calls.tagged_values import Properties
from services.inference.tool_calls.tool_styles import Style

#: The blanks before a call are held back too.
_MOST_CHARACTERS = MAX_HELD_CHARACTERS - MAX_BLANKS


class MarkedCalls:
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
        """Return the complete calls."""
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
    """Count the blanks before ``end``, up to MAX_BLANKS."""
    first = max(0, end - MAX_BLANKS)
    return end - first - len(text[first:end].rstrip(BLANKS))
