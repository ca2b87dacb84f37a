"""Describe API keys for the pages, and convert the form for a new key into the request to auth. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

import msgspec

from services.web.http import forms
from shared import amounts, errors, limits
from shared.access_table import ROLES, Permission
from shared.api.auth import ApiKey, ApiKeyLimits, GenerateApiKey, KeyBounds, KeyKind
from shared.types import MicroCredits, ModelName, UserRole

#: Keys that expire within this time are highlighted.
_SOON = timedelta(days=7)

#: Scope -> what it allows.
WORDS: Mapping[str, str] = {
    Permission.INFER: "run models",
    Permission.READ_MODELS: "list models",
    Permission.WRITE_MODELS: "load and unload models",
    Permission.OWN_NODES: "manage own nodes",
    Permission.READ_USAGE: "read usage",
    Permission.READ_SCALING: "read autoscaling",
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
        words = ", ".join(WORDS.get(scope, scope) for scope in key.bounds.scopes)
        return words[:1].upper() + words[1:]
    return {KeyKind.TEST: "Run models", KeyKind.ADMIN: "Administration"}.get(key.kind, "Full access")


def _bounds(key: ApiKey) -> Iterator[str]:
    if key.bounds.models:
        yield f"only {', '.join(key.bounds.models)}"
    if key.bounds.networks:
        yield f"from {', '.join(key.bounds.networks)}"


def _tone(key: ApiKey, now: datetime) -> str:
    if key.expires_at is None or not key.is_active:
        return ""
    return "bad" if key.expires_at <= now else "warn" if key.expires_at - now <= _SOON else ""


class KeyUse(StrEnum):
    """The access preset of a key: its kind and its scopes."""

    #: Run models and read usage, the default scopes.
    USUAL = "usual"
    #: Everything that a live key of its owner can do.
    ALL = "all"
    #: Run models only.
    RUN = "run"
    CHOSEN = "chosen"
    TEST = "test"
    ADMIN = "adm"


#: Checkbox field -> its permission.
SCOPES: Mapping[str, Permission] = {
    "may_run": Permission.INFER,
    "may_read_models": Permission.READ_MODELS,
    "may_write_models": Permission.WRITE_MODELS,
    "may_own_nodes": Permission.OWN_NODES,
    "may_read_usage": Permission.READ_USAGE,
    "may_read_scaling": Permission.READ_SCALING,
    "may_write_keys": Permission.WRITE_KEYS,
    "may_write_account": Permission.WRITE_ACCOUNT,
}


@limits.fields(str, after="name", default="")
class NewKeyForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    #: As the limits: empty means the tier default.
    budget: str = ""
    use: KeyUse = KeyUse.USUAL
    #: Empty for the default lifetime, 0 for no expiry.
    days: str = ""
    #: Names separated by commas or spaces.
    models: str = ""
    networks: str = ""
    #: Checkboxes; browsers send only those that are checked.
    may_run: str = ""
    may_read_models: str = ""
    may_write_models: str = ""
    may_own_nodes: str = ""
    may_read_usage: str = ""
    may_read_scaling: str = ""
    may_write_keys: str = ""
    may_write_account: str = ""

    @property
    def has_limits(self) -> bool:
        return bool(self.budget) or any(kind.of(self) for kind in limits.LIMITS)

    @property
    def has_bounds(self) -> bool:
        return self.use is not KeyUse.USUAL or bool(self.models or self.networks)


def read_request(form: NewKeyForm) -> GenerateApiKey:
    """Return the request to create the key. Raises BadRequest."""
    return GenerateApiKey(
        name=form.name.strip(),
        limits=read_limits(form),
        kind={KeyUse.TEST: KeyKind.TEST, KeyUse.ADMIN: KeyKind.ADMIN}.get(form.use, KeyKind.LIVE),
        bounds=KeyBounds(_scopes(form), tuple(ModelName(name) for name in _names(form.models)), _names(form.networks)),
        days=_read_days(form.days),
        all_rights=form.use is KeyUse.ALL,
    )


def read_limits(form: NewKeyForm) -> ApiKeyLimits:
    """Return the optional limits of a new key. Raises BadRequest."""
    numbers = {kind.name: forms.read_limit(getattr(form, kind.name), kind.words) for kind in limits.LIMITS}
    return msgspec.structs.replace(ApiKeyLimits(budget_micro=_read_budget(form.budget)), **numbers)


def scopes_of(role: UserRole) -> Mapping[str, Permission]:
    """Return the checkboxes for a role."""
    granted = ROLES[role]
    return {field: scope for field, scope in SCOPES.items() if scope in granted or Permission.EVERYTHING in granted}


def _scopes(form: NewKeyForm) -> tuple[str, ...]:
    if form.use is KeyUse.RUN:
        return (Permission.INFER.value,)
    if form.use is not KeyUse.CHOSEN:
        return ()
    chosen = tuple(scope.value for field, scope in SCOPES.items() if getattr(form, field))
    if not chosen:
        raise errors.BadRequest("the key has no permissions", hint="select at least one permission")
    return chosen


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.replace(",", " ").split()))


def _read_days(text: str) -> int | None:
    text = text.strip()
    if not text:
        return None
    if (days := forms.find_number(text, most_digits=4)) is None:
        raise errors.BadRequest("the expiry must be a number of days", hint="choose one from the list")
    return days


def _read_budget(text: str) -> MicroCredits | None:
    if not text.strip():
        return None
    try:
        budget = amounts.read(text)
    except ValueError as error:
        raise errors.BadRequest(f"budget: {error}", hint="leave it empty for no budget") from error
    if budget <= 0:
        raise errors.BadRequest("the budget must be more than 0", hint="leave it empty for no budget")
    return budget
