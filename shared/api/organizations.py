"""auth: organizations, their members, and invitations to them and to the mesh itself. Personal organizations are not listed here."""

from enum import StrEnum
from typing import Annotated

import msgspec

from shared.api.auth import PEOPLE, Budget, ClientFacts, Search, User
from shared.api.method import Body, Method, Nothing
from shared.types import Moment, PlanName, TenantId, UserId, UserRole

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]


class TeamRole(StrEnum):
    #: Manages members, invitations and the name. The last owner cannot leave.
    OWNER = "owner"
    #: Manages the organization's keys and sees its usage.
    MEMBER = "member"


class Organization(Body, frozen=True, omit_defaults=False):
    id: TenantId
    name: str
    tier: PlanName
    created_at: Moment
    members: int
    #: The caller's role; None for an administrator who is not a member.
    role: TeamRole | None = None
    #: Shares its founder's limits and tier and has no included credits, until an administrator gives it a tier.
    shares_limits: bool = False
    budget: Budget | None = None


class Organizations(Body, frozen=True):
    organisations: tuple[Organization, ...]
    #: There are older ones.
    more: bool = False


class TeamMember(Body, frozen=True):
    user_id: UserId
    username: str
    email: str
    role: TeamRole
    joined_at: Moment


class Invitation(Body, frozen=True, omit_defaults=False):
    id: str
    email: str
    role: TeamRole
    invited_by: str
    created_at: Moment
    expires_at: Moment


class OrganizationDetails(Body, frozen=True):
    organisation: Organization
    members: tuple[TeamMember, ...]
    #: Open invitations; only shown to owners.
    invitations: tuple[Invitation, ...]
    #: False: it is done, but the recovery log on disk lacks it for now.
    logged: bool = True


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
    """The only message that contains the token, which is also sent by email."""

    invitation: Invitation
    token: str


class WithdrawInvitation(Body, frozen=True):
    organisation: TenantId
    id: str


class AcceptInvitation(Body, frozen=True):
    """The caller's email address must be the invited one."""

    token: Annotated[str, msgspec.Meta(max_length=200)]


class ReadInvitation(Body, frozen=True):
    """Does not use the token up. A wrong token counts as a guess of the caller."""

    token: Annotated[str, msgspec.Meta(max_length=200)]


class InvitationOffer(Body, frozen=True):
    """What an open invitation offers; only shown to the invited user."""

    organisation_name: str
    role: TeamRole
    invited_by: str
    expires_at: Moment


class SetTeamRole(Body, frozen=True):
    organisation: TenantId
    user_id: UserId
    role: TeamRole


class RemoveTeamMember(Body, frozen=True):
    """Remove a member and their keys for this organization. Owners may remove members; members may leave."""

    organisation: TenantId
    user_id: UserId


class ListAllOrganizations(Body, frozen=True):
    """Newest first."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    #: Part of the name, ignoring case, or a whole id; empty for all.
    search: Search = ""
    #: The last organization of the previous page; None for the first page.
    after: TenantId | None = None


class SetTeamTier(Body, frozen=True):
    organisation: TenantId
    tier: PlanName


class ColleagueInvitation(Body, frozen=True, omit_defaults=False):
    id: str
    email: str
    role: UserRole
    invited_by: str
    created_at: Moment
    expires_at: Moment
    #: The organization that the new user joins as a member; empty for none.
    organisation_name: str = ""

    @property
    def offer(self) -> str:
        """Return what the person becomes, with its article: "a developer, and a member of Acme"."""
        role = {UserRole.ADMIN: "an administrator", UserRole.NODE_OWNER: "a node owner"}.get(self.role, f"a {self.role.value}")
        return f"{role}, and a member of {self.organisation_name}" if self.organisation_name else role


class InviteColleague(Body, frozen=True):
    email: Annotated[str, msgspec.Meta(max_length=100)]
    role: UserRole = UserRole.USER
    #: The name or the id of an organization that they also join, as a member; empty for none.
    organisation: Search = ""


class InvitedColleague(Body, frozen=True, omit_defaults=False):
    """The only message that contains the code, which is also sent by email."""

    invitation: ColleagueInvitation
    token: str
    #: Empty if PUBLIC_URL is not set.
    link: str
    #: False without a mail server: pass the link on yourself.
    is_mailed: bool


class ListColleagueInvitations(Body, frozen=True):
    pass


class ColleagueInvitations(Body, frozen=True):
    """The open ones, newest first."""

    invitations: tuple[ColleagueInvitation, ...]


class WithdrawColleagueInvitation(Body, frozen=True):
    #: The id, or a prefix that is unique among the open invitations.
    id: Annotated[str, msgspec.Meta(min_length=4, max_length=100)]


class ReadColleagueInvitation(Body, frozen=True):
    """Anyone who has the code may read what it offers. Does not use it up."""

    token: Annotated[str, msgspec.Meta(max_length=200)]
    #: The client as web sees it, for limits per address.
    client: ClientFacts = ClientFacts()


class AcceptColleagueInvitation(Body, frozen=True):
    """For users with the invited address. New users accept by registering with the code."""

    token: Annotated[str, msgspec.Meta(max_length=200)]


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
invite_colleague = Method("auth.inviteColleague", InviteColleague, InvitedColleague, callers=PEOPLE)
list_colleague_invitations = Method("auth.listColleagueInvitations", ListColleagueInvitations, ColleagueInvitations, callers=PEOPLE)
withdraw_colleague_invitation = Method("auth.withdrawColleagueInvitation", WithdrawColleagueInvitation, Nothing, callers=PEOPLE)
read_colleague_invitation = Method("auth.readColleagueInvitation", ReadColleagueInvitation, ColleagueInvitation, callers=PEOPLE)
accept_colleague_invitation = Method("auth.acceptColleagueInvitation", AcceptColleagueInvitation, User, callers=PEOPLE)
