"""What a recognised caller may do. Pure; raises NotAllowed.

A node's role admits it to a method; whose data it may touch comes from the user's own credential in the call, and never
from an argument alone.
"""

from shared import errors
from shared.api.auth import Principal
from shared.types import UserId, UserRole


def subject_of(caller: Principal, user_id: UserId | None) -> UserId:
    """Whom a request is about: the caller, or for an administrator whoever is named."""
    if user_id is None or user_id == caller.user_id or caller.role is UserRole.ADMIN:
        return user_id or caller.user_id
    raise errors.NotAllowed("that is another user's", hint="leave userId out to mean yourself; only an administrator may name others")


def check_admin(caller: Principal) -> None:
    if caller.role is not UserRole.ADMIN:
        raise errors.NotAllowed(f"{caller.username} is no administrator", hint="ask an administrator of this mesh to do it")


def check_limit_of_new_key(caller: Principal, requests_per_hour: int | None) -> None:
    """A key that is limited cannot make one that is less so; otherwise its limit would bind nobody."""
    if requests_per_hour is not None and not 1 <= requests_per_hour <= 2**31 - 1:
        raise errors.BadRequest("requestsPerHour: a whole number from 1 on", hint="leave it out to have what the tier allows")
    ceiling = caller.key_requests_per_hour
    if ceiling is not None and (requests_per_hour is None or requests_per_hour > ceiling):
        raise errors.NotAllowed(
            f"the key of this call is limited to {ceiling} requests an hour, and so is every key it makes",
            hint="log in with the password to make a key with a higher limit",
        )


def check_may_open_session(caller: Principal) -> None:
    """A session may do all that its user may, so a limited key must not open one."""
    if caller.key_requests_per_hour is not None:
        raise errors.NotAllowed("a key with its own limit opens no session", hint="log in with the password")
