"""Turns the bytes of tokens into visible text: whole characters, without stop sequences and tool calls.  Pure."""

import codecs
from dataclasses import dataclass, field

from services.inference.tool_calls.tool_call_parser import ParsedText, ToolCallParser
from shared.api.generation import ToolCall


@dataclass(frozen=True, slots=True)
class VisibleText:
    """The text that a token made visible."""

    text: str
    #: A stop sequence is complete; the text ends before it.
    stopped: bool = False
    calls: tuple[ToolCall, ...] = ()


class StopSequences:
    """Searches a text for the earliest of several stop sequences, however the text is split into pieces."""

    def __init__(self, sequences: tuple[str, ...]) -> None:
        self._sequences = sequences
        #: The end of the text that may be the start of a stop sequence; shorter than the longest of them.
        self._held = ""

    def push(self, text: str) -> VisibleText:
        """Add text; return the part that can't belong to a stop sequence."""
        self._held += text
        found = [at for at in (self._held.find(sequence) for sequence in self._sequences) if at >= 0]
        if found:
            shown = self._held[: min(found)]
            self._held = ""
            return VisibleText(shown, stopped=True)
        keep = self._longest_beginning()
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return VisibleText(shown)

    def finish(self) -> str:
        """Return the text that was held back, at the end."""
        held, self._held = self._held, ""
        return held

    def _longest_beginning(self) -> int:
        """Return the length of the longest suffix of the held text that is a prefix of a stop sequence."""
        longest = max((len(sequence) for sequence in self._sequences), default=0)
        for length in range(min(longest - 1, len(self._held)), 0, -1):
            if any(sequence.startswith(self._held[-length:]) for sequence in self._sequences):
                return length
        return 0


@dataclass(slots=True)
class AnswerText:
    """The visible text of one generation."""

    stops: StopSequences
    calls: ToolCallParser | None = None
    #: Invalid bytes become U+FFFD; incomplete characters are held back.
    _characters: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def push(self, piece: bytes) -> VisibleText:
        shown = self.stops.push(self._characters.decode(piece))
        if self.calls is None:
            return shown
        parsed = self.calls.push(shown.text)
        last = self.calls.finish() if shown.stopped else ParsedText()
        return VisibleText(parsed.text + last.text, shown.stopped, parsed.calls + last.calls)

    def finish(self) -> VisibleText:
        """Return the rest, at the end. An incomplete character is dropped."""
        held = self.stops.finish()
        if self.calls is None:
            return VisibleText(held)
        parsed, last = self.calls.push(held), self.calls.finish()
        return VisibleText(parsed.text + last.text, calls=parsed.calls + last.calls)
