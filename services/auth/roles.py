"""What a recognised caller may do, and what a key that they make may do. Pure; raises NotAllowed.

A node's role admits it to a method; whose data it may touch comes from the user's own credential in the call, and never
from an argument alone. A key never does more than who made it: each bound of a new key lies within the same bound of its maker,
and what is left out is inherited.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network

import msgspec

from services.auth import name_rules
from shared import amounts, errors
from shared.access import access_table
from shared.access.access_table import Permission
from shared.api.auth import KEY_DAYS, TEST_KEY_DAYS, ApiKey, ApiKeyLimits, GenerateApiKey, KeyBounds, KeyKind, Principal
from shared.types import UserId, UserRole

#: Of a key for tests.
TEST_REQUESTS_PER_HOUR = 60
_TEST_SCOPES = frozenset({Permission.INFER, Permission.READ_MODELS, Permission.READ_USAGE})
#: Of a key for tests that was made before keys had usual scopes.
_FORMER_TEST_SCOPES = frozenset({Permission.INFER, Permission.READ_MODELS})
#: Of a key that names none: what a program needs to ask models. A key that leaks makes no others then, and changes no account.
USUAL_SCOPES = frozenset({Permission.INFER, Permission.READ_MODELS, Permission.READ_USAGE})
#: What an administrator's everyday key may do: whatever anybody else may.
_ADMINS_EVERYDAY = access_table.ROLES[UserRole.DEVELOPER] | access_table.ROLES[UserRole.NODE_OWNER]
_LONGEST_DAYS = 3650

#: Each limit of a key, and the most that its column holds.
_MOST = {
    "requests_per_hour": 2**31 - 1,
    "requests_per_minute": 2**31 - 1,
    "tokens_per_minute": 2**31 - 1,
    "concurrency": 2**31 - 1,
    "budget_micro": 2**63 - 1,
}

_LOG_IN_HINT = "log in with the password"
_Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class KeyTerms:
    """What a key may be used for, by whom it is decided and how long."""

    kind: KeyKind
    limits: ApiKeyLimits
    #: In the form that is stored.
    bounds: KeyBounds
    #: None for never.
    expires_at: datetime | None


# --- people ----------------------------------------------------------------------------------------------------------


def is_admin(caller: Principal) -> bool:
    """Whether this credential carries an administrator's rights; most keys of administrators do not."""
    return Permission.EVERYTHING in access_table.permissions_of(caller.role, caller.scopes)


def subject_of(caller: Principal, user_id: UserId | None) -> UserId:
    """Whom a request is about: the caller, or for an administrator whoever is named."""
    if user_id is None or user_id == caller.user_id or is_admin(caller):
        return user_id or caller.user_id
    raise errors.NotAllowed("that is another user's", hint="leave userId out to mean yourself; only an administrator may name others")


def check_admin(caller: Principal) -> None:
    if not is_admin(caller):
        raise errors.NotAllowed(f"{caller.username} is no administrator", hint="ask an administrator of this mesh to do it")


def check_may_open_session(caller: Principal) -> None:
    """A session may do all that its user may, so a key that may less must not open one."""
    if caller.key_id is None:
        return
    if caller.key_limits != ApiKeyLimits():
        raise errors.NotAllowed("a key with a limit of its own opens no session", hint=_LOG_IN_HINT)
    if caller.models or caller.networks or caller.team_id is not None:
        raise errors.NotAllowed("a key that is bound to models, networks or an organisation opens no session", hint=_LOG_IN_HINT)
    if access_table.permissions_of(caller.role, caller.scopes) != access_table.ROLES[caller.role]:
        raise errors.NotAllowed("a key that may do less than its owner opens no session", hint=_LOG_IN_HINT)


# --- keys ------------------------------------------------------------------------------------------------------------


def most_scopes(kind: KeyKind, owner: UserRole) -> frozenset[Permission]:
    """All that a key of this kind can have of such an owner's permissions."""
    granted = access_table.ROLES[owner]
    if kind is KeyKind.ADMIN:
        return granted
    everyday = _ADMINS_EVERYDAY if Permission.EVERYTHING in granted else granted
    return everyday & _TEST_SCOPES if kind is KeyKind.TEST else everyday


def scopes_of_key(kind: KeyKind, owner: UserRole, stored: Iterable[str]) -> tuple[str, ...]:
    """What a key's principal carries: exactly what it may do now. Of what is stored, that which its owner has lost since, or this
    version does not know, grants nothing."""
    most, named = most_scopes(kind, owner), frozenset(stored)
    if not named:
        return tuple(sorted(most & _FORMER_TEST_SCOPES if kind is KeyKind.TEST else most))
    known = frozenset(scope for scope in Permission if scope in named)
    if kind is KeyKind.ADMIN and Permission.EVERYTHING in known:
        return tuple(sorted(most))
    return tuple(sorted(known if Permission.EVERYTHING in most else known & most))


def check_limits_of_new_key(caller: Principal, limits: ApiKeyLimits) -> None:
    """A limited key makes none: with several of them its limit would bind nobody. Raises BadRequest as well."""
    for name, most in _MOST.items():
        asked = _value(limits, name)
        if asked is not None and not 1 <= asked <= most:
            raise errors.BadRequest(_range(name, most), hint="leave it out to have what the tier allows")
    if caller.key_limits != ApiKeyLimits():
        raise errors.NotAllowed("a key with a limit of its own makes no keys", hint=_LOG_IN_HINT)


def terms_of_new_key(caller: Principal, owner: UserRole, request: GenerateApiKey, now: datetime) -> KeyTerms:
    """Raises BadRequest as well, which lists what there is to choose from."""
    check_limits_of_new_key(caller, request.limits)
    if request.kind is KeyKind.ADMIN and not (is_admin(caller) and owner is UserRole.ADMIN):
        raise errors.NotAllowed("only administrators make and have keys of the kind adm", hint="make one of the kind live")
    bounds = KeyBounds(
        scopes=_scopes_of_new_key(caller, request, owner),
        models=name_rules.models_of(request.bounds.models) or caller.models,
        networks=name_rules.networks_of(request.bounds.networks) or caller.networks,
    )
    terms = KeyTerms(request.kind, _limits_of_kind(request.kind, request.limits), bounds, _end_of_new_key(caller, request, now))
    _check_within(caller, terms)
    return terms


def check_may_rotate(caller: Principal, key: ApiKey, owner: UserRole) -> None:
    """Whoever rotates a key holds it afterwards: so a key rotates itself, and others only where it might have made them."""
    if caller.key_id is None or caller.key_id == key.id:
        return
    if caller.key_limits != ApiKeyLimits():
        raise errors.NotAllowed("a key with a limit of its own rotates no other key", hint=_LOG_IN_HINT)
    if lacking := _not_granted(caller, frozenset(Permission(scope) for scope in scopes_of_key(key.kind, owner, key.bounds.scopes))):
        raise errors.NotAllowed(f"{key.name!r} may do more than this key: {', '.join(lacking)}", hint=_LOG_IN_HINT)
    _check_within(caller, KeyTerms(key.kind, key.limits, key.bounds, key.expires_at))


def _scopes_of_new_key(caller: Principal, request: GenerateApiKey, owner: UserRole) -> tuple[str, ...]:
    """What is stored; empty for all that its owner may, now and later."""
    kind, asked = request.kind, request.bounds.scopes
    if asked and request.all_rights:
        raise errors.BadRequest("scopes: not together with all_rights", hint="name the scopes, or ask for all rights")
    if unknown := sorted(set(asked) - set(Permission)):
        raise errors.BadRequest(f"scopes: there is no {unknown[0][:50]!r}", hint=f"choose from {', '.join(Permission)}")
    wanted, most = frozenset(Permission(scope) for scope in asked), most_scopes(kind, owner)
    if Permission.EVERYTHING not in most and (lacking := sorted(wanted - most)):
        raise errors.NotAllowed(
            f"a key of the kind {kind} cannot have {', '.join(lacking)} here", hint=f"choose from {', '.join(sorted(most))}"
        )
    if lacking := _not_granted(caller, wanted):
        raise errors.NotAllowed(f"you cannot give what you have not: {', '.join(lacking)}", hint="leave these scopes out")
    if wanted:
        return tuple(sorted(wanted))
    has_all = kind is KeyKind.ADMIN or (request.all_rights and kind is KeyKind.LIVE)
    if has_all and (caller.scopes is None or is_admin(caller)):
        return ()
    # An administrator makes keys for people who may do what the administrator's own login need not.
    granted = most if is_admin(caller) else most & access_table.permissions_of(caller.role, caller.scopes)
    inherited = granted if has_all else granted & USUAL_SCOPES
    if not inherited:
        # Stored as an empty list it would mean everything.
        raise errors.NotAllowed(f"a key of the kind {kind} that this key makes could do nothing", hint=_LOG_IN_HINT)
    return tuple(sorted(inherited))


def _not_granted(caller: Principal, wanted: frozenset[Permission]) -> list[Permission]:
    granted = access_table.permissions_of(caller.role, caller.scopes)
    return [] if Permission.EVERYTHING in granted else sorted(wanted - granted)


def _limits_of_kind(kind: KeyKind, limits: ApiKeyLimits) -> ApiKeyLimits:
    if kind is not KeyKind.TEST:
        return limits
    asked = limits.requests_per_hour
    if asked is not None and asked > TEST_REQUESTS_PER_HOUR:
        raise errors.BadRequest(
            f"requests_per_hour: a key for tests has at most {TEST_REQUESTS_PER_HOUR}", hint="make one of the kind live for more"
        )
    return msgspec.structs.replace(limits, requests_per_hour=asked or TEST_REQUESTS_PER_HOUR)


def _end_of_new_key(caller: Principal, request: GenerateApiKey, now: datetime) -> datetime | None:
    usual = TEST_KEY_DAYS if request.kind is KeyKind.TEST else KEY_DAYS
    days = usual if request.days is None else request.days
    if not 0 <= days <= _LONGEST_DAYS:
        raise errors.BadRequest(f"days: from 1 to {_LONGEST_DAYS}", hint="0 for a key that never expires")
    if request.kind is KeyKind.TEST and not 1 <= days <= TEST_KEY_DAYS:
        raise errors.BadRequest(
            f"days: a key for tests is good for 1 to {TEST_KEY_DAYS} days", hint="make one of the kind live for a longer time"
        )
    ends_at = now + timedelta(days=days) if days else None
    makers_end = _time(caller.expires_at)
    # Where nobody says how long, a key that ends soon makes one that ends with it.
    return makers_end if request.days is None and makers_end is not None and ends_at is not None and makers_end < ends_at else ends_at


def _check_within(caller: Principal, terms: KeyTerms) -> None:
    """Raises NotAllowed where the models, the networks or the end of a key lie beyond those of the credential."""
    beyond = sorted(set(terms.bounds.models) - set(caller.models))
    if caller.models and (beyond or not terms.bounds.models):
        what = ", ".join(beyond) or "every model"
        raise errors.NotAllowed(f"models: beyond those of this key: {what}", hint=f"choose from {', '.join(caller.models)}")
    if caller.networks:
        mine = [ip_network(network) for network in caller.networks]
        theirs = [ip_network(network) for network in terms.bounds.networks]
        if not theirs or not all(any(_lies_in(network, outer) for outer in mine) for network in theirs):
            raise errors.NotAllowed("networks: beyond those of this key", hint=f"choose within {', '.join(caller.networks)}")
    makers_end = _time(caller.expires_at)
    if makers_end is not None and (terms.expires_at is None or terms.expires_at > makers_end):
        raise errors.NotAllowed(f"days: longer than this key itself, which ends at {makers_end:%Y-%m-%d %H:%M} UTC", hint=_LOG_IN_HINT)


def _lies_in(inner: _Network, outer: _Network) -> bool:
    if isinstance(inner, IPv4Network):
        return isinstance(outer, IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, IPv6Network) and inner.subnet_of(outer)


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _value(limits: ApiKeyLimits, name: str) -> int | None:
    found: int | None = getattr(limits, name)
    return found


def _range(name: str, most: int) -> str:
    if name == "budget_micro":
        return f"budget: from {amounts.written(1)} to {amounts.written(most)} credits"
    return f"{name}: a whole number from 1 to {most}"
