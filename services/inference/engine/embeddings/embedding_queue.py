"""Which tokens of which texts the next batch of embeddings computes.  Pure.

Texts are taken in the order in which they came. A model that reads forward only can compute a long one in pieces, as many tokens
in one batch as the answers that are running can bear; a model that reads both ways needs a text whole.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EmbeddingText:
    """One of those that a request has."""

    request: int
    #: Which of them, from 0.
    number: int
    tokens: Sequence[int]
    #: How many numbers of its vector are asked for.
    dimensions: int


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Tokens of one text that a batch computes."""

    slot: int
    text: EmbeddingText
    #: Position of the first of the tokens.
    start: int
    tokens: Sequence[int]

    @property
    def ends(self) -> bool:
        """Whether the text is complete after it."""
        return self.start + len(self.tokens) == len(self.text.tokens)


class EmbeddingQueue:
    """At most one text is begun and not finished; so besides it only one batch has to fit the model's memory."""

    def __init__(self, slots: int, *, whole: bool) -> None:
        #: Texts in one batch.
        self._slots = slots
        #: Whether a text must be computed at once, whatever the budget says.
        self._whole = whole
        self._waiting: deque[EmbeddingText] = deque()
        #: Where the first of those that wait lies, or will, and how many of its tokens are computed.
        self._slot = 0
        self._begun = 0

    @property
    def idle(self) -> bool:
        return not self._waiting

    def submit(self, texts: Sequence[EmbeddingText]) -> None:
        """Each has at least one token."""
        self._waiting.extend(texts)

    def take(self, budget: int) -> list[TextPiece]:
        """The next batch, of about so many tokens and never of none, which the caller computes; empty when nothing waits."""
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
        """Forget a request's texts; says which slot is to be cleared, if any. Unknown ones are already over."""
        begun = self._slot if self._begun and self._waiting[0].request == request else None
        if begun is not None:
            self._next()
        self._waiting = deque(text for text in self._waiting if text.request != request)
        return begun

    def _next(self) -> None:
        self._waiting.popleft()
        self._slot, self._begun = (self._slot + 1) % self._slots, 0
