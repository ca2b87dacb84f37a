"""Convert the form for a new key into the request to auth, and find the keys that a key created. Pure."""

from collections.abc import Mapping
from enum import StrEnum
from uuid import UUID

import msgspec

from services.web.http import forms
from shared import amounts, errors, limits
from shared.access_table import ROLES
from shared.api.auth import ApiKey, ApiKeyLimits, Every, GenerateApiKey, KeyBounds, KeyKind
from shared.types import MicroCredits, ModelName, Permission, UserRole


def made_by(keys: tuple[ApiKey, ...], maker: UUID) -> tuple[ApiKey, ...]:
    """Return the keys that ``maker`` created, directly or through other keys."""
    makers = {maker}
    while more := {key.id for key in keys if key.made_by in makers} - makers:
        makers |= more
    return tuple(key for key in keys if key.made_by in makers)


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
    "may_name_users": Permission.NAME_USERS,
    "may_serve_strangers": Permission.SERVE_STRANGERS,
}


@limits.fields(str, after="name", default="")
class NewKeyForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    #: As the limits: empty means the tier default.
    budget: str = ""
    #: Empty for never.
    budget_every: str = ""
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
    may_name_users: str = ""
    may_serve_strangers: str = ""

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
        days=forms.read_number(form.days, "the number of days", GenerateApiKey, "days"),
        all_rights=form.use is KeyUse.ALL,
    )


def read_limits(form: NewKeyForm) -> ApiKeyLimits:
    """Return the optional limits of a new key. Raises BadRequest."""
    numbers = {kind.name: forms.read_number(getattr(form, kind.name), kind.words, ApiKeyLimits, kind.name) for kind in limits.LIMITS}
    every = forms.read_choice(Every, form.budget_every, "renewal of the budget") if form.budget_every else None
    return msgspec.structs.replace(ApiKeyLimits(budget_micro=read_budget(form.budget), budget_every=every), **numbers)


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


def read_budget(text: str) -> MicroCredits | None:
    if not text.strip():
        return None
    try:
        budget = amounts.read(text)
    except ValueError as error:
        raise errors.BadRequest.of("budget", str(error), hint="leave it empty for no budget") from error
    if budget <= 0:
        raise errors.BadRequest("the budget must be more than 0", hint="leave it empty for no budget", field="budget")
    return budget
