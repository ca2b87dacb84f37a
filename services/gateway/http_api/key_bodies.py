"""Defines API keys as /api shows them: flat limits, and the budget in credits. Pure."""

from datetime import datetime
from typing import Annotated

import msgspec

from services.gateway.admission.prompt_admission import BadField
from shared import amounts
from shared.api import auth
from shared.types import Credential, KeyId, MicroCredits, ModelName, UserId

#: The range of auth's columns.
Limit = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Days = Annotated[int, msgspec.Meta(ge=0, le=3650)]


class ApiKeyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new key. Omitted limits aren't set on the key; the account's limits apply in any case."""

    name: str = "default"
    user_id: UserId | None = None
    requests_per_hour: Limit | None = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    #: Concurrent requests.
    concurrency: Limit | None = None
    #: In credits, over all requests of the key; use a string for more than 15 digits.
    budget: str | int | float | None = None
    #: live, test or adm.
    kind: auth.KeyKind = auth.KeyKind.LIVE
    #: For example `inference:execute`; empty for using models and reading usage.
    scopes: tuple[str, ...] = ()
    #: Everything that this kind of key can get from you, now and later, instead of scopes.
    all_rights: bool = False
    #: Allowed models; empty for all.
    models: tuple[ModelName, ...] = ()
    #: Allowed networks in CIDR form; empty for all.
    networks: tuple[str, ...] = ()
    #: Days until it expires; 0 for never. The default is 90, or 30 for a test key.
    days: Days | None = None


class ApiKeyView(msgspec.Struct, frozen=True):
    id: KeyId
    user_id: UserId
    name: str
    preview: str
    is_active: bool
    created_at: datetime
    requests_per_hour: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrency: int | None
    #: In credits; a string, to keep it exact.
    budget: str | None
    kind: auth.KeyKind
    scopes: tuple[str, ...]
    models: tuple[ModelName, ...]
    networks: tuple[str, ...]
    last_used_at: datetime | None
    #: null for never.
    expires_at: datetime | None
    #: The key that created it; null if a login did.
    made_by: KeyId | None


class RevokeQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: Also revoke the keys that it created, directly or indirectly.
    with_made: bool = False


class ApiKeysAnswer(msgspec.Struct, frozen=True):
    keys: tuple[ApiKeyView, ...]


class ApiKeyAnswer(msgspec.Struct, frozen=True):
    """The only response that contains a whole key."""

    api_key: Credential
    key: ApiKeyView


def to_request(body: ApiKeyBody) -> auth.GenerateApiKey:
    """Convert the body. Raises BadField for an invalid budget; auth checks the limits."""
    limits = auth.ApiKeyLimits(
        body.requests_per_hour, body.requests_per_minute, body.tokens_per_minute, body.concurrency, _micro(body.budget)
    )
    bounds = auth.KeyBounds(body.scopes, body.models, body.networks)
    return auth.GenerateApiKey(body.name, body.user_id, limits, body.kind, bounds, body.days, body.all_rights)


def to_answer(made: auth.CreatedApiKey) -> ApiKeyAnswer:
    return ApiKeyAnswer(made.api_key, to_view(made.key))


def to_view(key: auth.ApiKey) -> ApiKeyView:
    limits = key.limits
    return ApiKeyView(
        id=key.id,
        user_id=key.user_id,
        name=key.name,
        preview=key.preview,
        is_active=key.is_active,
        created_at=key.created_at,
        requests_per_hour=limits.requests_per_hour,
        requests_per_minute=limits.requests_per_minute,
        tokens_per_minute=limits.tokens_per_minute,
        concurrency=limits.concurrency,
        budget=None if limits.budget_micro is None else amounts.written(limits.budget_micro),
        kind=key.kind,
        scopes=key.bounds.scopes,
        models=key.bounds.models,
        networks=key.bounds.networks,
        last_used_at=key.last_used_at,
        expires_at=key.expires_at,
        made_by=key.made_by,
    )


def _micro(budget: str | int | float | None) -> MicroCredits | None:
    if budget is None:
        return None
    try:
        return amounts.read_json(budget)
    except ValueError as error:
        raise BadField("budget", f"is invalid: {error}") from error
