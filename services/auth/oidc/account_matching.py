"""Which account somebody gets whom the provider vouches for. Pure; `account_provisioning` does what is decided here.

An account belongs to whoever holds its password. That the provider vouches for its e-mail address opens it to nobody: its owner
logs in and links the two, and from then on the provider is enough.
"""

from dataclasses import dataclass

from services.auth import name_rules
from services.auth.oidc.claim_mapping import Identity, RoleTable
from shared import errors
from shared.types import UserId, UserRole


@dataclass(frozen=True, slots=True)
class FoundAccounts:
    """What there is already."""

    #: Whose (issuer, subject) it is.
    known: UserId | None = None
    #: Who has the same e-mail address.
    same_email: UserId | None = None


@dataclass(frozen=True, slots=True)
class LogInToAccount:
    user_id: UserId
    #: None leaves it as it is.
    role: UserRole | None


@dataclass(frozen=True, slots=True)
class LinkAccount:
    """Let the logged-in user come by the provider from now on, too."""

    user_id: UserId
    role: UserRole | None


@dataclass(frozen=True, slots=True)
class CreateAccount:
    email: str
    role: UserRole


def decide(
    identity: Identity, link_to: UserId | None, found: FoundAccounts, table: RoleTable
) -> LogInToAccount | LinkAccount | CreateAccount:
    """Raises AlreadyExists where an account is in the way, and BadRequest where the provider says too little for a new one."""
    role = table.role_of(identity.groups)
    if found.known is not None:
        if link_to not in (None, found.known):
            raise errors.AlreadyExists(
                "this login at the provider belongs to another account here", hint="log in with it, and remove the link in the settings"
            )
        return LogInToAccount(found.known, role)
    if link_to is not None:
        return LinkAccount(link_to, role)
    if found.same_email is not None:
        # Somebody's, perhaps the same person's.
        raise errors.AlreadyExists(
            "there is an account with your e-mail address", hint="log in with its password, then link the provider in the settings"
        )
    return CreateAccount(_email_of(identity), role or UserRole.USER)


def _email_of(identity: Identity) -> str:
    if identity.email is None:
        raise errors.BadRequest(
            "the login provider does not say your e-mail address", hint="an administrator: add the scope email to OIDC_SCOPES"
        )
    name_rules.check_email(identity.email)
    return identity.email
