"""A request on its way through the gateway, whatever it asks for: what its row will say of it."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from typing import ClassVar

from services.gateway.billing.ledger import HeldCredits
from services.gateway.limits.limit_rules import Spent, TightestLimit
from services.gateway.scheduling.worker_claims import Claim
from shared import context
from shared.api.generation import Usage
from shared.discovery.directory import DirectoryEntry
from shared.types import MicroCredits, ModelName, RequestId


class ActiveRequest(ABC):
    """Made when a request enters the pipeline."""

    #: As the metrics name it, at all doors.
    method: ClassVar[str]

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.request_id = _request_id()
        self.began_at = datetime.now(UTC)
        self._began = clock()
        self._ended: float | None = None
        self.prompt_hash: str | None = None
        #: Known after routing and limiting, so before the first answer.
        self.model: ModelName | None = None
        #: Of the limits; None until it is let in.
        self.spent: Spent | None = None
        #: What it may cost; None until that is reserved.
        self.held: HeldCredits | None = None
        #: What the worker says; closing it ends the work there.
        self.answers: AsyncGenerator[object] | None = None
        self._claims: list[Claim] = []
        #: When the first of the answer came, whatever it was.
        self._first_word: float | None = None
        #: Fixed when the request ended.
        self._computed: float | None = None
        #: Asked when it is cancelled: whether another gateway goes on with it, and writes its row.
        self.goes_on_elsewhere: Callable[[], bool] = lambda: False
        #: Its caller gets the answer as a whole, or nothing of it.
        self.seen_at_end = False
        #: Nobody can get the answer, because it is too large for the way that it was asked by.
        self.undeliverable = False
        #: Who runs it; None until that is decided, and where nobody has to.
        self.worker: DirectoryEntry | None = None

    def runs_on(self, claim: Claim) -> None:
        """Told for each worker that it is given to."""
        self.worker = claim.worker
        self._claims.append(claim)

    @property
    def compute_seconds(self) -> float:
        """How long workers worked on what was delivered; its waiting for them costs nothing."""
        if self._computed is not None:
            return self._computed
        # Who joined the answer of another request has no worker, and pays from the first word on.
        joined = 0.0 if self._claims or self._first_word is None else self._clock() - self._first_word
        return joined + sum(claim.seconds for claim in self._claims)

    @property
    def allowance(self) -> TightestLimit | None:
        """What is left of the limits, for the headers of the answer."""
        return None if self.spent is None else self.spent.tightest

    @property
    @abstractmethod
    def usage(self) -> Usage:
        """What was delivered so far."""

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether the worker has said that this is all."""

    @property
    def first_text_seconds(self) -> float | None:
        """None where no text was delivered."""
        return None

    @property
    def chunks(self) -> int:
        """Pieces that its text came in."""
        return 0

    @property
    def cached(self) -> bool:
        """Whether its answer was given before."""
        return False

    @property
    def begins_conversation(self) -> bool:
        """Whether it goes on from no earlier answer, as far as its messages tell."""
        return False

    @property
    def saved_micro(self) -> MicroCredits:
        """What its tokens would have cost that were given before."""
        if self.held is None or not (self.cached and self.complete):
            return MicroCredits(0)
        return self.held.price.cost(self.usage.prompt_tokens, self.usage.completion_tokens, 0)

    @property
    def cost_micro(self) -> MicroCredits:
        """Of what was delivered so far; nothing where that is nothing, or was given before."""
        if self.held is None or self.cached or not (self.complete or self.usage.completion_tokens):
            return MicroCredits(0)
        return self.held.price.cost(self.usage.prompt_tokens, self.usage.completion_tokens, self.compute_seconds)

    @property
    def response_time_ms(self) -> int:
        """The same in the answer and in the row: fixed when the request ended."""
        return milliseconds((self._ended if self._ended is not None else self._clock()) - self._began)

    def end(self) -> None:
        self._computed = self.compute_seconds
        self._ended = self._clock()

    @property
    def seconds_so_far(self) -> float:
        return self._clock() - self._began


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _request_id() -> RequestId:
    """Always made here, never a caller's: it is the row's key, and a used one would be a request without a row."""
    now = context.current.get()
    return now.request_id if now is not None else context.start().request_id
