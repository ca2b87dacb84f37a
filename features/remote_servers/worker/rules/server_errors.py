"""Translates another server's refusal into an error of ours, and decides whether a retry may help.  Pure."""

import re
from dataclasses import dataclass

import msgspec

from features.remote_servers.worker.rules.event_stream import UNREADABLE, convert_or
from features.remote_servers.worker.upstreams import Upstream
from shared import errors
from shared.errors import AimeshError
from shared.timing import retry_after_header

#: Characters of a server's message: enough for a reason, too little for a page of HTML.
MAX_WORDS = 300
#: If the server asks for a longer wait than this, return an error instead of waiting.
MAX_RETRY_AFTER_SECONDS = 3.0
DEFAULT_RETRY_AFTER_SECONDS = 5.0
#: A longer wait is a mistake of the server.
MAX_SHOWN_RETRY_AFTER_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class RefusalSource:
    """A server, as error messages name it."""

    name: str
    #: The name of the setting with its address.
    url_setting: str
    upstream: Upstream
    #: Asks what is most often wrong with the address.
    url_question: str = "does it end in the API's version, such as /v1?"

    def cleaned(self, words: str) -> str:
        """Return a server's message on one line, shortened and without the key."""
        key = self.upstream.key
        shown = words if key is None else key.hidden_in(words)
        return "".join(letter if letter.isprintable() else " " for letter in shown[: MAX_WORDS * 2]).strip()[:MAX_WORDS]


class PauseAsked(errors.Overloaded):
    """The server asked for a longer pause with Retry-After."""


@dataclass(frozen=True, slots=True)
class ServerRefusal:
    error: AimeshError
    #: A retry within MAX_RETRY_AFTER_SECONDS may help.
    retryable: bool = False
    retry_after_seconds: float | None = None
    #: The server refuses this worker's key or account.
    is_for_account: bool = False


class _Complaint(msgspec.Struct, frozen=True):
    """The error bodies of servers: OpenAI's object, Ollama's and TGI's string, FastAPI's detail."""

    error: object = None
    message: object = None
    detail: object = None


class _ErrorObject(msgspec.Struct, frozen=True):
    message: str = ""
    code: object = None


_TOO_LONG = re.compile(
    "exceeds (the|maximum) context (length|window)|maximum context length is|exceeds the available context size|[Pp]rompt is too long"
)
_OF_ACCOUNT = frozenset({401, 402, 403})
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "budget_exhausted")


def judge(source: RefusalSource, status: int, body: bytes, retry_after: str | None = None, *, now: float = 0.0) -> ServerRefusal:
    """``now`` is the Unix time, for a Retry-After that is a date."""
    if status == 429 and _read(body)[1].code in _NO_CREDIT:
        status = 402
    reason = words(source, body)
    if (error := _needs_change(source, status, reason)) is not None:
        return ServerRefusal(error, is_for_account=status in _OF_ACCOUNT)
    wanted = retry_after_header.read(retry_after, now)
    seconds = None if wanted is None else min(wanted, MAX_SHOWN_RETRY_AFTER_SECONDS)
    soon = seconds is None or seconds <= MAX_RETRY_AFTER_SECONDS
    after = DEFAULT_RETRY_AFTER_SECONDS if seconds is None else seconds
    kind, what = {
        429: (errors.Overloaded, "accepts no more requests now"),
        502: (errors.Unavailable, "is not ready (status 502)"),
        503: (errors.Unavailable, "is not ready (status 503)"),
        504: (errors.Unavailable, "is not ready (status 504)"),
    }.get(status, (errors.Unavailable, f"failed with status {status}"))
    retryable = soon and status in (429, 502, 503, 504)
    if status in (429, 503) and not soon:
        kind = PauseAsked
    return ServerRefusal(kind(f"{source.name} {what}{_suffix(reason)}", retry_after_seconds=after), retryable, seconds)


def judge_event(source: RefusalSource, body: bytes) -> AimeshError:
    """Translate an error in the middle of a stream, which may have a code like an HTTP status."""
    code = _read(body)[1].code
    if isinstance(code, int) and 400 <= code < 600:
        return judge(source, code, body).error
    return errors.Unavailable(f"{source.name} failed: {words(source, body) or 'it gave no reason'}")


def words(source: RefusalSource, body: bytes) -> str:
    """Return the message in an error body, or the beginning of a body of unknown form."""
    complaint, inner = _read(body)
    for reason in (inner.message, complaint.error, complaint.message, complaint.detail):
        if isinstance(reason, str) and reason:
            return source.cleaned(reason)
    return source.cleaned(body.decode("utf-8", "replace"))


def _read(body: bytes) -> tuple[_Complaint, _ErrorObject]:
    try:
        complaint = msgspec.json.decode(body, type=_Complaint)
    except UNREADABLE:
        complaint = _Complaint()
    return complaint, convert_or(_ErrorObject(), complaint.error)


def _needs_change(source: RefusalSource, status: int, reason: str) -> AimeshError | None:
    """Return the error if a retry can't help: the caller must change the request, or the owner the settings or the account."""
    # Another worker may do better, so most of these aren't the caller's error.
    kind: type[AimeshError] = errors.Unavailable
    suffix, hint = _suffix(reason), ""
    match status:
        case 400 | 422 | 500 if _TOO_LONG.search(reason):
            # Older versions of Ollama send 500 for a text that is too long for the model.
            return errors.ContextExceeded.because(f"{source.name} refuses the request{suffix}", hint="shorten the prompt")
        case 400 | 422:
            kind, what = errors.BadRequest, f"refuses the request{suffix}"
        case 413:
            kind, what = errors.TooLarge, f"accepts no request of this size{suffix}"
        case 404 if "model" in reason.lower():
            # Only the message tells a missing model from a wrong address.
            kind, what, hint = errors.UnknownModel, f"does not have this model now{suffix}", "`aicli models` lists what is served"
        case 404:
            what, hint = f"does not know this path{suffix}", f"check {source.url_setting}: {source.url_question}"
        case 401 | 403:
            # Not the server's message: some repeat a part of the key.
            what, do = ("needs a", "set") if source.upstream.key is None else ("refuses this worker's", "check")
            what, hint = f"{what} key (status {status})", f"{do} {source.upstream.key_setting}"
        case 402:
            what, hint = f"requires payment{suffix}", "check your account there"
        case _ if 300 <= status < 400:
            # Never followed: the key and the prompt are only for this address.
            what, hint = f"redirects to another address (status {status})", f"set that address as {source.url_setting}"
        case _:
            return None
    return kind(f"{source.name} {what}", hint=hint)


def _suffix(reason: str) -> str:
    return f": {reason}" if reason else ""
