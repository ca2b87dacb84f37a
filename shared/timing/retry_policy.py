"""Whether a request that failed is asked again, and when. Pure; whoever asks brings the clock and the chance.

Only for requests under an idempotency key: there asking again costs nothing twice.
"""

from dataclasses import dataclass

from shared import errors

#: The way to the gateway is broken, or the gateway goes, comes, or waits for what it needs: the same request may succeed soon.
PASSING = frozenset({"draining", "in_progress", "ledger_unavailable", "link_lost", "not_reachable", "unavailable"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    #: From the first failure on, until something comes again. More than the lease of a gateway that died, which another one waits for.
    seconds: float = 30.0
    first_pause_seconds: float = 0.2
    longest_pause_seconds: float = 2.0


DEFAULT = RetryPolicy()
#: One failure is the end.
NONE = RetryPolicy(seconds=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureFacts:
    """What has gone wrong since something came last."""

    #: In a row, the one of now included.
    failures: int
    #: Since the first of them.
    seconds: float
    #: A gateway has had the request before: there is something to go on with.
    was_taken: bool


def find_pause(error: errors.AimeshError, trouble: FailureFacts, patience: RetryPolicy, drawn: float) -> float | None:
    """Seconds until the request is asked again; None where the failure is final. ``drawn``: from 0 to 1, so that not all come at once."""
    code = errors.code_of(error)
    if code not in PASSING:
        return None
    if code == errors.NotReachable.code and not trouble.was_taken:
        # Nothing was lost, and the call has waited for a gateway already: whoever asks learns at once that there is none.
        return None
    longest = min(patience.longest_pause_seconds, patience.first_pause_seconds * 2.0 ** (trouble.failures - 1))
    pause = max(longest * (0.5 + drawn / 2), error.retry_after_seconds or 0.0)
    return pause if trouble.seconds + pause <= patience.seconds else None
