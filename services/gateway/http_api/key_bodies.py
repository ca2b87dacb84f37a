"""API keys as /api has them: limits flat, the budget in credits. Pure."""

from datetime import datetime
from typing import Annotated

import msgspec

from services.gateway.admission.prompt_admission import BadField
from shared import amounts
from shared.api import auth
from shared.types import Credential, KeyId, MicroCredits, ModelName, UserId

#: What the columns of auth hold; and no message carries an integer that is longer than 64 bits.
Limit = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Days = Annotated[int, msgspec.Meta(ge=0, le=3650)]


class ApiKeyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A limit that is absent is none of the key's own; the account's hold all the same."""

    name: str = "default"
    user_id: UserId | None = None
    requests_per_hour: Limit | None = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    #: Requests that run at once.
    concurrency: Limit | None = None
    #: What all requests of the key may cost, in credits; as a string where it has more than 15 digits.
    budget: str | int | float | None = None
    #: live, test or adm.
    kind: auth.KeyKind = auth.KeyKind.LIVE
    #: Such as `inference:execute`; empty for using models and reading usage.
    scopes: tuple[str, ...] = ()
    #: All that the kind may have of yours, now and later, in place of scopes.
    all_rights: bool = False
    #: Only these; empty for all.
    models: tuple[ModelName, ...] = ()
    #: Only from there, in CIDR form; empty for everywhere.
    networks: tuple[str, ...] = ()
    #: Days until it expires, 0 for never; without it 90, and 30 for a test key.
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
    #: In credits; a string, so that it is exact everywhere.
    budget: str | None
    kind: auth.KeyKind
    scopes: tuple[str, ...]
    models: tuple[ModelName, ...]
    networks: tuple[str, ...]
    last_used_at: datetime | None
    #: null for never.
    expires_at: datetime | None
    #: The key that made it; null where a login did.
    made_by: KeyId | None


class RevokeQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: Also the keys that it made, and those that they made.
    with_made: bool = False


class ApiKeysAnswer(msgspec.Struct, frozen=True):
    keys: tuple[ApiKeyView, ...]


class ApiKeyAnswer(msgspec.Struct, frozen=True):
    """The only answer that ever carries a whole key."""

    api_key: Credential
    key: ApiKeyView


def to_request(body: ApiKeyBody) -> auth.GenerateApiKey:
    """Raises BadField for a budget that is no amount; what a limit may be, auth knows."""
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
        raise BadField("budget", f"does not fit: {error}") from error
