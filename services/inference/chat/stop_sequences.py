"""Searches an answer for stop sequences.  Pure."""

from collections.abc import Collection


def beginning_at_end(text: str, words: Collection[str]) -> str:
    """Return the longest end of the text that may be the beginning of a word; empty if there is none."""
    longest = max(map(len, words), default=1) - 1
    ends = (text[start:] for start in range(max(0, len(text) - longest), len(text)))
    return next((end for end in ends if any(word.startswith(end) and word != end for word in words)), "")


class StopSequences:
    """Searches a text for the earliest of several stop sequences, however the text is split into pieces."""

    def __init__(self, sequences: tuple[str, ...]) -> None:
        self._sequences = sequences
        #: The end of the text that may be the start of a stop sequence; shorter than the longest of them.
        self._held = ""
        #: The stop sequence that is complete, if any; the text ends before it.
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Add text; return the part that can't belong to a stop sequence."""
        self._held += text
        # Of two at one place, the first one counts.
        found = {at: sequence for sequence in reversed(self._sequences) if (at := self._held.find(sequence)) >= 0}
        cut = min(found) if found else len(self._held) - len(beginning_at_end(self._held, self._sequences))
        self.found = self.found or found.get(cut)
        shown, self._held = self._held[:cut], "" if found else self._held[cut:]
        return shown

    def finish(self) -> str:
        """Return the text that was held back, at the end."""
        held, self._held = self._held, ""
        return held
