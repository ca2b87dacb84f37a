"""The queue before one model: whose turn it is, how fast it moves, and what those who wait are told.  Pure; the caller brings the
clock."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.gateway.scheduling import fair_queue
from services.gateway.scheduling.fair_queue import FairQueue
from services.gateway.scheduling.routing import WorkerRequirements

#: How much the newest request moves a mean: about the last ten count.
_WEIGHT = 0.2
#: Until an answer has ended, they are taken to be so long; then the mean says.
_FIRST_GUESS_TOKENS = 256.0
#: Working out everybody's place costs some milliseconds where a thousand wait, and people read no faster.
_PLACES_SECONDS = 1.0
#: For one that has no place yet.
_NEWCOMERS_SECONDS = 0.2
#: What is said where nothing is known of how fast it goes.
UNKNOWN_RETRY_SECONDS = 5.0

Ticket = TypeVar("Ticket", bound=Hashable)


@dataclass(slots=True)
class ModelQueue(Generic[Ticket]):
    queue: FairQueue[Ticket] = field(default_factory=FairQueue)
    #: Of a request, from its start on a worker to its end; 0 until one has ended.
    mean_seconds: float = 0.0
    mean_tokens: float = _FIRST_GUESS_TOKENS
    #: Of the workers that could run something of it.
    slots: int = 1
    #: When it was last seen whether somebody can begin.
    looked_at: float = float("-inf")
    _places: dict[Ticket, int] = field(default_factory=dict)
    _placed_at: float = float("-inf")

    def cost(self, wish: WorkerRequirements) -> float:
        """What it is charged with until it is known: the prompt's bound counts bytes, of which a token has about four."""
        return fair_queue.cost(wish.prompt_tokens / 4, min(wish.max_tokens, self.mean_tokens))

    def ended(self, seconds: float) -> None:
        self.mean_seconds = seconds if not self.mean_seconds else _moved(self.mean_seconds, seconds)

    def answered(self, tokens: int) -> None:
        self.mean_tokens = _moved(self.mean_tokens, tokens)

    def expected_seconds(self, position: int) -> float | None:
        """Until the one at this place begins; None where nothing is known yet."""
        return position * self.mean_seconds / max(1, self.slots) if self.mean_seconds else None

    def retry_seconds(self, position: int) -> float:
        """When the one at this place would have had its turn: to come earlier is to be refused again."""
        expected = self.expected_seconds(position)
        return UNKNOWN_RETRY_SECONDS if expected is None else max(1.0, expected)

    def words(self, ticket: Ticket, now: float) -> str:
        """For people; empty for a newcomer that has no place yet: the next look has one."""
        if now - self._placed_at >= (_PLACES_SECONDS if ticket in self._places else _NEWCOMERS_SECONDS):
            self._places = {each: place for place, each in enumerate(self.queue.order(), 1)}
            self._placed_at = now
        place = self._places.get(ticket)
        if place is None:
            return ""
        expected = self.expected_seconds(place)
        about = "" if expected is None else f", about {max(1, round(expected))} s"
        return f"position {place} of {max(place, len(self.queue))}{about}"


def _moved(mean: float, newest: float) -> float:
    return (1 - _WEIGHT) * mean + _WEIGHT * newest
