"""Whether a request that failed is sent again, and when.  Pure; whoever asks brings the clock and the chance."""

from dataclasses import dataclass

from aimesh.errors import AimeshError, ConnectionFailed, InProgress, RateLimited

#: Something between us and the model was not there for a moment: a proxy's bad gateway, a full queue, a time limit on the way.
_PASSING_STATUSES = frozenset({502, 503, 504})
#: The same in words, as a stream that had begun tells it: the gateway goes, or the way to it broke. All else in a stream is its end.
_PASSING_CODES = frozenset({"draining", "link_lost", "not_reachable", "unavailable"})
#: A 503 that stays one.
_LASTING_CODES = frozenset({"protocol_violation"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRules:
    #: After the first try, and after everything that came through.
    max_retries: int = 2
    first_pause_seconds: float = 0.25
    longest_pause_seconds: float = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAttempt:
    #: In a row, the one of now included.
    failures: int
    #: Until the time is over.
    left_seconds: float
    #: Sending it again does no harm, whether it had arrived or not.
    repeatable: bool


def find_pause(error: AimeshError, trouble: FailedAttempt, patience: RetryRules, drawn: float) -> float | None:
    """Seconds until the request is sent again; None where the failure is final. ``drawn``: from 0 to 1, so that not all come at once."""
    if trouble.failures > patience.max_retries or not _passes(error, repeatable=trouble.repeatable):
        return None
    # The exponent is bounded, because no float holds 2**1024.
    longest = min(patience.longest_pause_seconds, patience.first_pause_seconds * 2.0 ** min(trouble.failures - 1, 32))
    pause = max(longest * (0.5 + drawn / 2), error.retry_after or 0.0)
    return pause if pause < trouble.left_seconds else None


def _passes(error: AimeshError, *, repeatable: bool) -> bool:
    if isinstance(error, ConnectionFailed):
        return repeatable or not error.may_have_arrived
    if isinstance(error, RateLimited):
        # It was not let in, so nothing of it was done. Without a word on when, nothing says that it helps.
        return error.retry_after is not None
    if not repeatable or error.code in _LASTING_CODES:
        return False
    if error.status is None:
        return error.code in _PASSING_CODES
    return isinstance(error, InProgress) or error.status in _PASSING_STATUSES
