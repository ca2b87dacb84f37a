"""Gives whoever the provider vouches for their account: finds it, links it or makes it, and keeps the role up to date."""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol, assert_never

from services.auth.oidc import accounts, mapping
from services.auth.oidc.accounts import Create, Found, Link, LogIn
from services.auth.oidc.mapping import Identity, RoleTable
from shared import errors
from shared.types import UserId, UserRole

#: Each time somebody else was faster: a second browser of the same person, or one of the same name.
_MOST_TRIES = 3


class Taken(Enum):
    """Whose place is taken already, so that no account was made."""

    USERNAME = "username"
    EMAIL = "email"
    IDENTITY = "identity"


class Accounts(Protocol):
    """auth's tables, as far as logins with a provider need them. Every method may raise Unavailable."""

    async def find(self, identity: Identity) -> Found:
        """Whose identity it is, and who has its e-mail address."""

    async def add(self, username: str, email: str, role: UserRole, identity: Identity) -> UserId | Taken:
        """A new user without a password, and the identity with it: both or neither."""

    async def link(self, user_id: UserId, identity: Identity) -> bool:
        """False if the identity is somebody's already, perhaps this user's."""

    async def note_login(self, user_id: UserId, identity: Identity, role: UserRole | None) -> None:
        """This identity was used now. ``role``, where there is one, becomes the user's; but the last administrator stays one."""


@dataclass(frozen=True, slots=True)
class Admitted:
    user_id: UserId
    #: The account was made just now.
    is_new: bool = False


async def admit(identity: Identity, link_to: UserId | None, store: Accounts, table: RoleTable) -> Admitted:
    """Whose account it is from now on; whether that is open is the caller's to look at.

    Raises AlreadyExists where an account is in the way, and BadRequest where the provider says too little for a new one.
    """
    for _ in range(_MOST_TRIES):
        match accounts.decide(identity, link_to, await store.find(identity), table):
            case LogIn(user_id, role):
                await store.note_login(user_id, identity, role)
                return Admitted(user_id)
            case Link(user_id, role):
                if await store.link(user_id, identity):
                    await store.note_login(user_id, identity, role)
                    return Admitted(user_id)
            case Create() as create:
                if (made := await _add(create, identity, store)) is not None:
                    return Admitted(made, is_new=True)
            case impossible:
                assert_never(impossible)
    raise errors.Unavailable("this login at the provider is being used elsewhere at the same time", hint="start the login again")


async def _add(create: Create, identity: Identity, store: Accounts) -> UserId | None:
    """None if somebody came in meanwhile who is the same person, or has the same address: who they are is to be seen anew."""
    for username in mapping.suggest_usernames(identity):
        made = await store.add(username, create.email, create.role, identity)
        if made in (Taken.EMAIL, Taken.IDENTITY):
            return None
        if not isinstance(made, Taken):
            return made
    raise errors.AlreadyExists("every user name like yours is taken", hint="an administrator can register you under another one")
