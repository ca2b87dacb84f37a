"""Converts errors for OpenAI clients: to a status, headers, and an error object."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from services.gateway.facts import request_record
from services.gateway.http_api import response_formats
from services.gateway.http_api.response_formats import AnthropicErrorBody, ErrorBody, ErrorDetails, ErrorObject, Headers
from services.gateway.limits import limit_rules
from shared import errors, features
from shared.errors import AimeshError, Fault
from shared.types import RequestId

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
    416: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
#: OpenAI's error type -> Anthropic's, where they differ.
_ANTHROPIC_TYPES = {
    "conflict_error": "invalid_request_error",
    "insufficient_quota": "billing_error",
    "server_error": "api_error",
    "service_unavailable_error": "overloaded_error",
}
#: Refused field -> what makes Anthropic's clients send the whole conversation instead.
_ANTHROPIC_DETAILS = {"thread": ErrorDetails("thread_unsupported_request", ("thread",))}
#: Our code -> OpenAI's.
_OPENAI_CODES = {
    errors.NotAuthenticated.code: "invalid_api_key",
    errors.BudgetExhausted.code: "insufficient_quota",
    errors.UnknownModel.code: "model_not_found",
    errors.Limited.code: "rate_limit_exceeded",
}
#: Retry-After if a retryable error doesn't know the time.
_RETRY_AFTER_SECONDS = 1.0


class RouteMissing(errors.NotFound):
    """No route has this path."""


#: Longer paths are shown and searched in part.
_MAX_PATH = 200


def route_missing(path: str, origin: str, is_route: Callable[[str], bool]) -> RouteMissing:
    """Return the error for a path; if a route has its end, what the client's base URL must be. ``origin``: the gateway's address."""
    dialect = dialect_at(path)
    if dialect.missing_hint:
        rest = path.removeprefix(dialect.prefix)[:_MAX_PATH]
        return RouteMissing(f"{dialect.tag}'s /{rest} does not exist here", hint=dialect.missing_hint)
    parts = [part for part in path[:_MAX_PATH].split("/") if part]
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    meant = next((route for end in ends for route in (f"/v1/{end}", f"/{end}") if is_route(route)), None)
    what, hint = f"no route matches {path[:_MAX_PATH]!r}", "see /docs for all routes"
    if meant is None:
        return RouteMissing(what, hint=hint)
    # What precedes it is the client's base URL: it added the path with /v1, or without.
    base_url, other = origin, f"{origin}/v1"
    if meant.startswith("/v1/"):
        if not path.removesuffix("/").endswith(meant) or path.removesuffix("/") == meant:
            base_url, other = other, base_url
        hint = f"if that fails, set it to {other}: some clients add /v1, and others don't"
    return RouteMissing(f"{what}, but {meant} exists: set the base URL of your client to {base_url}, without a slash at the end", hint=hint)


def body(error: AimeshError, request_id: RequestId, *, openai: bool = False) -> ErrorBody:
    """Return the error object, with OpenAI's codes if ``openai``."""
    problem = error.to_problem()
    kind = _TYPES.get(status(error), "server_error")
    shown = ErrorObject(problem.message, kind, problem.code, request_record.field_of(error), problem.hint, request_id)
    if openai:
        code = _OPENAI_CODES.get(problem.code, problem.code)
        shown = msgspec.structs.replace(shown, code=code, aimesh_code=problem.code)
    return ErrorBody(shown)


def anthropic_body(shown: ErrorBody, *, code: int = 0) -> AnthropicErrorBody:
    """``code``: the status, if it is not sent yet."""
    error = shown.error
    kind = "request_too_large" if code == errors.TooLarge.status else _ANTHROPIC_TYPES.get(error.type, error.type)
    details = _ANTHROPIC_DETAILS.get(error.param or "", msgspec.UNSET)
    return AnthropicErrorBody(msgspec.structs.replace(error, type=kind, details=details), error.request_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpDialect:
    """How the API of a vendor says what every API says. A feature's is DIALECT in its `gateway/dialect.py`."""

    #: Its paths begin with this. One without a slash at the end is a path, too.
    prefix: str
    #: In OpenAPI.
    tag: str
    error: type[msgspec.Struct] = ErrorBody
    #: Makes an error of OpenAI's, and of the status if that is not sent yet, else 0.
    write_error: Callable[[ErrorBody, int], msgspec.Struct] = lambda shown, _code: shown
    #: Of streams.
    media_type: str = "text/event-stream"
    #: If set, a path without a route is said to be one of the vendor's.
    missing_hint: str = ""

    def has(self, path: str) -> bool:
        return path == self.prefix or path.startswith(f"{self.prefix.removesuffix('/')}/")


_ANTHROPICS = HttpDialect(
    prefix="/v1/messages", tag="OpenAI", error=AnthropicErrorBody, write_error=lambda shown, code: anthropic_body(shown, code=code)
)
_OPENAIS = HttpDialect(prefix="/v1/", tag="OpenAI")
_OURS = HttpDialect(prefix="/", tag="aimesh")


@lru_cache
def _dialects() -> tuple[HttpDialect, ...]:
    return (_ANTHROPICS, _OPENAIS, *features.parts("gateway.dialect", HttpDialect, "DIALECT").values())


def dialect_at(path: str) -> HttpDialect:
    return next((each for each in _dialects() if each.has(path)), _OURS)


def status(error: AimeshError, path: str = "") -> int:
    """Return the status. 500 is reserved for our own bugs: an unknown error of a peer becomes 400 or 503. OpenAI's clients know exhausted
    credits as 429; Anthropic's know 402."""
    if isinstance(error, errors.RemoteError):
        return 400 if error.problem.fault is Fault.CALLER else 503
    if error.status == 402 and dialect_at(path) is _OPENAIS:
        return 429
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
    if code in {402, 409} and not error.to_problem().retryable and error.retry_after_seconds is None:
        # OpenAI's clients retry a 409, and a 429 of exhausted credits, unless told not to.
        found.append((b"x-should-retry", b"false"))
    tightest = limit_rules.attached_limits(error)
    if tightest is not None:
        found += response_formats.allowance_headers(tightest)
    return found
