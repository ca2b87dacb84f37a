"""The list of API keys, and the words of their permissions, limits and expiry."""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

from shared import limits
from shared.api.auth import ApiKey, ApiKeyLimits, Budget, KeyKind
from shared.lists.account import budget_words
from shared.lists.columns import Column, Listing, Tone
from shared.types import Permission

#: Keys that expire within this time are highlighted.
_SOON = timedelta(days=7)

#: Scope -> what it allows.
SCOPES: Mapping[str, str] = {
    Permission.INFER: "run models",
    Permission.READ_MODELS: "list models",
    Permission.WRITE_MODELS: "load and unload models",
    Permission.OWN_NODES: "manage own nodes",
    Permission.READ_USAGE: "read usage",
    Permission.READ_SCALING: "read autoscaling",
    Permission.WRITE_KEYS: "create and revoke keys",
    Permission.WRITE_ACCOUNT: "manage account",
    Permission.NAME_USERS: "name the person of each request",
    Permission.SERVE_STRANGERS: "serve people without an account",
    Permission.EVERYTHING: "full access",
}
#: Kind -> its words, and what it allows without scopes.
_KINDS = {KeyKind.LIVE: ("", "full access"), KeyKind.TEST: ("test key", "run models"), KeyKind.ADMIN: ("administration", "")}


def list_keys(now: datetime) -> Listing[ApiKey]:
    return Listing(
        columns=(
            Column(title="Name", show=lambda key: key.name, wraps=True),
            Column(title="Key", show=lambda key: key.preview, is_code=True),
            Column(title="State", show=lambda key: state(key, now)[0], tone=lambda key: state(key, now)[1]),
            Column(title="Permissions", show=permissions, rank=5, wraps=True),
            Column(title="Limits", show=lambda key: ", ".join(_limits(key.limits)) or "Tier default", rank=4, wraps=True),
            Column(title="Created", show=lambda key: key.created_at, rank=6, is_day=True),
            Column(title="Last used", show=lambda key: key.last_used_at or "Never", rank=3, is_day=True),
            Column(
                title="Expires",
                show=lambda key: key.expires_at or "Never" if key.is_active else None,
                tone=lambda key: _expiry_tone(key, now),
                rank=2,
                is_day=True,
            ),
            Column(title="ID", show=lambda key: str(key.id), is_code=True, only_wide=True),
        ),
        empty="No keys yet.",
        is_over=lambda key: not is_working(key, now),
    )


def is_working(key: ApiKey, now: datetime) -> bool:
    return key.is_active and (key.expires_at is None or key.expires_at > now)


def state(key: ApiKey, now: datetime) -> tuple[str, Tone]:
    if is_working(key, now):
        return "Active", Tone.GOOD
    return ("Expired", Tone.BAD) if key.is_active else ("Revoked", Tone.OFF)


def permissions(key: ApiKey) -> tuple[str, ...]:
    """Return the kind of a key, unless it is live, its scopes, and its model and network restrictions."""
    first, *others = _permissions(key)
    return (first[:1].upper() + first[1:], *others)


def _permissions(key: ApiKey) -> Iterator[str]:
    kind, usual = _KINDS[key.kind]
    scopes = [SCOPES.get(scope, scope) for scope in key.bounds.scopes]
    yield from filter(None, (kind, *(scopes or [usual])))
    if key.bounds.models:
        yield f"only {', '.join(key.bounds.models)}"
    if key.bounds.networks:
        yield f"from {', '.join(key.bounds.networks)}"


def _limits(of_key: ApiKeyLimits) -> list[str]:
    if of_key.budget_micro is None:
        return limits.in_words(of_key)
    return [*limits.in_words(of_key), budget_words(Budget(of_key.budget_micro, of_key.budget_every))]


def _expiry_tone(key: ApiKey, now: datetime) -> Tone:
    if key.expires_at is None or not key.is_active or key.expires_at - now > _SOON:
        return Tone.PLAIN
    return Tone.WARN if is_working(key, now) else Tone.BAD
