"""The errors that this package raises, by the stable codes of the gateway.  Pure.

Match on the class, or on ``code``, which never changes; message and hint are for people and may change. An unknown code gets the class that
fits its HTTP status best, and keeps its code.
"""

import json
import math
from collections.abc import Mapping
from typing import ClassVar

#: Keeps a hostile server from filling logs.
_MAX_TEXT = 2000


class AimeshError(Exception):
    """The base class of all errors of this package."""

    #: For errors that this package raises itself.
    default_code: ClassVar[str] = "internal"

    def __init_subclass__(cls, *, code: str = "") -> None:
        cls.default_code = code or cls.default_code

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        hint: str = "",
        status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        #: What to do next; can be empty.
        self.hint = hint
        #: The HTTP status; None for errors of this package and within a stream.
        self.status = status
        #: Find the request under this id in the gateway's log.
        self.request_id = request_id
        #: Seconds until a retry makes sense; None if unknown.
        self.retry_after = retry_after
        #: The invalid field, if there is one.
        self.param = param

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class BadRequest(AimeshError, code="bad_request"):
    """The request has an invalid value; the message names the field."""


class ContextExceeded(BadRequest, code="context_length_exceeded"):
    """The prompt leaves no room for an answer in the model's context. The message gives both sizes."""


class TooLarge(BadRequest, code="too_large"):
    """The request has too many bytes or tokens."""


class NotAuthenticated(AimeshError, code="not_authenticated"):
    """The credential is missing, malformed, unknown, expired or revoked."""


class SessionEnded(NotAuthenticated, code="session_ended"):
    """The session of this client has ended; log in again."""


class BudgetExhausted(AimeshError, code="budget_exhausted"):
    """The credits are used up, or running requests hold them; the hint says which."""


class NotAllowed(AimeshError, code="not_allowed"):
    """The caller is not permitted to do this."""


class SecondFactorNeeded(NotAllowed, code="second_factor_needed"):
    """The password was correct, but a code is needed, or a second factor has to be set up."""


class ConfirmationNeeded(NotAllowed, code="confirmation_needed"):
    """The login is too old for this sensitive action; log in again."""


class NotFound(AimeshError, code="not_found"):
    """It does not exist, or you may not see it."""


class UnknownModel(NotFound, code="unknown_model"):
    """No worker serves this model; the message lists the available ones."""


class Conflict(AimeshError, code="conflict"):
    """The request conflicts with the current state."""


class AlreadyExists(Conflict, code="already_exists"):
    """The name or address is taken."""


class IdempotencyConflict(Conflict, code="idempotency_conflict"):
    """The idempotency key was used for a different request."""


class InProgress(Conflict, code="in_progress"):
    """The request with this idempotency key is still running."""


class AnswerGone(AimeshError, code="answer_gone"):
    """The answer was delivered and is no longer stored."""


class RateLimited(AimeshError, code="rate_limited"):
    """A rate limit was reached; ``retry_after`` says when to retry."""


class Cancelled(AimeshError, code="cancelled"):
    """The request was canceled."""


class ServerFailed(AimeshError, code="internal"):
    """A bug in the platform; its log has the reason under the request id."""


class Unavailable(AimeshError, code="unavailable"):
    """A worker, a store or a connection that the request needs is down; ``code`` says which."""


class Overloaded(Unavailable, code="overloaded"):
    """All workers are busy and the queue is full."""


class DeadlineExceeded(AimeshError, code="deadline_exceeded"):
    """The answer did not arrive within ``timeout``, or within the gateway's own limit."""


class ConnectionFailed(AimeshError, code="connection_failed"):
    """The gateway could not be reached, or the connection broke."""

    def __init__(self, message: str, *, hint: str = "", may_have_arrived: bool = True) -> None:
        super().__init__(message, hint=hint)
        #: Whether the gateway may have received the request.
        self.may_have_arrived = may_have_arrived


class AnswerBroken(AimeshError, code="answer_broken"):
    """A stream broke and could not be resumed; the text so far is in the stream's ``text``."""


class ProtocolError(AimeshError, code="protocol_error"):
    """The response is not from aimesh (another server, a proxy's page), or from an incompatible version."""


_OF_GATEWAY = (
    BadRequest, ContextExceeded, TooLarge, NotAuthenticated, BudgetExhausted, NotAllowed, SecondFactorNeeded, ConfirmationNeeded,
    NotFound, UnknownModel, AlreadyExists, IdempotencyConflict, InProgress, AnswerGone, RateLimited, Cancelled, ServerFailed,
    Unavailable, Overloaded, DeadlineExceeded,
)  # fmt: skip
BY_CODE: dict[str, type[AimeshError]] = {
    **{kind.default_code: kind for kind in _OF_GATEWAY},
    "insufficient_storage": TooLarge,
    "in_use": Conflict,
    "method_not_allowed": BadRequest,
    "poison": BadRequest,
    "range_not_satisfiable": BadRequest,
    "unsupported_media_type": BadRequest,
    "tokens_too_large": TooLarge,
    "draining": Unavailable,
    "file_damaged": Unavailable,
    "ledger_unavailable": Unavailable,
    "link_lost": Unavailable,
    "model_crashed": Unavailable,
    "not_reachable": Unavailable,
    "not_started": Unavailable,
    "peer_failed": Unavailable,
    "preempted": Unavailable,
    "protocol_violation": Unavailable,
    "resource_unavailable": RateLimited,
    "worker_lost": Unavailable,
}
#: OpenAI's codes, from servers that send no aimesh_code.
_OF_OPENAI: dict[str, type[AimeshError]] = {
    "insufficient_quota": BudgetExhausted,
    "invalid_api_key": NotAuthenticated,
    "model_not_found": UnknownModel,
    "rate_limit_exceeded": RateLimited,
}
_BY_STATUS: dict[int, type[AimeshError]] = {
    401: NotAuthenticated,
    402: BudgetExhausted,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    410: AnswerGone,
    413: TooLarge,
    429: RateLimited,
    499: Cancelled,
    500: ServerFailed,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
    507: TooLarge,
}


def from_response(status: int, headers: Mapping[str, str], body: bytes) -> AimeshError:
    """Return the error that a response without success describes; header names are in lower case."""
    if not 400 <= status <= 599:
        return ProtocolError(
            f"the server answered {status}, which aimesh never does",
            hint="is base_url the address of aimesh, without a path?",
            status=status,
            request_id=headers.get("x-request-id"),
        )
    found = _error_object(body)
    # On /v1, `code` has OpenAI's code.
    code = _text(found, "aimesh_code") or _text(found, "code")
    kind = BY_CODE.get(code) or _OF_OPENAI.get(code) or _by_status(status)
    return kind(
        _text(found, "message") or f"the server answered {status}",
        code=code,
        hint=_text(found, "hint"),
        status=status,
        request_id=_text(found, "request_id") or headers.get("x-request-id"),
        retry_after=_retry_after(headers),
        param=_text(found, "param") or None,
    )


def from_event(found: Mapping[str, object]) -> AimeshError:
    """Return the error that ended a stream."""
    code = _text(found, "aimesh_code") or _text(found, "code")
    kind = BY_CODE.get(code) or _OF_OPENAI.get(code, Unavailable)
    return kind(
        _text(found, "message") or "the answer ended with an error",
        code=code,
        hint=_text(found, "hint"),
        request_id=_text(found, "request_id") or None,
        param=_text(found, "param") or None,
    )


def _by_status(status: int) -> type[AimeshError]:
    return _BY_STATUS.get(status, BadRequest if status < 500 else Unavailable)


def _error_object(body: bytes) -> Mapping[str, object]:
    """Return an empty object if there is none: a proxy may have answered instead of the gateway."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    error = found.get("error") if isinstance(found, dict) else None
    return error if isinstance(error, dict) else {}


def _text(found: Mapping[str, object], name: str) -> str:
    value = found.get(name)
    return value[:_MAX_TEXT] if isinstance(value, str) else ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            seconds = float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None
