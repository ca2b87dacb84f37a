"""What another server's refusal means to a caller here, and whether asking once more may help.  Pure."""

import email.utils
import re
from dataclasses import dataclass

import msgspec

from services.inference.backends.remote.event_stream import UNREADABLE
from services.inference.upstreams import Key
from shared import errors
from shared.errors import AimeshError

#: Of what a server says: enough for its reason, too little for a page of HTML.
MAX_WORDS = 300
#: A caller waits this long without noticing much; whoever says longer is believed and the caller is told.
MAX_RETRY_AFTER_SECONDS = 3.0
#: Where a server does not say.
DEFAULT_RETRY_AFTER_SECONDS = 5.0
#: A longer one is a mistake, and no reason to send callers away for days.
LONGEST_RETRY_AFTER_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class RefusalSource:
    """Whose refusal it is, as messages name it."""

    name: str
    key: Key | None
    #: Which setting holds the key, and which the address.
    key_setting: str
    url_setting: str

    def cleaned(self, words: str) -> str:
        """A server's words on one line, cut, and without the key."""
        shown = words if self.key is None else self.key.hidden_in(words)
        return "".join(letter if letter.isprintable() else " " for letter in shown[: MAX_WORDS * 2]).strip()[:MAX_WORDS]


@dataclass(frozen=True, slots=True)
class ServerRefusal:
    error: AimeshError
    #: Nothing of an answer has come, and the server itself expects to do better soon.
    again: bool = False
    #: When it says so itself.
    retry_after_seconds: float | None = None


class _Complaint(msgspec.Struct, frozen=True):
    """The forms that servers complain in: OpenAI's object, Ollama's and TGI's string, FastAPI's detail."""

    error: object = None
    message: object = None
    detail: object = None


class _ErrorObject(msgspec.Struct, frozen=True):
    message: str = ""
    code: object = None


_complaint = msgspec.json.Decoder(_Complaint)

_TOO_LONG = re.compile("exceeds (the|maximum) context length")
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "budget_exhausted")


def judge(source: RefusalSource, status: int, body: bytes, retry_after: str | None = None, *, now: float = 0.0) -> ServerRefusal:
    """``now`` is in seconds since 1970, for a Retry-After that names a date."""
    if status == 429 and _code(body) in _NO_CREDIT:
        status = 402
    said = words(source, body)
    if (error := _needs_change(source, status, said)) is not None:
        return ServerRefusal(error)
    seconds = _seconds(retry_after, now)
    soon = seconds is None or seconds <= MAX_RETRY_AFTER_SECONDS
    after = DEFAULT_RETRY_AFTER_SECONDS if seconds is None else seconds
    kind, what = {
        429: (errors.Overloaded, "takes no more requests now"),
        502: (errors.Unavailable, "is not ready (status 502)"),
        503: (errors.Unavailable, "is not ready (status 503)"),
        504: (errors.Unavailable, "is not ready (status 504)"),
    }.get(status, (errors.Unavailable, f"failed with status {status}"))
    again = soon and status in (429, 502, 503, 504)
    return ServerRefusal(kind(f"{source.name} {what}{_behind(said)}", retry_after_seconds=after), again, seconds)


def judge_event(source: RefusalSource, body: bytes) -> AimeshError:
    """The same for an error in the midst of an answer, where there is no status but perhaps a code of that kind."""
    code = _code(body)
    if isinstance(code, int) and 400 <= code < 600:
        return judge(source, code, body).error
    return errors.Unavailable(f"{source.name} failed: {words(source, body) or 'it does not say why'}")


def words(source: RefusalSource, body: bytes) -> str:
    """The sentence in a server's complaint, or its beginning where it has no form that is known."""
    try:
        complaint = _complaint.decode(body)
    except UNREADABLE:
        return source.cleaned(body.decode("utf-8", "replace"))
    inner = _inner(complaint.error)
    for said in (inner.message, complaint.error, complaint.message, complaint.detail):
        if isinstance(said, str) and said:
            return source.cleaned(said)
    return source.cleaned(body.decode("utf-8", "replace"))


def _code(body: bytes) -> object:
    try:
        return _inner(_complaint.decode(body).error).code
    except UNREADABLE:
        return None


def _inner(error: object) -> _ErrorObject:
    try:
        return msgspec.convert(error, _ErrorObject)
    except msgspec.ValidationError:
        return _ErrorObject()


def _needs_change(source: RefusalSource, status: int, said: str) -> AimeshError | None:
    """What trying again cannot mend: the caller has to change the request, or the worker's owner the settings or the account."""
    behind = _behind(said)
    match status:
        case 400 | 422:
            return errors.BadRequest(f"{source.name} refuses the request{behind}")
        case 500 if _TOO_LONG.search(said):
            # Ollama's word for a text that does not fit its model, before it had a better status for it.
            return errors.BadRequest(f"{source.name} refuses the request{behind}")
        case 413:
            return errors.TooLarge(f"{source.name} takes no request of this size{behind}")
        case 404 if "model" in said.lower():
            # A model that is gone, or an address that is wrong: only the words tell them apart.
            return errors.UnknownModel(f"{source.name} does not have this model now{behind}", hint="`aicli models` lists what is served")
    message, hint = "", ""
    if status in (401, 403):
        # Without its words: some servers repeat a part of the key in them.
        message, hint = f"refuses this worker's key (status {status})", f"check {source.key_setting}"
    elif status == 402:
        message, hint = f"wants to be paid first{behind}", "look at the account there"
    elif status == 404:
        message, hint = f"does not know this path{behind}", f"check {source.url_setting}: does it end in the API's version?"
    elif 300 <= status < 400:
        # Never followed: the key and the prompt are for this address only.
        message, hint = f"points to another address (status {status})", f"give that one as {source.url_setting}"
    # Another worker may do better, so this is no error of the caller's.
    return errors.Unavailable(f"{source.name} {message}", hint=hint) if message else None


def _behind(said: str) -> str:
    return f": {said}" if said else ""


def _seconds(retry_after: str | None, now: float) -> float | None:
    """RFC 9110, section 10.2.3: seconds, or a date."""
    if retry_after is None:
        return None
    text = retry_after.strip()[:64]
    if text.replace(".", "", 1).isdecimal():
        seconds = float(text)
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER_SECONDS)
