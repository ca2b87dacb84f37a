"""Decides when to hold credits for more of an answer, and where it ends because no more are held. Pure.

An answer without ``max_tokens`` may take what fits the model's context, so its worker gets a high limit. The gateway holds the cost of one
step, asks for the next one early, and cuts the answer off where a step is refused. What was cut off is neither delivered nor billed.
"""

from services.gateway.facts.tally import Tally

#: For each answer. A page of text fits, so most answers need no second step.
STEP_TOKENS = 4096
#: A first step may be smaller, but each step costs a call.
_MIN_STEP = 256
#: The next step is asked for when this share of a step is left: 512 tokens, seconds before they are needed.
_LEAD_SHARE = 8


class Hold:
    """An answer without token ids is counted by its weight; for its last step by its pieces, which have at least a token."""

    def __init__(self, *, held: int, most: int, answers: int, is_open_ended: bool = True) -> None:
        """``held`` and ``most`` are tokens of each answer. Unless it is open-ended, the worker ends it."""
        self._is_open_ended = is_open_ended
        self._held, self._most, self._answers = held, most, answers
        self._step = max(held, _MIN_STEP)
        self._is_refused = False

    @property
    def wanted(self) -> int:
        """Return how many tokens of each answer to hold next."""
        return min(self._held + self._step, self._most)

    @property
    def most_tokens(self) -> int:
        """Return what is held for all answers."""
        return self._held * self._answers

    @property
    def can_grow(self) -> bool:
        return not (self._is_refused or self._is_last)

    @property
    def _is_last(self) -> bool:
        return self._held >= self._most

    def fits(self, at: Tally) -> bool:
        """Return whether an answer with this count may be delivered."""
        return not self._is_open_ended or (at.ids or (at.pieces if self._is_last else at.weight)) <= self.most_tokens

    def needs_step(self, at: Tally) -> bool:
        """Return whether it is time to ask for the next step."""
        return (at.ids or at.weight) >= (self._held - self._step // _LEAD_SHARE) * self._answers and self.can_grow

    def extended(self, held: int) -> None:
        """Take the answer to ``wanted``. Less is the last step."""
        self._is_refused = held < self.wanted
        self._held = max(self._held, held)
