"""Converts errors for OpenAI clients: to a status, headers, and an error object."""

import math

from services.gateway.http_api.response_formats import ErrorBody, ErrorObject
from services.gateway.limits import limit_rules
from services.gateway.limits.limit_rules import Allowance, TightestLimit
from services.gateway.limits.quotas import LimitReached
from services.gateway.prompt_admission import BadField
from shared import errors
from shared.errors import AimeshError, Fault
from shared.types import RequestId

Headers = list[tuple[bytes, bytes]]

#: OpenAI's error type for each status.
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    410: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
#: Retry-After if a retryable error doesn't know the time.
_RETRY_AFTER_SECONDS = 1.0


class RouteMissing(errors.NotFound):
    """No route has this path."""


def body(error: AimeshError, request_id: RequestId) -> ErrorBody:
    problem = error.to_problem()
    param = error.field if isinstance(error, BadField) else "model" if isinstance(error, errors.UnknownModel) else None
    kind = _TYPES.get(status(error), "server_error")
    return ErrorBody(ErrorObject(problem.message, kind, problem.code, param, problem.hint, request_id))


def status(error: AimeshError) -> int:
    """Return the status. 500 is reserved for our own bugs: an unknown error of a peer becomes 400 or 503."""
    if isinstance(error, errors.RemoteError):
        return 400 if error.problem.fault is Fault.CALLER else 503
    return error.status


def headers(error: AimeshError) -> Headers:
    found: Headers = []
    code = status(error)
    if code == 401:
        found.append((b"www-authenticate", b"Bearer"))
    if code in {429, 503} or error.retry_after_seconds is not None:
        seconds = error.retry_after_seconds if error.retry_after_seconds is not None else _RETRY_AFTER_SECONDS
        found.append((b"retry-after", b"%d" % max(1, math.ceil(seconds))))
        found.append((b"retry-after-ms", b"%d" % max(1, math.ceil(seconds * 1000))))
    if code == 409 and not error.to_problem().retryable:
        # OpenAI's clients retry a 409 unless told not to.
        found.append((b"x-should-retry", b"false"))
    tightest = error.tightest if isinstance(error, LimitReached) else limit_rules.attached_limits(error)
    if tightest is not None:
        found += allowance_headers(tightest)
    return found


def allowance_headers(tightest: TightestLimit) -> Headers:
    """Return the remaining limits under OpenAI's names; empty if there is no limit."""
    return [*_remaining(b"requests", tightest.requests), *_remaining(b"tokens", tightest.tokens)]


def _remaining(what: bytes, allowance: Allowance | None) -> Headers:
    if allowance is None:
        return []
    return [
        (b"x-ratelimit-limit-" + what, b"%d" % allowance.limit),
        (b"x-ratelimit-remaining-" + what, b"%d" % allowance.remaining),
        (b"x-ratelimit-reset-" + what, duration(allowance.resets_in_seconds).encode()),
    ]


def duration(seconds: float) -> str:
    """Format a duration as OpenAI does: 1h2m3s, 6m0s, 1.5s, 120ms."""
    milliseconds = math.ceil(seconds * 1000 - 0.001)
    if milliseconds < 1000:
        return f"{max(0, milliseconds)}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:g}s"
    if minutes or hours:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text
