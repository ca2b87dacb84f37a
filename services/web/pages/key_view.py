"""Describe API keys for the pages. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from shared.access_table import Permission
from shared.api.auth import ApiKey, ApiKeyLimits, KeyKind

#: Keys that expire within this time are highlighted.
_SOON = timedelta(days=7)

WORDS: Mapping[Permission, str] = {
    Permission.INFER: "run models",
    Permission.READ_MODELS: "list models",
    Permission.WRITE_MODELS: "load and unload models",
    Permission.OWN_NODES: "manage own nodes",
    Permission.READ_USAGE: "read usage",
    Permission.WRITE_KEYS: "create and revoke keys",
    Permission.WRITE_ACCOUNT: "manage account",
    Permission.EVERYTHING: "full access",
}
_KINDS = {KeyKind.LIVE: "", KeyKind.TEST: "test", KeyKind.ADMIN: "admin"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyRow:
    id: UUID
    name: str
    preview: str
    #: The kind, unless it is live.
    tag: str
    #: Its permissions, and its model and network restrictions.
    may: str
    bounds: tuple[str, ...]
    limits: ApiKeyLimits
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    #: active, expired or revoked.
    state: str
    #: The tone of its expiry: empty, warn or bad.
    tone: str

    @property
    def is_active(self) -> bool:
        return self.state == "active"


def lines_of(keys: tuple[ApiKey, ...], now: datetime) -> tuple[ApiKeyRow, ...]:
    """Return the keys sorted by state (active first) and age (newest first)."""
    found = [line_of(key, now) for key in keys]
    return tuple(sorted(found, key=lambda line: (line.is_active, line.created_at), reverse=True))


def made_by(keys: tuple[ApiKey, ...], maker: UUID) -> tuple[ApiKey, ...]:
    """Return the keys that ``maker`` created, directly or through other keys."""
    makers = {maker}
    while more := {key.id for key in keys if key.made_by in makers} - makers:
        makers |= more
    return tuple(key for key in keys if key.made_by in makers)


def line_of(key: ApiKey, now: datetime) -> ApiKeyRow:
    is_over = key.expires_at is not None and key.expires_at <= now
    return ApiKeyRow(
        id=key.id,
        name=key.name,
        preview=key.preview,
        tag=_KINDS.get(key.kind, key.kind),
        may=_may(key),
        bounds=tuple(_bounds(key)),
        limits=key.limits,
        created_at=key.created_at,
        last_used_at=key.last_used_at,
        expires_at=key.expires_at,
        state="revoked" if not key.is_active else "expired" if is_over else "active",
        tone=_tone(key, now),
    )


def _may(key: ApiKey) -> str:
    if key.bounds.scopes:
        words = ", ".join(WORDS.get(scope, scope) if (scope := _known(name)) else name for name in key.bounds.scopes)
        return words[:1].upper() + words[1:]
    return {KeyKind.TEST: "Run models", KeyKind.ADMIN: "Administration"}.get(key.kind, "Full access")


def _known(scope: str) -> Permission | None:
    return next((each for each in Permission if each == scope), None)


def _bounds(key: ApiKey) -> Iterator[str]:
    if key.bounds.models:
        yield f"only {', '.join(key.bounds.models)}"
    if key.bounds.networks:
        yield f"from {', '.join(key.bounds.networks)}"


def _tone(key: ApiKey, now: datetime) -> str:
    if key.expires_at is None or not key.is_active:
        return ""
    return "bad" if key.expires_at <= now else "warn" if key.expires_at - now <= _SOON else ""
