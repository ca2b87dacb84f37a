"""Encode errors as OpenAI error objects, for the pass-through and for JSON requests to /register and /login. Pure."""

import math

import msgspec

from shared import context, errors
from shared.types import RequestId

#: status -> the OpenAI error type, as in the gateway.
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class _Error(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str
    hint: str
    request_id: RequestId | None


class _Envelope(msgspec.Struct, frozen=True):
    error: _Error


def to_json(error: errors.AimeshError) -> bytes:
    problem = error.to_problem()
    current = context.current.get()
    request_id = current.request_id if current else None
    kind = _TYPES.get(status(error), "invalid_request_error")
    return msgspec.json.encode(_Envelope(_Error(problem.message, kind, None, problem.code, problem.hint, request_id)))


def status(error: errors.AimeshError) -> int:
    """Return the HTTP status of an error. An unknown error of a newer peer becomes 400 or 503; 500 is reserved for our bugs."""
    if isinstance(error, errors.RemoteError):
        return 400 if error.problem.fault is errors.Fault.CALLER else 503
    return error.status


def retry_after(error: errors.AimeshError) -> str | None:
    """Return the Retry-After value in whole seconds, rounded up."""
    after = error.retry_after_seconds
    if after is None or not math.isfinite(after):
        return None
    return str(max(1, math.ceil(after)))
