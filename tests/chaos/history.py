"""What clients saw during a fault: each request with its pieces, their times, and its end. Pure data."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from shared.types import RequestId, UserId
from tests.chaos.oracle import DONE, Door

#: The objective: the share of admitted requests that succeed.
AVAILABILITY = 0.999
#: The end of a call whose client disconnected on purpose.
LEFT = "left"


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer, as received."""

    #: Monotonic seconds.
    at: float
    text: str
    #: The gateway's number for it; 0 if it has none.
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, as its client saw it; reconnecting continues the same call."""

    owner: UserId
    door: Door
    prompt: str
    began: float
    ended: float
    pieces: tuple[Piece, ...] = ()
    #: Every terminal event, in order: DONE, LEFT, or an error's code.
    ends: tuple[str, ...] = ()
    #: None if no response began.
    status: int | None = None
    request_id: RequestId | None = None
    #: Prompt and completion tokens of a complete answer.
    usage: tuple[int, int] | None = None
    #: The client's idempotency key, for repeats.
    key: str | None = None
    #: How often the connection broke and the client reconnected.
    returns: int = 0
    #: 2 for a request that was sent once more because the first attempt failed.
    attempt: int = 1
    #: How long the error asked the client to wait.
    retry_after: float | None = None

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def succeeded(self) -> bool:
        return self.ends == (DONE,)

    @property
    def failed(self) -> bool:
        return not self.succeeded and self.ends != (LEFT,)

    @property
    def longest_pause(self) -> float:
        """Return the longest time without a piece, including the time before the first and after the last."""
        times = [self.began, *(piece.at for piece in self.pieces), self.ended]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    def ran_at(self, moment: float) -> bool:
        return self.began <= moment < self.ended


def availability(calls: Sequence[Call]) -> tuple[float, float]:
    """Return the share of requests that did not fail, and the share of those that did not fail twice."""
    requests = [call for call in calls if call.attempt == 1]
    answered = {call.prompt for call in calls if call.attempt == 2 and not call.failed}
    failed = [call for call in requests if call.failed]
    twice = [call for call in failed if call.prompt not in answered]
    return 1 - len(failed) / len(requests), 1 - len(twice) / len(requests)


def longest_outage(calls: Sequence[Call]) -> float:
    """Return the longest time in which no request was answered."""
    answered = sorted(call.ended for call in calls if call.succeeded)
    times = [min(call.began for call in calls), *answered, max(call.ended for call in calls)]
    return max(after - before for before, after in pairwise(times))


def service_level(calls: Sequence[Call]) -> str:
    """Describe the mesh's two objectives: whole answers take less than 5 s on average, and the share of requests that did not fail."""
    waits = [call.pieces[0].at - call.began for call in calls if call.pieces]
    whole = [call.ended - call.began for call in calls if call.succeeded]
    if not waits:
        return "no answers"
    times = [f"{sum(seconds) / len(seconds):.2f} s" if seconds else "unknown" for seconds in (waits, whole)]
    plain, retried = availability(calls)
    has_retries = any(call.attempt == 2 for call in calls)
    more = f", with one retry as of our SDKs {retried:.3%} (objective: {AVAILABILITY:.1%})" if has_retries else ""
    averages = f"average time to first text {times[0]}, average whole answer {times[1]} (objective: below 5 s)"
    return f"{averages}, answered {plain:.2%}{more}, longest time without an answer {longest_outage(calls):.1f} s"


def outcomes(calls: Iterable[Call]) -> dict[str, int]:
    """Count the calls by their end, most frequent first."""
    return dict(Counter("+".join(call.ends) or "nothing" for call in calls).most_common())


def failing_seconds(calls: Sequence[Call], fault_at: float) -> float:
    """Return the seconds from the fault to the start of the last call that failed; 0 if none did."""
    return max((call.began - fault_at for call in calls if call.failed), default=0.0)


def longest_pause(calls: Sequence[Call], fault_at: float) -> float:
    """Return the longest pause of the successful calls that were running when the fault began."""
    return max((call.longest_pause for call in calls if call.succeeded and call.ran_at(fault_at)), default=0.0)
