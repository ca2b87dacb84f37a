"""Keys as the pages show them. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from shared.access import Permission
from shared.api.auth import ApiKey, KeyKind, KeyLimits

#: Then a key is shown in another colour.
_SOON = timedelta(days=7)

#: What each scope lets a key do.
WORDS: Mapping[Permission, str] = {
    Permission.INFER: "run models",
    Permission.READ_MODELS: "see where models are",
    Permission.WRITE_MODELS: "load and unload models",
    Permission.OWN_NODES: "look after machines",
    Permission.READ_USAGE: "read usage",
    Permission.WRITE_KEYS: "make and revoke keys",
    Permission.WRITE_ACCOUNT: "change the account",
    Permission.EVERYTHING: "everything",
}
_KINDS = {KeyKind.LIVE: "", KeyKind.TEST: "test", KeyKind.ADMIN: "admin"}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLine:
    id: UUID
    name: str
    preview: str
    #: Of a key that is not an everyday one.
    tag: str
    #: What it may do, and with what and from where.
    may: str
    bounds: tuple[str, ...]
    limits: KeyLimits
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    #: active, expired or revoked.
    state: str
    #: Of its end: empty, warn or bad.
    tone: str

    @property
    def is_active(self) -> bool:
        return self.state == "active"


def lines_of(keys: tuple[ApiKey, ...], now: datetime) -> tuple[KeyLine, ...]:
    """Active ones first, the newest of each first."""
    found = [line_of(key, now) for key in keys]
    return tuple(sorted(found, key=lambda line: (line.is_active, line.created_at), reverse=True))


def made_by(keys: tuple[ApiKey, ...], maker: UUID) -> tuple[ApiKey, ...]:
    """Those of ``keys`` that this key made, that those made, and so on."""
    makers = {maker}
    while more := {key.id for key in keys if key.made_by in makers} - makers:
        makers |= more
    return tuple(key for key in keys if key.made_by in makers)


def line_of(key: ApiKey, now: datetime) -> KeyLine:
    is_over = key.expires_at is not None and key.expires_at <= now
    return KeyLine(
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
        return ", ".join(WORDS.get(scope, scope) if (scope := _known(name)) else name for name in key.bounds.scopes)
    return {KeyKind.TEST: "run models", KeyKind.ADMIN: "everything, and administer"}.get(key.kind, "what its owner may")


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
