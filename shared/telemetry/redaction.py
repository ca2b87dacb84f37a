"""Takes secrets out of what is about to be logged. Pure, and the last line of defence: callers do not log secrets."""

import dataclasses
import math
import re
from collections.abc import Mapping

import msgspec

MASK = "[redacted]"

#: Names of fields whose value is never shown, with letters only: `API-Key`, `apiKey` and `api_key` are one.
_SECRET_NAMES = ("password", "passwd", "token", "secret", "apikey", "authorization", "prompt", "credential", "cookie", "seedphrase")
_SECRET_PLURALS = frozenset(f"{name}s" for name in _SECRET_NAMES if name != "token") | {"messages"}

#: What looks like a secret wherever it stands -> what is shown of it.
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # API keys, tickets and refresh tokens, whole or cut short; the kind stays readable.
    (re.compile(r"\b(aip_[a-z]{2,8}_)[0-9A-Za-z_-]{6,}"), rf"\1{MASK}"),
    # JWT: a base64url header that begins with `{"`, a payload, a signature.
    (re.compile(r"\beyJ[\w-]{4,512}\.[\w-]{4,}(?:\.[\w-]*)?"), MASK),
    # nkey seeds: S, the kind of key, 56 characters of base32, or what a cut left of them. A public key (U…) is an id and may be shown.
    (re.compile(r"\bS[ACNOUX][A-Z2-7]{30,}"), MASK),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), rf"\1 {MASK}"),
    # The password of a URL.
    (re.compile(r"(\b[a-z][a-z0-9+.-]{0,30}://[^\s/:@]{0,128}):[^\s/@]{1,256}@"), rf"\1:{MASK}@"),
    # The token of a NATS URL.
    (re.compile(r"(\b(?:nats|tls)://)[^\s/:@]{1,1024}@"), rf"\1{MASK}@"),
    # Secrets in a query string or in `key=value` text.
    (re.compile(r"(?i)\b([\w-]{0,32}(?:password|passwd|token|secret|api_?key|credential)=)[^\s&;,'\")]+"), rf"\1{MASK}"),
)

#: Deeper structures, longer texts and more items than these say nothing more to a reader of logs.
_MAX_DEPTH = 6
_MAX_TEXT = 16_384
_MAX_ITEMS = 100


def is_secret(name: str) -> bool:
    """Whether a field of this name is masked: ``access_token`` and ``X-Api-Key`` are, ``prompt_tokens`` is not."""
    plain = re.sub(r"[^a-z]", "", name.lower())
    return plain.endswith(_SECRET_NAMES) or plain in _SECRET_PLURALS


def text(value: str) -> str:
    """``value`` without what looks like a secret, cut to a length that a log can bear."""
    # Cut first, so that the patterns' time is bounded; what is cut off is not shown at all.
    shown = value if len(value) <= _MAX_TEXT else value[:_MAX_TEXT]
    for pattern, replacement in _PATTERNS:
        shown = pattern.sub(replacement, shown)
    return shown if len(value) <= _MAX_TEXT else f"{shown}… ({len(value)} characters)"


def value(item: object, depth: int = 0) -> object:
    """``item`` in types that JSON has, without secrets."""
    shown: object
    record = _record(item)
    match item:
        case None | bool() | int():
            shown = item
        case float():
            shown = item if math.isfinite(item) else str(item)  # JSON has no infinity
        case bytes() | bytearray() | memoryview():
            shown = f"<{len(item)} bytes>"
        case list() | tuple() | set() | frozenset() if depth < _MAX_DEPTH:
            shown = [value(inner, depth + 1) for inner in list(item)[:_MAX_ITEMS]]
        case _ if record is not None:
            shown = fields(record, depth + 1) if depth < _MAX_DEPTH else "…"
        case _:
            shown = text(str(item))
    return shown


def _record(item: object) -> Mapping[str, object] | None:
    """What has named parts, by name: a string of it would hide which part is the password."""
    match item:
        case Mapping():
            return {str(name): inner for name, inner in list(item.items())[:_MAX_ITEMS]}
        case msgspec.Struct():
            return {name: getattr(item, name) for name in item.__struct_fields__}
        case _ if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    return None


def fields(record: Mapping[str, object], depth: int = 0) -> dict[str, object]:
    """The fields of a log line, or of something inside one."""
    return {text(name): MASK if is_secret(name) and inner not in (None, "") else value(inner, depth) for name, inner in record.items()}
