"""Every error that this package raises: one tree, by the stable codes of the gateway.  Pure.

Match on the class, or on ``code``, which is for ever; message and hint are for people and may change. A code that this version does not
know has the class that is closest by its HTTP status, and keeps its code.
"""

import json
import math
from collections.abc import Mapping
from typing import ClassVar

#: A hostile server shall not fill anybody's log.
_LONGEST_TEXT = 2000


class AimeshError(Exception):
    """The root of the tree."""

    #: Of the class; an error of the gateway has its own.
    default_code: ClassVar[str] = "internal"

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
        #: What to do next; may be empty.
        self.hint = hint
        #: Of HTTP; None where no answer said so: on this side, or within a stream.
        self.status = status
        #: Which request it was, in the log of the gateway.
        self.request_id = request_id
        #: Seconds until it makes sense to ask again; None where nobody knows.
        self.retry_after = retry_after
        #: The field that is wrong, where one is.
        self.param = param

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


# --- the request has to change --------------------------------------------------------------------------------------


class BadRequest(AimeshError):
    """The request does not fit its type or its limits; the message names the field."""

    default_code = "bad_request"


class TooLarge(BadRequest):
    """More bytes, or more tokens, than one request may have."""

    default_code = "too_large"


class NotAuthenticated(AimeshError):
    """No credential, or one that is malformed, unknown, expired or revoked."""

    default_code = "not_authenticated"


class SessionEnded(NotAuthenticated):
    """The session of this client gives no access token any more; log in again."""

    default_code = "session_ended"


class BudgetExhausted(AimeshError):
    """Money, not rate: waiting does not help."""

    default_code = "budget_exhausted"


class NotAllowed(AimeshError):
    """Known, but may not do this."""

    default_code = "not_allowed"


class SecondFactorNeeded(NotAllowed):
    """The password was right and is not enough: a code is to be entered, or a second factor to be set up."""

    default_code = "second_factor_needed"


class ConfirmationNeeded(NotAllowed):
    """The login is good, and too old for something this sensitive; log in again."""

    default_code = "confirmation_needed"


class NotFound(AimeshError):
    """There is no such thing, or it is not yours to see."""

    default_code = "not_found"


class UnknownModel(NotFound):
    """Nobody serves this model; the message lists those that are served."""

    default_code = "unknown_model"


class Conflict(AimeshError):
    """It is at odds with what is there already."""

    default_code = "conflict"


class AlreadyExists(Conflict):
    """The name or the address belongs to somebody already."""

    default_code = "already_exists"


class IdempotencyConflict(Conflict):
    """The idempotency key was used for another request; each request has its own."""

    default_code = "idempotency_conflict"


class InProgress(Conflict):
    """The same request under the same idempotency key still runs."""

    default_code = "in_progress"


class AnswerGone(AimeshError):
    """An answer was given and is no longer there to be read again."""

    default_code = "answer_gone"


class RateLimited(AimeshError):
    """A rate limit; ``retry_after`` says when there is room again."""

    default_code = "rate_limited"


class Cancelled(AimeshError):
    """The request was withdrawn, here or elsewhere."""

    default_code = "cancelled"


# --- the other side, or what lies between ---------------------------------------------------------------------------


class ServerFailed(AimeshError):
    """A bug on the other side; its log has the reason under the request id."""

    default_code = "internal"


class Unavailable(AimeshError):
    """What this request needs does not answer now: a worker, a store, the way there. ``code`` says which."""

    default_code = "unavailable"


class Overloaded(Unavailable):
    """Everything is in use, and the queue is full."""

    default_code = "overloaded"


class DeadlineExceeded(AimeshError):
    """There was no answer in time: within ``timeout`` here, or within the time that the gateway gives a request."""

    default_code = "deadline_exceeded"


class ConnectionFailed(AimeshError):
    """Nobody answered at the address, or the connection ended before the answer did."""

    default_code = "connection_failed"

    def __init__(self, message: str, *, hint: str = "", may_have_arrived: bool = True) -> None:
        super().__init__(message, hint=hint)
        #: Whether the other side may have got the request.
        self.may_have_arrived = may_have_arrived


class AnswerBroken(AimeshError):
    """A stream ended in its middle, and the rest could not be had; what came until then is in the stream's ``text``."""

    default_code = "answer_broken"


class ProtocolError(AimeshError):
    """What came is no answer of aimesh: another server, a proxy's page, or a version that does not fit."""

    default_code = "protocol_error"


BY_CODE: dict[str, type[AimeshError]] = {
    "bad_request": BadRequest,
    "method_not_allowed": BadRequest,
    "poison": BadRequest,
    "unsupported_media_type": BadRequest,
    "too_large": TooLarge,
    "tokens_too_large": TooLarge,
    "not_authenticated": NotAuthenticated,
    "budget_exhausted": BudgetExhausted,
    "not_allowed": NotAllowed,
    "second_factor_needed": SecondFactorNeeded,
    "confirmation_needed": ConfirmationNeeded,
    "not_found": NotFound,
    "unknown_model": UnknownModel,
    "already_exists": AlreadyExists,
    "idempotency_conflict": IdempotencyConflict,
    "in_progress": InProgress,
    "answer_gone": AnswerGone,
    "rate_limited": RateLimited,
    "cancelled": Cancelled,
    "internal": ServerFailed,
    "overloaded": Overloaded,
    "deadline_exceeded": DeadlineExceeded,
    "draining": Unavailable,
    "ledger_unavailable": Unavailable,
    "link_lost": Unavailable,
    "model_crashed": Unavailable,
    "not_reachable": Unavailable,
    "peer_failed": Unavailable,
    "protocol_violation": Unavailable,
    "unavailable": Unavailable,
    "worker_lost": Unavailable,
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
}


def of_answer(status: int, headers: Mapping[str, str], body: bytes) -> AimeshError:
    """What an answer without success says; ``headers`` by their names in lower case."""
    if not 400 <= status <= 599:
        return ProtocolError(
            f"the server answered {status}, which is no answer of aimesh",
            hint="is base_url the address of aimesh, without a path?",
            status=status,
            request_id=headers.get("x-request-id"),
        )
    found = _error_object(body)
    kind = BY_CODE.get(_text(found, "code")) or _by_status(status)
    return kind(
        _text(found, "message") or f"the server answered {status}",
        code=_text(found, "code"),
        hint=_text(found, "hint"),
        status=status,
        request_id=_text(found, "request_id") or headers.get("x-request-id"),
        retry_after=_retry_after(headers),
        param=_text(found, "param") or None,
    )


def of_event(found: Mapping[str, object]) -> AimeshError:
    """The error that ended a stream, by its error object."""
    kind = BY_CODE.get(_text(found, "code"), Unavailable)
    return kind(
        _text(found, "message") or "the answer ended with an error",
        code=_text(found, "code"),
        hint=_text(found, "hint"),
        request_id=_text(found, "request_id") or None,
        param=_text(found, "param") or None,
    )


def _by_status(status: int) -> type[AimeshError]:
    return _BY_STATUS.get(status, BadRequest if status < 500 else Unavailable)


def _error_object(body: bytes) -> Mapping[str, object]:
    """Empty where there is none: what stands before the gateway may have answered in its own words."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    error = found.get("error") if isinstance(found, dict) else None
    return error if isinstance(error, dict) else {}


def _text(found: Mapping[str, object], name: str) -> str:
    value = found.get(name)
    return value[:_LONGEST_TEXT] if isinstance(value, str) else ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            seconds = float(headers[name]) / unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None
