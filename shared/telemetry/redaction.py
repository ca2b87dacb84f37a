"""Mask secrets in log lines. Pure. This is the last line of defense: callers must not log secrets."""

import dataclasses
import math
import re
from collections.abc import Mapping
from functools import lru_cache

import msgspec

MASK = "[redacted]"

#: Field names whose values are masked, reduced to letters: `API-Key`, `apiKey` and `api_key` are equal.
_SECRET_NAMES = ("password", "passwd", "token", "secret", "apikey", "authorization", "prompt", "credential", "cookie", "seedphrase")
_SECRET_PLURALS = frozenset(f"{name}s" for name in _SECRET_NAMES if name != "token") | {"messages"}

#: Pattern of a secret in any text -> its replacement.
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # API keys, tickets and refresh tokens, even truncated; the kind stays readable.
    (re.compile(r"\b(aip_[a-z]{2,8}_)[0-9A-Za-z_-]{6,}"), rf"\1{MASK}"),
    # JWT: a base64url header that begins with `{"`, payload and signature.
    (re.compile(r"\beyJ[\w-]{4,512}\.[\w-]{4,}(?:\.[\w-]*)?"), MASK),
    # nkey seeds: S, the key type and base32, even truncated. A public key (U…) is an ID, not a secret.
    (re.compile(r"\bS[ACNOUX][A-Z2-7]{30,}"), MASK),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), rf"\1 {MASK}"),
    # The password of a URL.
    (re.compile(r"(\b[a-z][a-z0-9+.-]{0,30}://[^\s/:@]{0,128}):[^\s/@]{1,256}@"), rf"\1:{MASK}@"),
    # The token of a NATS URL.
    (re.compile(r"(\b(?:nats|tls)://)[^\s/:@]{1,1024}@"), rf"\1{MASK}@"),
    # Secrets in a query string or in `key=value` text.
    (re.compile(r"(?i)\b([\w-]{0,32}(?:password|passwd|token|secret|api_?key|credential)=)[^\s&;,'\")]+"), rf"\1{MASK}"),
)
#: What a text has if one of the patterns matches it. Most texts of a busy log have none, and one search is cheaper than seven.
_SIGNS = re.compile(r"aip_|eyJ|S[ACNOUX][A-Z2-7]{30}|(?i:bearer|basic)\s|://|=")

_MAX_DEPTH = 6
_MAX_TEXT = 16_384
_MAX_ITEMS = 100
_CACHED_NAME = 64


def is_secret(name: str) -> bool:
    """Return whether to mask a field of this name: ``access_token`` and ``X-Api-Key``, but not ``prompt_tokens``."""
    plain = re.sub(r"[^a-z]", "", name.lower())
    return plain.endswith(_SECRET_NAMES) or plain in _SECRET_PLURALS


def text(value: str) -> str:
    """Truncate a text and mask anything that looks like a secret."""
    # Truncate first, to bound the time of the patterns.
    shown = value if len(value) <= _MAX_TEXT else value[:_MAX_TEXT]
    if _SIGNS.search(shown):
        for pattern, replacement in _PATTERNS:
            shown = pattern.sub(replacement, shown)
    return shown if len(value) <= _MAX_TEXT else f"{shown}… ({len(value)} characters)"


def value(item: object, depth: int = 0) -> object:
    """Convert ``item`` to JSON types, without secrets."""
    shown: object
    match item:
        case None | bool() | int():
            return item
        case str():
            return text(str(item))
    record = _record(item)
    match item:
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
    """Return the named parts of an object. As one string, they would hide which part is a password."""
    match item:
        case Mapping():
            return {str(name): inner for name, inner in list(item.items())[:_MAX_ITEMS]}
        case msgspec.Struct():
            return {name: getattr(item, name) for name in item.__struct_fields__}
        case _ if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    return None


def fields(record: Mapping[str, object], depth: int = 0) -> dict[str, object]:
    """Mask the fields of a log line or of a nested record."""
    shown = {}
    for name, inner in record.items():
        # Long names may come from callers; they are not kept.
        shown_name, hides = (_masked_name if len(name) <= _CACHED_NAME else _masked_name.__wrapped__)(name)
        shown[shown_name] = MASK if hides and inner not in (None, "") else value(inner, depth)
    return shown


@lru_cache(maxsize=1024)
def _masked_name(name: str) -> tuple[str, bool]:
    """Return a field's name as it is shown, and whether to mask its value."""
    return text(name), is_secret(name)
