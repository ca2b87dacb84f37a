"""What somebody may do in an organisation, and when an invitation is good. Pure; the caller brings rows and the time.

Who is no member does not hear that there is such an organisation.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime

from services.auth import api_keys, name_rules, roles
from shared import errors
from shared.api.auth import Principal
from shared.api.organizations import TeamRole
from shared.mail import email_address
from shared.types import TenantId, UserId

#: That an administrator founds; more are made by a script.
MOST_OF_ADMINISTRATORS = 1_000
#: Of one organisation in a day: each is a mail to somebody who has not asked for it.
MOST_INVITATIONS_A_DAY = 100
INVITATION_DAYS = 7


@dataclass(frozen=True, slots=True)
class KnownInvitation:
    """One that was not accepted just now."""

    email: str
    accepted_at: datetime | None
    withdrawn_at: datetime | None
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class RequestingMember:
    """Who asks about an organisation."""

    user_id: UserId
    #: Also about those that they do not belong to.
    sees_all: bool


def asker(caller: Principal) -> RequestingMember:
    return RequestingMember(caller.user_id, roles.is_admin(caller))


def unknown() -> errors.NotFound:
    return errors.NotFound("you belong to no organisation with this id", hint="`listOrganisations` shows yours")


def check_in_reach(caller: Principal, organisation: TenantId) -> None:
    """A key of one organisation knows no other, even where its user belongs to both. Raises NotFound."""
    if caller.key_id is not None and caller.team_id is not None and caller.team_id != organisation:
        raise unknown()


def check_owner(caller: Principal, role: TeamRole | None) -> None:
    """Administrators do what owners do, so that an organisation whose owners are gone is not lost. Raises NotAllowed."""
    if role is not TeamRole.OWNER and not roles.is_admin(caller):
        raise errors.NotAllowed("only an owner of the organisation does this", hint="ask one of its owners")


def check_removal(caller: Principal, role: TeamRole | None, member: UserId) -> None:
    """Everybody may leave; owners remove others. Raises NotAllowed."""
    if member != caller.user_id:
        check_owner(caller, role)


def check_may_join(caller: Principal) -> None:
    """Raises NotAllowed."""
    if caller.key_id is not None and caller.team_id is not None:
        raise errors.NotAllowed("a key of an organisation joins no other", hint="log in, or use a key of your own")


def check_name(name: str) -> str:
    """Without what stands around it. Raises BadRequest."""
    if not name_rules.may_be_key_name(name):
        raise errors.BadRequest("name: 1 to 100 printable characters", hint="choose a name that its members recognise")
    return name.strip()


def check_invited(email: str) -> str:
    """Raises BadRequest."""
    email = email.strip()
    if not email_address.may_be_email(email):
        raise errors.BadRequest("email: an address such as you@example.com, at most 100 characters", hint="check the address")
    return email


def no_owner_left() -> errors.NotAllowed:
    return errors.NotAllowed("an organisation keeps at least one owner", hint="make another member an owner first")


def digest(token: str) -> str:
    """What the database knows of an invitation's token: 256 random bits need no slow hash."""
    return hashlib.sha256(token.encode()).hexdigest()


def guesses_of(user_id: UserId) -> str:
    """What guesses of codes are counted under: apart from those of passwords, so that nobody locks their own login with an old link."""
    return f"invitations read by {user_id}"


def no_offer() -> errors.NotFound:
    """Whether the code is nobody's, somebody else's, used, withdrawn or too old: who guesses shall not hear which."""
    return errors.NotFound(
        "no open invitation for you has this code",
        hint="copy the whole code, sign in with the invited address, or ask for a new invitation",
    )


def too_many_guesses(retry_after_seconds: float | None) -> errors.Limited:
    return errors.Limited(
        "too many codes of invitations were tried",
        hint="wait a while; with the code of the mail you can also join without reading it first",
        retry_after_seconds=retry_after_seconds,
    )


def why_not_accepted(invitation: KnownInvitation | None, now: datetime) -> errors.CallerError:
    again = "ask for a new invitation"
    if invitation is None:
        return errors.NotFound("there is no such invitation", hint="copy the whole code from the mail")
    if invitation.accepted_at is not None:
        return errors.NotFound("this invitation was used", hint=again)
    if invitation.withdrawn_at is not None:
        return errors.NotFound("this invitation was withdrawn", hint=again)
    if invitation.expires_at <= now:
        return errors.NotFound(f"this invitation expired {api_keys.ago((now - invitation.expires_at).total_seconds())}", hint=again)
    return errors.NotAllowed("this invitation is for another e-mail address", hint="log in with the account that has the invited address")
