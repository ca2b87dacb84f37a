"""Errors as an OpenAI client understands them: a status, headers, and an error object."""

import math

import msgspec

from services.gateway.admission import BadField
from services.gateway.limits import Allowance
from services.gateway.quotas import HourlyLimited
from shared import errors
from shared.errors import AimeshError, Fault
from shared.types import RequestId

Headers = list[tuple[bytes, bytes]]

#: status -> the word that OpenAI uses for it.
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
#: What to say where an error that asks for another try does not know when.
_RETRY_AFTER_SECONDS = 1.0


class ErrorObject(msgspec.Struct, frozen=True):
    message: str
    type: str
    #: Stable for ever; match on it.
    code: str
    #: The field that is wrong, where one is.
    param: str | None
    #: What to do next; may be empty.
    hint: str
    request_id: RequestId


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorObject


class RouteMissing(errors.NotFound):
    """No such path."""


def body(error: AimeshError, request_id: RequestId) -> ErrorBody:
    problem = error.to_problem()
    param = error.field if isinstance(error, BadField) else None
    kind = _TYPES.get(status(error), "server_error")
    return ErrorBody(ErrorObject(problem.message, kind, problem.code, param, problem.hint, request_id))


def status(error: AimeshError) -> int:
    """500 is left for our own bugs: an error of a peer that this version does not know is the caller's fault or a 503."""
    if isinstance(error, errors.RemoteError):
        return 400 if error.problem.fault is Fault.CALLER else 503
    return error.status


def headers(error: AimeshError) -> Headers:
    found: Headers = []
    code = status(error)
    if code == 401:
        found.append((b"www-authenticate", b"Bearer"))
    if code in {429, 503}:
        seconds = error.retry_after_seconds if error.retry_after_seconds is not None else _RETRY_AFTER_SECONDS
        found.append((b"retry-after", b"%d" % max(1, math.ceil(seconds))))
    if isinstance(error, HourlyLimited):
        found += allowance_headers(error.allowance)
    return found


def allowance_headers(allowance: Allowance) -> Headers:
    """What is left of the tightest limit, under OpenAI's names."""
    return [
        (b"x-ratelimit-limit-requests", b"%d" % allowance.limit),
        (b"x-ratelimit-remaining-requests", b"%d" % allowance.remaining),
        (b"x-ratelimit-reset-requests", b"%ds" % math.ceil(allowance.resets_in_seconds)),
    ]
