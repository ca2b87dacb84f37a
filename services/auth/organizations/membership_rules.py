"""Rules of organizations and invitations. Pure; the caller brings rows and the time.

Non-members must not learn that an organization exists.
"""

from dataclasses import dataclass
from datetime import datetime

from services.auth import api_keys, name_rules, roles
from shared import errors
from shared.api.auth import Principal
from shared.api.organizations import TeamRole
from shared.mail import letters
from shared.types import TenantId, UserId

#: For administrators.
MAX_OF_ADMINISTRATORS = 1_000
#: Per organization: each is a mail to someone who didn't ask for it.
MAX_INVITATIONS_A_DAY = 100
INVITATION_DAYS = 7
NOT_A_MEMBER = "you are not a member of an organization with this id"


@dataclass(frozen=True, slots=True)
class KnownInvitation:
    """An invitation that has not been accepted."""

    accepted_at: datetime | None
    withdrawn_at: datetime | None
    expires_at: datetime


def unknown() -> errors.NotFound:
    return errors.NotFound(NOT_A_MEMBER, hint="`listOrganisations` shows yours")


def check_in_reach(caller: Principal, organisation: TenantId) -> None:
    """A key of one organization cannot see another, even if its user belongs to both. Raises NotFound."""
    if caller.key_id is not None and caller.team_id is not None and caller.team_id != organisation:
        raise unknown()


def check_owner(caller: Principal, role: TeamRole | None) -> None:
    """Administrators count as owners, so that an organization without owners is not lost. Raises NotAllowed."""
    if role is not TeamRole.OWNER and not roles.is_admin(caller):
        raise errors.NotAllowed("only an owner of the organization can do this", hint="ask one of its owners")


def check_removal(caller: Principal, role: TeamRole | None, member: UserId) -> None:
    """Members may leave; owners may remove others. Raises NotAllowed."""
    if member != caller.user_id:
        check_owner(caller, role)


def check_may_join(caller: Principal) -> None:
    """Raises NotAllowed."""
    if caller.key_id is not None and caller.team_id is not None:
        raise errors.NotAllowed("a key of an organization cannot join another one", hint="log in, or use a personal key")


def check_name(name: str) -> str:
    """Strip surrounding spaces. Raises BadRequest."""
    if not name_rules.may_be_key_name(name):
        raise errors.BadRequest.of("name", "1 to 100 printable characters", hint="choose a name that its members recognize")
    return name.strip()


def check_invited(email: str) -> str:
    """Raises BadRequest."""
    email = email.strip()
    if not letters.may_be_email(email):
        raise errors.BadRequest.of("email", "an address such as you@example.com, at most 100 characters", hint="check the address")
    return email


def no_owner_left() -> errors.NotAllowed:
    return errors.NotAllowed("an organization needs at least one owner", hint="make another member an owner first")


def guesses_of(user_id: UserId) -> str:
    """Return what attempts at codes are counted under: separate from passwords, so that an old link doesn't lock its user's login."""
    return f"invitations read by {user_id}"


def no_offer() -> errors.NotFound:
    """The same error for an unknown, foreign, used, withdrawn or expired code, so that guessing reveals nothing."""
    return errors.NotFound(
        "no open invitation for you has this code",
        hint="copy the whole code, sign in with the invited address, or ask for a new invitation",
    )


def too_many_guesses(retry_after_seconds: float | None) -> errors.Limited:
    return errors.Limited(
        "too many invitation codes were tried",
        hint="wait a while; you can also join with the code from the mail without viewing the invitation",
        retry_after_seconds=retry_after_seconds,
    )


def why_not_accepted(invitation: KnownInvitation | None, now: datetime) -> errors.CallerError:
    again = "ask for a new invitation"
    if invitation is None:
        return errors.NotFound("there is no such invitation", hint="copy the whole code from the mail")
    if invitation.accepted_at is not None:
        return errors.NotFound("this invitation was already used", hint=again)
    if invitation.withdrawn_at is not None:
        return errors.NotFound("this invitation was revoked", hint=again)
    if invitation.expires_at <= now:
        return errors.NotFound(f"this invitation expired {api_keys.ago((now - invitation.expires_at).total_seconds())}", hint=again)
    return errors.NotAllowed("this invitation is for another email address", hint="log in with the account that has the invited address")
