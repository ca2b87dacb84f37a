"""Decide whether a failed request is sent again, and when.  Pure: the caller passes the time left and a random number."""

from dataclasses import dataclass

from aimesh.errors import AimeshError, ConnectionFailed, InProgress, RateLimited

#: Temporary: a proxy's bad gateway, a full queue, a time limit on the way.
_TEMPORARY_STATUSES = frozenset({502, 503, 504})
#: Temporary errors inside a stream: the gateway stops, or its connection to the worker broke. Other errors in a stream are final.
_TEMPORARY_CODES = frozenset({"draining", "link_lost", "not_reachable", "unavailable"})
#: Sent with status 503, but permanent.
_PERMANENT_CODES = frozenset({"protocol_violation"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRules:
    #: In a row: new text of a stream starts the count again.
    max_retries: int = 2
    first_pause_seconds: float = 0.25
    longest_pause_seconds: float = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAttempt:
    #: In a row, including this one.
    failures: int
    #: Time until the call's deadline.
    left_seconds: float
    #: Whether sending the request twice is harmless.
    repeatable: bool


def find_pause(error: AimeshError, attempt: FailedAttempt, rules: RetryRules, drawn: float) -> float | None:
    """Return the seconds to wait before the next attempt, or None if the failure is final. ``drawn``, from 0 to 1, is the jitter."""
    if attempt.failures > rules.max_retries or not _is_temporary(error, repeatable=attempt.repeatable):
        return None
    # Bounded because no float holds 2**1024.
    exponent = min(attempt.failures - 1, 32)
    longest = min(rules.longest_pause_seconds, rules.first_pause_seconds * 2.0**exponent)
    pause = max(longest * (0.5 + drawn / 2), error.retry_after or 0.0)
    return pause if pause < attempt.left_seconds else None


def _is_temporary(error: AimeshError, *, repeatable: bool) -> bool:
    if isinstance(error, ConnectionFailed):
        return repeatable or not error.may_have_arrived
    if isinstance(error, RateLimited):
        # A limited request was not started, so a retry is safe; it only helps if the gateway says when.
        return error.retry_after is not None
    if not repeatable or error.code in _PERMANENT_CODES:
        return False
    if error.status is None:
        return error.code in _TEMPORARY_CODES
    return isinstance(error, InProgress) or error.status in _TEMPORARY_STATUSES
