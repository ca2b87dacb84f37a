"""Gives whoever the provider vouches for their account: finds it, links it or makes it, and keeps the role up to date."""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol, assert_never

from services.auth.oidc import account_matching, claim_mapping
from services.auth.oidc.account_matching import CreateAccount, FoundAccounts, LinkAccount, LogInToAccount
from services.auth.oidc.claim_mapping import Identity, RoleTable
from shared import errors
from shared.types import UserId, UserRole

#: Each time somebody else was faster: a second browser of the same person, or one of the same name.
_MOST_TRIES = 3


class NameTaken(Enum):
    """Whose place is taken already, so that no account was made."""

    USERNAME = "username"
    EMAIL = "email"
    IDENTITY = "identity"


class Accounts(Protocol):
    """auth's tables, as far as logins with a provider need them. Every method may raise Unavailable."""

    async def find(self, identity: Identity) -> FoundAccounts:
        """Whose identity it is, and who has its e-mail address."""

    async def add(self, username: str, email: str, role: UserRole, identity: Identity) -> UserId | NameTaken:
        """A new user without a password, and the identity with it: both or neither."""

    async def link(self, user_id: UserId, identity: Identity) -> bool:
        """False if the identity is somebody's already, perhaps this user's."""

    async def note_login(self, user_id: UserId, identity: Identity, role: UserRole | None) -> None:
        """This identity was used now. ``role``, where there is one, becomes the user's; but the last administrator stays one."""


@dataclass(frozen=True, slots=True)
class ProvisionedAccount:
    user_id: UserId
    #: The account was made just now.
    is_new: bool = False


async def admit(identity: Identity, link_to: UserId | None, store: Accounts, table: RoleTable) -> ProvisionedAccount:
    """Whose account it is from now on; whether that is open is the caller's to look at.

    Raises AlreadyExists where an account is in the way, and BadRequest where the provider says too little for a new one.
    """
    for _ in range(_MOST_TRIES):
        match account_matching.decide(identity, link_to, await store.find(identity), table):
            case LogInToAccount(user_id, role):
                await store.note_login(user_id, identity, role)
                return ProvisionedAccount(user_id)
            case LinkAccount(user_id, role):
                if await store.link(user_id, identity):
                    await store.note_login(user_id, identity, role)
                    return ProvisionedAccount(user_id)
            case CreateAccount() as create:
                if (made := await _add(create, identity, store)) is not None:
                    return ProvisionedAccount(made, is_new=True)
            case impossible:
                assert_never(impossible)
    raise errors.Unavailable("this login at the provider is being used elsewhere at the same time", hint="start the login again")


async def _add(create: CreateAccount, identity: Identity, store: Accounts) -> UserId | None:
    """None if somebody came in meanwhile who is the same person, or has the same address: who they are is to be seen anew."""
    for username in claim_mapping.suggest_usernames(identity):
        made = await store.add(username, create.email, create.role, identity)
        if made in (NameTaken.EMAIL, NameTaken.IDENTITY):
            return None
        if not isinstance(made, NameTaken):
            return made
    raise errors.AlreadyExists("every user name like yours is taken", hint="an administrator can register you under another one")
