"""Chooses the tokens for the next batch of embeddings.  Pure.

Texts are computed in order of arrival. A causal model can compute a long text in pieces, so that running answers aren't slowed; a
bidirectional model needs a whole text at once.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EmbeddingText:
    """One text of a request."""

    request: int
    number: int
    tokens: Sequence[int]
    dimensions: int


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Tokens of one text in a batch."""

    slot: int
    text: EmbeddingText
    start: int
    tokens: Sequence[int]

    @property
    def ends(self) -> bool:
        """Whether it is the text's last piece."""
        return self.start + len(self.tokens) == len(self.text.tokens)


class EmbeddingQueue:
    """At most one text is unfinished, so the model's memory must fit only that text and one batch."""

    def __init__(self, slots: int, *, whole: bool) -> None:
        self._slots = slots
        #: Compute texts at once, regardless of the budget.
        self._whole = whole
        self._waiting: deque[EmbeddingText] = deque()
        #: The slot of the first waiting text, and the number of its computed tokens.
        self._slot = 0
        self._begun = 0

    @property
    def idle(self) -> bool:
        return not self._waiting

    def submit(self, texts: Sequence[EmbeddingText]) -> None:
        """Each has at least one token."""
        self._waiting.extend(texts)

    def take(self, budget: int) -> list[TextPiece]:
        """Return the next batch of about ``budget`` tokens, and at least one; empty if nothing waits."""
        pieces: list[TextPiece] = []
        while self._waiting and len(pieces) < self._slots and (budget > 0 or not pieces):
            text = self._waiting[0]
            left = len(text.tokens) - self._begun
            if self._whole and pieces and left > budget:
                break
            count = left if self._whole else min(left, max(1, budget))
            piece = TextPiece(self._slot, text, self._begun, text.tokens[self._begun : self._begun + count])
            pieces.append(piece)
            budget -= count
            self._begun += count
            if piece.ends:
                self._next()
        return pieces

    def cancel(self, request: int) -> int | None:
        """Forget a request's texts; return the slot to clear, if any. Unknown requests have already ended."""
        begun = self._slot if self._begun and self._waiting[0].request == request else None
        if begun is not None:
            self._next()
        self._waiting = deque(text for text in self._waiting if text.request != request)
        return begun

    def _next(self) -> None:
        self._waiting.popleft()
        self._slot, self._begun = (self._slot + 1) % self._slots, 0
