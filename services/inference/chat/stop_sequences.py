"""Searches an answer for stop sequences.  Pure."""


class StopSequences:
    """Searches a text for the earliest of several stop sequences, however the text is split into pieces."""

    def __init__(self, sequences: tuple[str, ...]) -> None:
        self._sequences = sequences
        #: The end of the text that may be the start of a stop sequence; shorter than the longest of them.
        self._held = ""
        #: A stop sequence is complete; the text ends before it.
        self.stopped = False

    def push(self, text: str) -> str:
        """Add text; return the part that can't belong to a stop sequence."""
        self._held += text
        found = [at for at in (self._held.find(sequence) for sequence in self._sequences) if at >= 0]
        self.stopped = self.stopped or bool(found)
        cut = min(found) if found else len(self._held) - self._longest_beginning()
        shown, self._held = self._held[:cut], "" if found else self._held[cut:]
        return shown

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
