"""What a recognised caller may do. Pure; raises NotAllowed.

A node's role admits it to a method; whose data it may touch comes from the user's own credential in the call, and never
from an argument alone.
"""

from shared import amounts, errors
from shared.api.auth import KeyLimits, Principal
from shared.types import UserId, UserRole

#: Each limit of a key, and the most that its column holds.
_MOST = {
    "requests_per_hour": 2**31 - 1,
    "requests_per_minute": 2**31 - 1,
    "tokens_per_minute": 2**31 - 1,
    "concurrency": 2**31 - 1,
    "budget_micro": 2**63 - 1,
}


def subject_of(caller: Principal, user_id: UserId | None) -> UserId:
    """Whom a request is about: the caller, or for an administrator whoever is named."""
    if user_id is None or user_id == caller.user_id or caller.role is UserRole.ADMIN:
        return user_id or caller.user_id
    raise errors.NotAllowed("that is another user's", hint="leave userId out to mean yourself; only an administrator may name others")


def check_admin(caller: Principal) -> None:
    if caller.role is not UserRole.ADMIN:
        raise errors.NotAllowed(f"{caller.username} is no administrator", hint="ask an administrator of this mesh to do it")


def check_limits_of_new_key(caller: Principal, limits: KeyLimits) -> None:
    """A limited key makes none: with several of them its limit would bind nobody. Raises BadRequest as well."""
    for name, most in _MOST.items():
        asked = _value(limits, name)
        if asked is not None and not 1 <= asked <= most:
            raise errors.BadRequest(_range(name, most), hint="leave it out to have what the tier allows")
    if caller.key_limits != KeyLimits():
        raise errors.NotAllowed("a key with a limit of its own makes no keys", hint="log in with the password")


def check_may_open_session(caller: Principal) -> None:
    """A session may do all that its user may, so a limited key must not open one."""
    if caller.key_limits != KeyLimits():
        raise errors.NotAllowed("a key with a limit of its own opens no session", hint="log in with the password")


def _value(limits: KeyLimits, name: str) -> int | None:
    found: int | None = getattr(limits, name)
    return found


def _range(name: str, most: int) -> str:
    if name == "budget_micro":
        return f"budget: from {amounts.written(1)} to {amounts.written(most)} credits"
    return f"{name}: a whole number from 1 to {most}"
