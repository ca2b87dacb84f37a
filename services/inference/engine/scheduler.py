"""Which sequence does what in the next step.  Pure.

A step is either one chunk of one prompt, or one token for every sequence that is answering; the two alternate while
both have work. So a long prompt delays the others by one chunk at a time, and each prompt is computed in chunks of its
own, the same ones alone and in company: that is what keeps `same seed, same tokens` true (the shape of a batch decides
in which order floats are summed).
"""

from collections import deque
from dataclasses import dataclass

from services.inference.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens of one sequence that a step puts into the model's memory."""

    slot: int
    sequence: Sequence
    #: Position of the first of the tokens.
    start: int
    tokens: tuple[int, ...]
    #: Whether the sequence's next token is to be sampled after these.
    sample: bool


class Scheduler:
    """Owns the slots: at most one sequence in each, the others wait in order of arrival."""

    def __init__(self, slots: int, chunk_tokens: int) -> None:
        self._chunk_tokens = chunk_tokens
        self._free = deque(range(slots))
        self._waiting: deque[Sequence] = deque()
        #: In order of admission.
        self._running: dict[int, Sequence] = {}
        self._prefilled_last = False

    @property
    def idle(self) -> bool:
        return not self._running and not self._waiting

    def submit(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def admit(self) -> list[tuple[int, Sequence]]:
        """Put waiting sequences into free slots; says which went where."""
        admitted = []
        while self._free and self._waiting:
            slot, sequence = self._free.popleft(), self._waiting.popleft()
            self._running[slot] = sequence
            admitted.append((slot, sequence))
        return admitted

    def plan(self) -> list[Feed]:
        """The next step; empty when nothing runs. The caller computes it and reports it with ``fed``."""
        prefilling = next(((slot, sequence) for slot, sequence in self._running.items() if sequence.prefilling), None)
        answering = [(slot, sequence) for slot, sequence in self._running.items() if not sequence.prefilling]
        if prefilling is not None and not (self._prefilled_last and answering):
            self._prefilled_last = True
            slot, sequence = prefilling
            end = min(sequence.fed + self._chunk_tokens, sequence.prompt_tokens)
            return [_feed(slot, sequence, end)]
        self._prefilled_last = False
        return [_feed(slot, sequence, len(sequence.tokens)) for slot, sequence in answering]

    def fed(self, feeds: list[Feed]) -> None:
        """The step has been computed."""
        for feed in feeds:
            feed.sequence.fed += len(feed.tokens)

    def remove(self, slot: int) -> None:
        """The sequence in ``slot`` has ended."""
        del self._running[slot]
        self._free.append(slot)

    def cancel(self, identity: int) -> int | None:
        """Forget a sequence, wherever it is; the slot that it leaves, if it had one. Unknown ids are already over."""
        for slot, sequence in self._running.items():
            if sequence.id == identity:
                self.remove(slot)
                return slot
        self._waiting = deque(sequence for sequence in self._waiting if sequence.id != identity)
        return None


def _feed(slot: int, sequence: Sequence, end: int) -> Feed:
    return Feed(slot, sequence, sequence.fed, tuple(sequence.tokens[sequence.fed : end]), sample=end == len(sequence.tokens))
