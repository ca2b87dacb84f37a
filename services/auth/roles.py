"""Decide what a caller may do, and what a key may do that they create. Pure; raises NotAllowed.

A node's role gives access to a method. Whose data it may touch follows from the user's own credential in the call, never from an argument
alone. A key never does more than the credential that created it: every limit of a new key lies within its creator's, and missing ones are
inherited.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network

import msgspec

from services.auth import name_rules
from shared import access_table, amounts, errors
from shared.api.auth import KEY_DAYS, TEST_KEY_DAYS, ApiKey, ApiKeyLimits, GenerateApiKey, KeyBounds, KeyKind, Principal
from shared.limits import BY_NAME
from shared.types import MicroCredits, Permission, UserId, UserRole

NOT_YOURS = "that belongs to another user"
#: For test keys.
TEST_REQUESTS_PER_HOUR = 60
_TEST_LIMIT = BY_NAME["requests_per_hour"]
_TEST_SCOPES = frozenset({Permission.INFER, Permission.READ_MODELS, Permission.READ_USAGE})
#: For test keys from before keys had default scopes.
_FORMER_TEST_SCOPES = frozenset({Permission.INFER, Permission.READ_MODELS})
#: For keys that name no scopes: what a program needs to call models. A leaked key can then neither create keys nor change the account.
USUAL_SCOPES = frozenset({Permission.INFER, Permission.READ_MODELS, Permission.READ_USAGE})
#: Of administrators' keys that list them: a key with all rights must not speak for others.
_NAMING = frozenset({Permission.NAME_USERS, Permission.SERVE_STRANGERS})
#: For an administrator's everyday key: what any developer may do.
_ADMINS_EVERYDAY = access_table.ROLES[UserRole.DEVELOPER] | access_table.ROLES[UserRole.NODE_OWNER]

_MAX_BUDGET_MICRO = MicroCredits(2**63 - 1)

_LOG_IN_HINT = "log in with the password"
_Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class KeyTerms:
    kind: KeyKind
    limits: ApiKeyLimits
    #: As stored.
    bounds: KeyBounds
    #: None for never.
    expires_at: datetime | None


def is_admin(caller: Principal) -> bool:
    """Return whether this credential carries administrator rights; most keys of administrators don't."""
    return Permission.EVERYTHING in access_table.permissions_of(caller.role, caller.scopes)


def subject_of(caller: Principal, user_id: UserId | None) -> UserId:
    """Return the user concerned: the caller, or the user that an administrator names."""
    if user_id is None or user_id == caller.user_id or is_admin(caller):
        return user_id or caller.user_id
    raise errors.NotAllowed(NOT_YOURS, hint="leave userId out for yourself; only an administrator may name others")


def check_may_open_session(caller: Principal) -> None:
    """A session may do everything that its user may, so a restricted key must not open one."""
    if caller.key_id is None:
        return
    if caller.key_limits != ApiKeyLimits():
        raise errors.NotAllowed("a key with its own limit cannot open a session", hint=_LOG_IN_HINT)
    if caller.models or caller.networks or caller.team_id is not None:
        raise errors.NotAllowed("a key that is bound to models, networks or an organization cannot open a session", hint=_LOG_IN_HINT)
    if access_table.permissions_of(caller.role, caller.scopes) != access_table.ROLES[caller.role]:
        raise errors.NotAllowed("a key with fewer permissions than its owner cannot open a session", hint=_LOG_IN_HINT)


def most_scopes(kind: KeyKind, owner: UserRole) -> frozenset[Permission]:
    """Return all scopes that a key of this kind can have, given its owner's permissions."""
    granted = access_table.ROLES[owner]
    if kind is KeyKind.ADMIN:
        return granted
    everyday = _ADMINS_EVERYDAY if Permission.EVERYTHING in granted else granted
    return everyday & _TEST_SCOPES if kind is KeyKind.TEST else everyday


def _most_listed(kind: KeyKind, owner: UserRole) -> frozenset[Permission]:
    """Return all scopes that can be listed for such a key."""
    speaks = kind is KeyKind.LIVE and Permission.EVERYTHING in access_table.ROLES[owner]
    return most_scopes(kind, owner) | _NAMING if speaks else most_scopes(kind, owner)


def named(key: Principal, person: Principal) -> Principal:
    """Return the person whom a key names for a request, which counts as theirs: within the key's scopes, models and networks, and against
    none of the key's own limits."""
    scopes = tuple(scope for scope in key.scopes or () if scope not in _NAMING)
    return msgspec.structs.replace(
        person,
        key_id=key.key_id,
        key_name=key.key_name,
        scopes=scopes,
        models=key.models,
        networks=key.networks,
        expires_at=key.expires_at,
        named_by=key.user_id,
    )


def scopes_of_key(kind: KeyKind, owner: UserRole, stored: Iterable[str]) -> tuple[str, ...]:
    """Return the scopes that the key has now. Stored scopes that its owner has lost, or that this version doesn't know, grant nothing."""
    most, named = most_scopes(kind, owner), frozenset(stored)
    if not named:
        return tuple(sorted(most & _FORMER_TEST_SCOPES if kind is KeyKind.TEST else most))
    known = frozenset(scope for scope in Permission if scope in named)
    if kind is KeyKind.ADMIN and Permission.EVERYTHING in known:
        return tuple(sorted(most))
    return tuple(sorted(known if Permission.EVERYTHING in most else known & _most_listed(kind, owner)))


def check_limits_of_new_key(caller: Principal, limits: ApiKeyLimits) -> None:
    """A limited key creates none: with several of them its limit would be meaningless. Also raises BadRequest."""
    if limits.budget_micro is not None and not 1 <= limits.budget_micro <= _MAX_BUDGET_MICRO:
        allowed = f"budget: from {amounts.written(1)} to {amounts.written(_MAX_BUDGET_MICRO)} credits"
        raise errors.BadRequest(allowed, hint="leave it out to use the tier's limit")
    if limits.budget_every is not None and limits.budget_micro is None:
        raise errors.BadRequest.of("budget_every", "there is no budget to renew", hint="give a budget, too")
    if caller.key_limits != ApiKeyLimits():
        raise errors.NotAllowed("a key with its own limit cannot create keys", hint=_LOG_IN_HINT)


def terms_of_new_key(caller: Principal, owner: UserRole, request: GenerateApiKey, now: datetime) -> KeyTerms:
    """Also raises BadRequest, which lists the choices."""
    check_limits_of_new_key(caller, request.limits)
    if request.kind is KeyKind.ADMIN and not (is_admin(caller) and owner is UserRole.ADMIN):
        raise errors.NotAllowed("only administrators can create and have keys of the kind adm", hint="create a live key")
    bounds = KeyBounds(
        scopes=_scopes_of_new_key(caller, request, owner),
        models=name_rules.models_of(request.bounds.models) or caller.models,
        networks=name_rules.networks_of(request.bounds.networks) or caller.networks,
    )
    terms = KeyTerms(request.kind, _limits_of_kind(request.kind, request.limits), bounds, _end_of_new_key(caller, request, now))
    _check_within(caller, terms)
    return terms


def check_may_rotate(caller: Principal, key: ApiKey, owner: UserRole) -> None:
    """Rotating a key reveals its new secret, so a key may rotate itself, and others only if it could have created them."""
    if caller.key_id is None or caller.key_id == key.id:
        return
    if caller.key_limits != ApiKeyLimits():
        raise errors.NotAllowed("a key with its own limit cannot rotate other keys", hint=_LOG_IN_HINT)
    if missing := _not_granted(caller, frozenset(Permission(scope) for scope in scopes_of_key(key.kind, owner, key.bounds.scopes))):
        raise errors.NotAllowed(f"{key.name!r} has more permissions than this key: {', '.join(missing)}", hint=_LOG_IN_HINT)
    _check_within(caller, KeyTerms(key.kind, key.limits, key.bounds, key.expires_at))


def _scopes_of_new_key(caller: Principal, request: GenerateApiKey, owner: UserRole) -> tuple[str, ...]:
    """Return what is stored; empty means everything that its owner may do, now and later."""
    kind, requested = request.kind, request.bounds.scopes
    if requested and request.all_rights:
        raise errors.BadRequest.of("scopes", "not together with all_rights", hint="name the scopes, or ask for all rights")
    if unknown := sorted(set(requested) - set(Permission)):
        raise errors.BadRequest.of("scopes", f"there is no {unknown[0][:50]!r}", hint=f"choose from {', '.join(Permission)}")
    wanted, most = frozenset(Permission(scope) for scope in requested), most_scopes(kind, owner)
    if Permission.EVERYTHING not in most and (missing := sorted(wanted - (listed := _most_listed(kind, owner)))):
        raise errors.NotAllowed(
            f"a key of the kind {kind} cannot have {', '.join(missing)} here", hint=f"choose from {', '.join(sorted(listed))}"
        )
    if wanted & _NAMING == {Permission.SERVE_STRANGERS}:
        raise errors.BadRequest.of("scopes", f"{Permission.SERVE_STRANGERS} needs {Permission.NAME_USERS}", hint="add it")
    if missing := _not_granted(caller, wanted):
        raise errors.NotAllowed(f"you cannot give permissions that you lack: {', '.join(missing)}", hint="leave these scopes out")
    if wanted:
        return tuple(sorted(wanted))
    has_all = kind is KeyKind.ADMIN or (request.all_rights and kind is KeyKind.LIVE)
    if has_all and (caller.scopes is None or is_admin(caller)):
        return ()
    # An administrator may create keys for people with permissions that the administrator's own login doesn't need.
    granted = most if is_admin(caller) else most & access_table.permissions_of(caller.role, caller.scopes)
    inherited = granted if has_all else granted & USUAL_SCOPES
    if not inherited:
        # Stored as an empty list it would mean everything.
        raise errors.NotAllowed(f"a key of the kind {kind} created by this key would have no permissions", hint=_LOG_IN_HINT)
    return tuple(sorted(inherited))


def _not_granted(caller: Principal, wanted: frozenset[Permission]) -> list[Permission]:
    granted = access_table.permissions_of(caller.role, caller.scopes)
    return [] if Permission.EVERYTHING in granted else sorted(wanted - granted)


def _limits_of_kind(kind: KeyKind, limits: ApiKeyLimits) -> ApiKeyLimits:
    if kind is not KeyKind.TEST:
        return limits
    requested = _TEST_LIMIT.of(limits)
    if requested is not None and requested > TEST_REQUESTS_PER_HOUR:
        raise errors.BadRequest(f"{_TEST_LIMIT.name}: a test key has at most {TEST_REQUESTS_PER_HOUR}", hint="create a live key for more")
    return msgspec.structs.replace(limits, **{_TEST_LIMIT.name: requested or TEST_REQUESTS_PER_HOUR})


def _end_of_new_key(caller: Principal, request: GenerateApiKey, now: datetime) -> datetime | None:
    usual = TEST_KEY_DAYS if request.kind is KeyKind.TEST else KEY_DAYS
    days = usual if request.days is None else request.days
    if request.kind is KeyKind.TEST and not 1 <= days <= TEST_KEY_DAYS:
        raise errors.BadRequest.of(
            "days", f"a test key is valid for 1 to {TEST_KEY_DAYS} days", hint="create a live key for a longer lifetime"
        )
    ends_at = now + timedelta(days=days) if days else None
    creators_end = _time(caller.expires_at)
    # Without an explicit lifetime, a key that expires soon creates keys that expire with it.
    return creators_end if request.days is None and creators_end is not None and ends_at is not None and creators_end < ends_at else ends_at


def _check_within(caller: Principal, terms: KeyTerms) -> None:
    """Raises NotAllowed if the key's models, networks or end exceed those of the credential."""
    beyond = sorted(set(terms.bounds.models) - set(caller.models))
    if caller.models and (beyond or not terms.bounds.models):
        what = ", ".join(beyond) or "every model"
        raise errors.NotAllowed(f"models: beyond those of this key: {what}", hint=f"choose from {', '.join(caller.models)}")
    if caller.networks:
        allowed = [ip_network(network) for network in caller.networks]
        wanted = [ip_network(network) for network in terms.bounds.networks]
        if not wanted or not all(any(_is_within(network, outer) for outer in allowed) for network in wanted):
            raise errors.NotAllowed("networks: beyond those of this key", hint=f"choose within {', '.join(caller.networks)}")
    creators_end = _time(caller.expires_at)
    if creators_end is not None and (terms.expires_at is None or terms.expires_at > creators_end):
        raise errors.NotAllowed(f"days: longer than this key itself, which ends at {creators_end:%Y-%m-%d %H:%M} UTC", hint=_LOG_IN_HINT)


def _is_within(inner: _Network, outer: _Network) -> bool:
    if isinstance(inner, IPv4Network):
        return isinstance(outer, IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, IPv6Network) and inner.subnet_of(outer)


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
