"""Describe requests of the log: their result, and what to do about errors. Pure.

A line has only strings, because templates and live events share it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from services.web.charts import usage_chart
from services.web.charts.usage_chart import NOTHING
from shared import errors
from shared.api.usage_report import LoggedRequest
from shared.errors import Fault
from shared.types import KeyId, RequestStatus

#: The key column of requests without an API key.
SIGNED_IN = "Signed-in session"
#: Another member's key, or a deleted one.
SOME_KEY = "Another key"

#: Status -> its label and tone: good, warn, bad or off.
STATUSES: Mapping[RequestStatus, tuple[str, str]] = {
    RequestStatus.SUCCESS: ("Completed", "good"),
    RequestStatus.ERROR: ("Failed", "bad"),
    RequestStatus.TIMEOUT: ("Timed out", "bad"),
    RequestStatus.CANCELLED: ("Canceled", "off"),
    RequestStatus.LIMITED: ("Rate limited", "warn"),
    RequestStatus.REJECTED: ("Rejected", "warn"),
}
_ADVICE: Mapping[str, str] = {
    "bad_request": "Fix the field named in the error, then retry.",
    "budget_exhausted": "Ask an administrator for credits, or create a key with a higher budget.",
    "context_length_exceeded": "Send a shorter prompt, or use a model with a longer context.",
    "rate_limited": "Wait for the time in Retry-After, then retry.",
    "tokens_too_large": "Send a shorter prompt, or lower max_tokens.",
    "too_large": "Send a shorter prompt.",
    "unknown_model": "Choose a model from the Models page.",
    "not_allowed": "Use a key with this permission, or ask an administrator.",
    "poison": "Change the prompt or its parameters before you retry.",
    "deadline_exceeded": "Retry with a lower max_tokens or a longer timeout.",
    "cancelled": "No action needed: your program stopped reading.",
    "idempotency_conflict": "Use a new Idempotency-Key for each request.",
}
#: Advice for all other codes, by fault.
_ADVICE_BY_FAULT: Mapping[Fault, str] = {
    Fault.CALLER: "Change the request. Retrying it unchanged won’t help.",
    Fault.PEER: "Retry. If it keeps failing, tell an administrator.",
    Fault.OURS: "Send an administrator the request ID.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestView:
    """One request; empty fields are not shown."""

    id: str = ""
    at: str = ""
    time: str = ""
    model: str = ""
    key: str = ""
    status: str = ""
    tone: str = ""
    #: The error code, its meaning, and what to do.
    code: str = ""
    #: The path of the field that it was refused for.
    field: str = ""
    #: The fields and tools that had no effect.
    ignored: str = ""
    meaning: str = ""
    advice: str = ""
    #: The source of the answer, if it was not a worker.
    source: str = ""
    tokens: str = ""
    duration: str = ""
    cost: str = ""
    #: The rating and its tone.
    thumb: str = ""
    thumb_tone: str = ""


def lines(requests: Iterable[LoggedRequest], key_names: Mapping[KeyId, str] | None = None) -> tuple[RequestView, ...]:
    """Describe requests. ``key_names`` is None if keys are unknown or not shown."""
    return tuple(_line(request, key_names or {}) for request in requests)


def moment(at: datetime) -> str:
    """Format a time in UTC, to the second."""
    at = at.astimezone(UTC)
    return f"{at.day} {at:%b %Y, %H:%M:%S}"


def key_name(key: KeyId | None, names: Mapping[KeyId, str]) -> str:
    return SIGNED_IN if key is None else names.get(key) or f"{SOME_KEY} ({str(key)[:8]})"


def advise(code: str) -> str:
    """Return what to do about an error. For unknown codes of a newer gateway, suggest a retry."""
    kind = errors.BY_CODE.get(code)
    return _ADVICE.get(code) or _ADVICE_BY_FAULT[kind.fault if kind is not None else Fault.PEER]


def explain(code: str) -> str:
    """Return the meaning of an error code from the error reference; empty if it is unknown."""
    kind = errors.BY_CODE.get(code)
    return "" if kind is None else (kind.__doc__ or "").strip().replace("``", "`")


def _line(request: LoggedRequest, key_names: Mapping[KeyId, str]) -> RequestView:
    word, tone = STATUSES[request.status]
    code = request.error_code or ""
    tokens = request.prompt_tokens or request.completion_tokens
    thumb, thumb_tone = _thumb(request.rating)
    return RequestView(
        id=str(request.id),
        at=request.created_at.astimezone(UTC).isoformat(),
        time=moment(request.created_at),
        model=request.model or NOTHING,
        key=key_name(request.key_id, key_names),
        status=word,
        tone=tone,
        code=code,
        field=request.error_field or "",
        ignored=request.ignored_fields or "",
        meaning=explain(code) if code else "",
        advice=advise(code) if code else "",
        source="cached" if request.cached else "",
        tokens=usage_chart.in_and_out(request.prompt_tokens, request.completion_tokens) if tokens else NOTHING,
        duration=usage_chart.latency(request.response_time_ms),
        cost=usage_chart.cost(request.cost_micro),
        thumb=thumb,
        thumb_tone=thumb_tone,
    )


def _thumb(rating: int | None) -> tuple[str, str]:
    if not rating:
        return "", ""
    return ("Good", "good") if rating > 0 else ("Bad", "bad")
