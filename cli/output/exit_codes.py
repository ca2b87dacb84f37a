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
    #: A batch has ended, and some of its lines have no answer.
    INCOMPLETE = 7
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
    ExitCode.INCOMPLETE: "some lines of the batch have no answer",
    ExitCode.INTERRUPTED: "interrupted; the request was canceled on the worker",
}

#: Exit status -> error codes on the wire.
_ERRORS: dict[ExitCode, str] = {
    ExitCode.FAILED: """
        already_exists answer_gone approval_pending authorization_pending bad_ticket certificate_expired clock_skew
        deadline_exceeded file_damaged idempotency_conflict in_progress in_use insufficient_storage internal link_lost
        method_not_allowed model_crashed not_allowed not_certified not_found peer_failed person_refused policy_forbidden protocol_violation
        slow_down unknown_method worker_lost wrong_role
    """,
    ExitCode.USAGE: """
        bad_request bad_settings content_filter context_length_exceeded poison range_not_satisfiable tokens_too_large
        too_large unsupported_media_type
    """,
    ExitCode.NOT_AUTHENTICATED: "access_denied confirmation_needed expired_token not_authenticated second_factor_needed",
    ExitCode.LIMITED: "budget_exhausted rate_limited",
    ExitCode.NOTHING_SERVES: (
        "config_unreadable draining not_reachable not_started overloaded preempted resource_unavailable unavailable unknown_model"
    ),
    ExitCode.REVOKED: "node_revoked",
    ExitCode.INTERRUPTED: "cancelled",
}
BY_ERROR: dict[str, ExitCode] = {code: status for status, codes in _ERRORS.items() for code in codes.split()}


def for_error(code: str) -> ExitCode:
    """Return the exit status of an error code; an unknown code of a newer peer is a plain failure."""
    return BY_ERROR.get(code, ExitCode.FAILED)
