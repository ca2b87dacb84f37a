"""The exit status of `aicli` for every way in which a command can end.

These never change, like the error codes, because scripts branch on them. ``tests/cli/output/test_exit_codes.py`` fails if an error in
``shared.errors`` has no line here.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_AUTHENTICATED = 3
    LIMITED = 4
    NOTHING_SERVES = 5
    #: The worker ends with it too, and its systemd unit does not restart it.
    REVOKED = 6
    #: 128 + SIGINT, as shells report for an interrupted program.
    INTERRUPTED = 130


#: In the order of the help text.
MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "success",
    ExitCode.FAILED: "failure; see the error message",
    ExitCode.USAGE: "invalid command line, profile or request",
    ExitCode.NOT_AUTHENTICATED: "missing or invalid API key; run aicli login",
    ExitCode.LIMITED: "rate limit, quota or budget exceeded",
    ExitCode.NOTHING_SERVES: "unavailable: no gateway, no worker or no such model",
    ExitCode.REVOKED: "an administrator has revoked this machine",
    ExitCode.INTERRUPTED: "interrupted; the request was canceled on the worker",
}

#: Error code on the wire -> exit status.
BY_ERROR: dict[str, ExitCode] = {
    "already_exists": ExitCode.FAILED,
    "answer_gone": ExitCode.FAILED,
    "approval_pending": ExitCode.FAILED,
    "bad_request": ExitCode.USAGE,
    "bad_settings": ExitCode.USAGE,
    "bad_ticket": ExitCode.FAILED,
    "budget_exhausted": ExitCode.LIMITED,
    "cancelled": ExitCode.INTERRUPTED,
    "certificate_expired": ExitCode.FAILED,
    "clock_skew": ExitCode.FAILED,
    "content_filter": ExitCode.USAGE,
    "context_length_exceeded": ExitCode.USAGE,
    "deadline_exceeded": ExitCode.FAILED,
    "draining": ExitCode.NOTHING_SERVES,
    "idempotency_conflict": ExitCode.FAILED,
    "in_progress": ExitCode.FAILED,
    "internal": ExitCode.FAILED,
    "link_lost": ExitCode.FAILED,
    "method_not_allowed": ExitCode.FAILED,
    "model_crashed": ExitCode.FAILED,
    "node_revoked": ExitCode.REVOKED,
    "not_allowed": ExitCode.FAILED,
    "not_authenticated": ExitCode.NOT_AUTHENTICATED,
    "not_certified": ExitCode.FAILED,
    "not_found": ExitCode.FAILED,
    "not_reachable": ExitCode.NOTHING_SERVES,
    "overloaded": ExitCode.NOTHING_SERVES,
    "peer_failed": ExitCode.FAILED,
    "policy_forbidden": ExitCode.FAILED,
    "poison": ExitCode.USAGE,
    "protocol_violation": ExitCode.FAILED,
    "rate_limited": ExitCode.LIMITED,
    "tokens_too_large": ExitCode.USAGE,
    "too_large": ExitCode.USAGE,
    "unavailable": ExitCode.NOTHING_SERVES,
    "unknown_method": ExitCode.FAILED,
    "unknown_model": ExitCode.NOTHING_SERVES,
    "unsupported_media_type": ExitCode.USAGE,
    "worker_lost": ExitCode.FAILED,
    "confirmation_needed": ExitCode.NOT_AUTHENTICATED,
    "second_factor_needed": ExitCode.NOT_AUTHENTICATED,
    "wrong_role": ExitCode.FAILED,
}


def for_error(code: str) -> ExitCode:
    """Return the exit status of an error code; an unknown code of a newer peer is a plain failure."""
    return BY_ERROR.get(code, ExitCode.FAILED)
