"""Decides what follows the end of an attempt. Pure."""

import random
from collections.abc import Callable
from enum import Enum, auto

import msgspec

from shared import errors
from shared.timing.backoff import Backoff

#: Returns numbers from 0 to 1.
Draw = Callable[[], float]

_BACKOFF = Backoff(first_seconds=1.0, longest_seconds=300.0, jitter=0.5)
#: A line that made way comes again so soon.
_ASIDE_SECONDS = 1.0
#: A job without credits looks again so soon.
_CREDITS_SECONDS = 60.0
#: So often, a line may end by a fault of ours, or take too long.
_MAX_FAULTS = 3


class Next(Enum):
    #: The line has its result.
    END = auto()
    AGAIN = auto()
    #: It made way; the attempt doesn't count.
    SET_ASIDE = auto()
    #: No line of the job can run now.
    HOLD = auto()
    #: The owner may not run the job any more.
    CANCEL = auto()


class Verdict(msgspec.Struct, frozen=True):
    next: Next
    #: Until the next attempt.
    seconds: float = 0.0
    why: str = ""


#: The first that matches counts. What is in none is tried again if it is retryable, and else the line's result.
_RULES: tuple[tuple[tuple[type[errors.AimeshError], ...], Next], ...] = (
    ((errors.ResourceUnavailable, errors.Preempted, errors.Limited), Next.SET_ASIDE),
    ((errors.BudgetExhausted,), Next.HOLD),
    # Its workers are away, or a peer is no member of the mesh.
    ((errors.UnknownModel, errors.NotCertified), Next.AGAIN),
    ((errors.NotAuthenticated, errors.NotAllowed), Next.CANCEL),
)


def judge(error: errors.AimeshError | None, status: int, attempt: int, draw: Draw = random.random) -> Verdict:
    """``error``: None if there is none, or one of ours, such as a bug."""
    is_fault = status >= errors.Internal.status if error is None else isinstance(error, errors.DeadlineExceeded)
    if is_fault and attempt >= _MAX_FAULTS:
        return Verdict(Next.END)
    if error is None:
        return Verdict(Next.AGAIN, _BACKOFF.pause(attempt, draw)) if is_fault else Verdict(Next.END)
    usual = Next.AGAIN if error.retryable else Next.END
    match next((then for kinds, then in _RULES if isinstance(error, kinds)), usual):
        case Next.SET_ASIDE:
            return Verdict(Next.SET_ASIDE, error.retry_after_seconds or _ASIDE_SECONDS)
        case Next.HOLD:
            return Verdict(Next.HOLD, _CREDITS_SECONDS, "no credits")
        case Next.AGAIN:
            return Verdict(Next.AGAIN, _BACKOFF.pause(attempt, draw), error.message)
        case then:
            return Verdict(then, why=error.message)
