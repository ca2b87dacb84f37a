"""Decides whether and when to repeat a request that failed. Pure: the caller brings the clock and the random numbers.

Only for requests under an idempotency key, where a repeat is never billed twice.
"""

from dataclasses import dataclass

from shared import errors
from shared.timing.backoff import Backoff

#: The connection to the gateway broke, or the gateway is starting, stopping or waiting: the same request may succeed soon.
PASSING = frozenset({"draining", "in_progress", "ledger_unavailable", "link_lost", "not_reachable", "unavailable"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    #: From the first failure until something arrives again. Longer than the lease of a dead gateway, which its successor waits for.
    seconds: float = 30.0
    first_pause_seconds: float = 0.2
    longest_pause_seconds: float = 2.0


DEFAULT = RetryPolicy()
#: Never repeat.
NONE = RetryPolicy(seconds=0)


def find_pause(
    error: errors.AimeshError, policy: RetryPolicy, *, failures: int, seconds: float, was_accepted: bool, drawn: float
) -> float | None:
    """Return the seconds until the next attempt, or None if the failure is final.

    ``failures`` are those since something last arrived, this one included, and ``seconds`` the time since the first of them.
    ``was_accepted``: a gateway accepted the request in an earlier attempt, so there may be an answer to resume. ``drawn`` is a random
    number from 0 to 1.
    """
    code = errors.code_of(error)
    if code not in PASSING:
        return None
    if code == errors.NotReachable.code and not was_accepted:
        # The call already waited for a gateway, or the gateway for a worker, and there is nothing to resume.
        return None
    backoff = Backoff(policy.first_pause_seconds, policy.longest_pause_seconds, jitter=0.5)
    pause = max(backoff.pause(failures, lambda: drawn), error.retry_after_seconds or 0.0)
    return pause if seconds + pause <= policy.seconds else None
