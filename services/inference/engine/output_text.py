"""Turns the bytes of tokens into what may be shown: whole characters only, nothing of a stop sequence, calls of tools apart.  Pure."""

import codecs
from dataclasses import dataclass, field

from services.inference.tool_calls.tool_call_parser import Parsed, ToolCallParser
from shared.api.generation import ToolCall


@dataclass(frozen=True, slots=True)
class Shown:
    """What a token made visible."""

    text: str
    #: A stop sequence is complete: the text ends just before it and the generation is over.
    stopped: bool = False
    #: Calls of tools that are complete now.
    calls: tuple[ToolCall, ...] = ()


class StopSequences:
    """Watches a text for the earliest of several stop sequences, wherever the borders between its pieces lie."""

    def __init__(self, sequences: tuple[str, ...]) -> None:
        self._sequences = sequences
        #: The end of the text so far that may yet become a stop sequence; always shorter than the longest of them.
        self._held = ""

    def push(self, text: str) -> Shown:
        """The text that can no longer become part of a stop sequence."""
        self._held += text
        found = [at for at in (self._held.find(sequence) for sequence in self._sequences) if at >= 0]
        if found:
            shown = self._held[: min(found)]
            self._held = ""
            return Shown(shown, stopped=True)
        keep = self._longest_beginning()
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return Shown(shown)

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _longest_beginning(self) -> int:
        """The length of the longest end of the held text that is a beginning of a stop sequence."""
        longest = max((len(sequence) for sequence in self._sequences), default=0)
        for length in range(min(longest - 1, len(self._held)), 0, -1):
            if any(sequence.startswith(self._held[-length:]) for sequence in self._sequences):
                return length
        return 0


@dataclass(slots=True)
class Output:
    """The visible text of one generation."""

    stops: StopSequences
    #: None where no tools are on offer.
    calls: ToolCallParser | None = None
    #: Bytes that are no UTF-8 at all become U+FFFD; a character that is only incomplete waits for its rest.
    _characters: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def push(self, piece: bytes) -> Shown:
        shown = self.stops.push(self._characters.decode(piece))
        if self.calls is None:
            return shown
        parsed = self.calls.push(shown.text)
        last = self.calls.finish() if shown.stopped else Parsed()
        return Shown(parsed.text + last.text, shown.stopped, parsed.calls + last.calls)

    def finish(self) -> Shown:
        """The rest, when the model has ended. Half a character at the very end is not text and is dropped."""
        held = self.stops.finish()
        if self.calls is None:
            return Shown(held)
        parsed, last = self.calls.push(held), self.calls.finish()
        return Shown(parsed.text + last.text, calls=parsed.calls + last.calls)
