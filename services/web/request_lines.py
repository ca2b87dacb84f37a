"""Requests of the log as texts: how each ended, and what to do where it did not end well. Pure.

A line is texts and addresses only, because the same line is drawn by the template and sent to pages that are open.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from services.web import usage_chart
from services.web.usage_chart import NOTHING
from shared import errors
from shared.api.usage_report import LoggedRequest
from shared.errors import Fault
from shared.types import KeyId, RequestStatus

#: What a request came with that came with a login and no key.
SIGNED_IN = "signed in"
#: Of a key that is not among one's own: another member's, or one that is gone.
SOME_KEY = "another key"

#: A word and its tone: good, warn, bad or off.
STATUSES: Mapping[RequestStatus, tuple[str, str]] = {
    RequestStatus.SUCCESS: ("answered", "good"),
    RequestStatus.ERROR: ("failed", "bad"),
    RequestStatus.TIMEOUT: ("timed out", "bad"),
    RequestStatus.CANCELLED: ("cancelled", "off"),
    RequestStatus.LIMITED: ("refused by a limit", "warn"),
    RequestStatus.REJECTED: ("rejected", "warn"),
}
_ADVICE: Mapping[str, str] = {
    "bad_request": "Check the field that the answer named, and send it again.",
    "budget_exhausted": "Ask an administrator for credits, or raise the budget of the key.",
    "rate_limited": "Wait as long as Retry-After says, or spread your requests.",
    "tokens_too_large": "Send a shorter prompt, or lower max_tokens.",
    "too_large": "Send a shorter prompt.",
    "unknown_model": "Choose one of the models on the page Models.",
    "not_allowed": "Use a key that may do this, or ask an administrator.",
    "poison": "Do not send it again as it is: change the prompt or its parameters.",
    "deadline_exceeded": "Send it again, with a lower max_tokens or a longer timeout.",
    "cancelled": "Nothing: your program stopped reading.",
    "idempotency_conflict": "Use a new Idempotency-Key for each new request.",
}
#: Where a code has no line above: by whose fault it was.
_ADVICE_BY_FAULT: Mapping[Fault, str] = {
    Fault.CALLER: "Change the request; sending it again as it is does not help.",
    Fault.PEER: "Send it again; if it happens often, tell an administrator.",
    Fault.OURS: "Tell an administrator the id of this request.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLine:
    """One request as texts; empty ones are not shown."""

    id: str = ""
    at: str = ""
    time: str = ""
    model: str = ""
    key: str = ""
    status: str = ""
    tone: str = ""
    #: The error's code, what it means, and what to do.
    code: str = ""
    meaning: str = ""
    advice: str = ""
    #: Where the answer came from, if not from a worker.
    source: str = ""
    tokens: str = ""
    duration: str = ""
    cost: str = ""
    #: What was thought of the answer, and its tone.
    thumb: str = ""
    thumb_tone: str = ""


def lines(requests: Iterable[LoggedRequest], key_names: Mapping[KeyId, str] | None = None) -> tuple[RequestLine, ...]:
    """``key_names`` is None where the keys are not known, or not shown."""
    return tuple(_line(request, key_names or {}) for request in requests)


def plain(line: RequestLine) -> dict[str, str]:
    """For an event."""
    return asdict(line)


def moment(at: datetime) -> str:
    """To the second: requests are many. In UTC, which the head of the table says."""
    at = at.astimezone(UTC)
    return f"{at.day} {at:%b %Y, %H:%M:%S}"


def key_name(key: KeyId | None, names: Mapping[KeyId, str]) -> str:
    return SIGNED_IN if key is None else names.get(key) or f"{SOME_KEY} ({str(key)[:8]})"


def advise(code: str) -> str:
    """What to do about an error. A code that only a newer gateway knows may pass, so asking again is worth a try."""
    kind = errors.BY_CODE.get(code)
    return _ADVICE.get(code) or _ADVICE_BY_FAULT[kind.fault if kind is not None else Fault.PEER]


def explain(code: str) -> str:
    """What the error means, as the reference of errors has it; empty where it is not known here."""
    kind = errors.BY_CODE.get(code)
    return "" if kind is None else (kind.__doc__ or "").strip().replace("``", "`")


def _line(request: LoggedRequest, key_names: Mapping[KeyId, str]) -> RequestLine:
    word, tone = STATUSES[request.status]
    code = request.error_code or ""
    tokens = request.prompt_tokens or request.completion_tokens
    thumb, thumb_tone = _thumb(request.rating)
    return RequestLine(
        id=str(request.id),
        at=request.created_at.astimezone(UTC).isoformat(),
        time=moment(request.created_at),
        model=request.model or NOTHING,
        key=key_name(request.key_id, key_names),
        status=word,
        tone=tone,
        code=code,
        meaning=explain(code) if code else "",
        advice=advise(code) if code else "",
        source="from the cache" if request.cached else "",
        tokens=usage_chart.in_and_out(request.prompt_tokens, request.completion_tokens) if tokens else NOTHING,
        duration=usage_chart.latency(request.response_time_ms),
        cost=usage_chart.cost(request.cost_micro),
        thumb=thumb,
        thumb_tone=thumb_tone,
    )


def _thumb(rating: int | None) -> tuple[str, str]:
    if not rating:
        return "", ""
    return ("good", "good") if rating > 0 else ("bad", "bad")
