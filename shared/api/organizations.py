"""auth: organisations, who belongs to them, and invitations. Every user has one of their own besides, which is not listed here."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec

from shared.api.auth import PEOPLE, Search
from shared.api.method import Body, Method, Nothing
from shared.types import TenantId, Tier, UserId

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]


class TeamRole(StrEnum):
    """What a member may do in an organisation."""

    #: Members, invitations, its name; the last owner cannot leave.
    OWNER = "owner"
    #: Keys of the organisation, and what it used.
    MEMBER = "member"


class Organization(Body, frozen=True, omit_defaults=False):
    id: TenantId
    name: str
    tier: Tier
    created_at: datetime
    members: int
    #: Of who asks; None for an administrator who is no member.
    role: TeamRole | None = None
    #: It shares its founder's limits and tier, and has no included credits, until an administrator gives it a tier.
    shares_limits: bool = False


class Organizations(Body, frozen=True):
    organisations: tuple[Organization, ...]
    #: There are older ones.
    more: bool = False


class TeamMember(Body, frozen=True):
    user_id: UserId
    username: str
    email: str
    role: TeamRole
    joined_at: datetime


class Invitation(Body, frozen=True, omit_defaults=False):
    id: str
    email: str
    role: TeamRole
    invited_by: str
    created_at: datetime
    expires_at: datetime


class OrganizationDetails(Body, frozen=True):
    organisation: Organization
    members: tuple[TeamMember, ...]
    #: Those that are open; only for owners.
    invitations: tuple[Invitation, ...]


class CreateOrganization(Body, frozen=True):
    name: Name


class ListOrganizations(Body, frozen=True):
    pass


class GetOrganization(Body, frozen=True):
    id: TenantId


class RenameOrganization(Body, frozen=True):
    id: TenantId
    name: Name


class InviteMember(Body, frozen=True):
    organisation: TenantId
    email: Annotated[str, msgspec.Meta(max_length=100)]
    role: TeamRole = TeamRole.MEMBER


class NewInvitation(Body, frozen=True):
    """The only message that carries the token; a mail with it is sent, too."""

    invitation: Invitation
    token: str


class WithdrawInvitation(Body, frozen=True):
    organisation: TenantId
    id: str


class AcceptInvitation(Body, frozen=True):
    """By whoever is logged in; the invited address must be theirs."""

    token: Annotated[str, msgspec.Meta(max_length=200)]


class ReadInvitation(Body, frozen=True):
    """Uses nothing up. A wrong code counts as a guess of whoever is logged in."""

    token: Annotated[str, msgspec.Meta(max_length=200)]


class InvitationOffer(Body, frozen=True):
    """To what an open invitation invites; said only to whom it is for."""

    organisation_name: str
    role: TeamRole
    invited_by: str
    expires_at: datetime


class SetTeamRole(Body, frozen=True):
    organisation: TenantId
    user_id: UserId
    role: TeamRole


class RemoveTeamMember(Body, frozen=True):
    """Its keys for this organisation end with it. By an owner, or by the member, who leaves."""

    organisation: TenantId
    user_id: UserId


class ListAllOrganizations(Body, frozen=True):
    """The newest first."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    #: A part of the name, in any case of its letters, or a whole id; empty finds all.
    search: Search = ""
    #: The last one of the page before; None for the first page.
    after: TenantId | None = None


class SetTeamTier(Body, frozen=True):
    organisation: TenantId
    tier: Tier


create_organisation = Method("auth.createOrganisation", CreateOrganization, Organization, callers=PEOPLE)
list_organisations = Method("auth.listOrganisations", ListOrganizations, Organizations, callers=PEOPLE)
get_organisation = Method("auth.getOrganisation", GetOrganization, OrganizationDetails, callers=PEOPLE)
rename_organisation = Method("auth.renameOrganisation", RenameOrganization, Organization, callers=PEOPLE)
invite_member = Method("auth.inviteMember", InviteMember, NewInvitation, callers=PEOPLE)
withdraw_invitation = Method("auth.withdrawInvitation", WithdrawInvitation, Nothing, callers=PEOPLE)
read_invitation = Method("auth.readInvitation", ReadInvitation, InvitationOffer, callers=PEOPLE)
accept_invitation = Method("auth.acceptInvitation", AcceptInvitation, Organization, callers=PEOPLE)
set_team_role = Method("auth.setOrganisationRole", SetTeamRole, OrganizationDetails, callers=PEOPLE)
remove_team_member = Method("auth.removeOrganisationMember", RemoveTeamMember, Nothing, callers=PEOPLE)
list_all_organisations = Method("auth.listAllOrganisations", ListAllOrganizations, Organizations, callers=PEOPLE)
set_team_tier = Method("auth.setOrganisationTier", SetTeamTier, Organization, callers=PEOPLE)
