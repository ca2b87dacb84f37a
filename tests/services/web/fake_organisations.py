"""The fake mesh, organization part of auth."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import msgspec

from shared import errors
from shared.api import auth
from shared.api import organizations as api
from shared.api.method import Nothing
from shared.api.organizations import TeamRole
from shared.types import Credential, TenantId, Tier

NOW = datetime(2026, 11, 20, 14, 5, tzinfo=UTC)


class FakeOrganisations:
    """Handlers, mixed into ``FakeAccounts``. A test reads and writes the attributes."""

    sessions: dict[str, auth.User]

    def __init__(self) -> None:
        super().__init__()
        self.teams: dict[TenantId, api.OrganizationDetails] = {}
        #: Tokens of open invitations.
        self.invitations: dict[str, TenantId] = {}
        self.offered = TeamRole.MEMBER
        #: Session token -> the organization it acts for.
        self.acting: dict[str, TenantId] = {}

    def add_team(self, name: str, *members: auth.User, tier: Tier = Tier.PRO) -> TenantId:
        """Add an organization; its first member is the owner."""
        id_ = TenantId(uuid4())
        rows = tuple(
            api.TeamMember(user.id, user.username, user.email, TeamRole.MEMBER if place else TeamRole.OWNER, NOW)
            for place, user in enumerate(members)
        )
        self.teams[id_] = api.OrganizationDetails(api.Organization(id_, name, tier, NOW, len(members)), rows, ())
        return id_

    def _list_organisations(self, _: api.ListOrganizations, credential: Credential | None) -> api.Organizations:
        return api.Organizations(tuple(page.organisation for page in self._teams_of(self._user(credential))))

    def _create_organisation(self, request: api.CreateOrganization, credential: Credential | None) -> api.Organization:
        if not request.name.isprintable() or not request.name:
            raise errors.BadRequest("name: 1 to 100 printable characters", hint="choose a name that its members recognize")
        user = self._user(credential)
        team = self.add_team(request.name, user, tier=user.tier)
        page = self.teams[team]
        self.teams[team] = msgspec.structs.replace(page, organisation=msgspec.structs.replace(page.organisation, shares_limits=True))
        return self._seen_by(user, self.teams[team]).organisation

    def _get_organisation(self, request: api.GetOrganization, credential: Credential | None) -> api.OrganizationDetails:
        user = self._user(credential)
        for page in self._teams_of(user):
            if page.organisation.id == request.id:
                is_owner = page.organisation.role is TeamRole.OWNER
                return page if is_owner else msgspec.structs.replace(page, invitations=())
        raise errors.NotFound("you are not a member of an organization with this id", hint="`listOrganisations` shows yours")

    def _rename_organisation(self, request: api.RenameOrganization, credential: Credential | None) -> api.Organization:
        page = self._owned(request.id, credential)
        renamed = msgspec.structs.replace(page.organisation, name=request.name)
        self.teams[request.id] = msgspec.structs.replace(page, organisation=renamed)
        return self._seen_by(self._user(credential), self.teams[request.id]).organisation

    def _invite_member(self, request: api.InviteMember, credential: Credential | None) -> api.NewInvitation:
        self._check_fresh("auth.inviteMember")
        page = self._owned(request.organisation, credential)
        if "@" not in request.email:
            raise errors.BadRequest("email: an address such as you@example.com", hint="check the address")
        made = api.Invitation(uuid4().hex, request.email, request.role, self._user(credential).username, NOW, NOW + timedelta(days=7))
        self.teams[request.organisation] = msgspec.structs.replace(page, invitations=(*page.invitations, made))
        self.invitations["invitation-token"] = request.organisation
        return api.NewInvitation(made, "invitation-token")

    def _withdraw_invitation(self, request: api.WithdrawInvitation, credential: Credential | None) -> Nothing:
        page = self._owned(request.organisation, credential)
        left = tuple(each for each in page.invitations if each.id != request.id)
        if len(left) == len(page.invitations):
            raise errors.NotFound("there is no open invitation with this id", hint="`getOrganisation` lists them")
        self.teams[request.organisation] = msgspec.structs.replace(page, invitations=left)
        return Nothing()

    def _read_invitation(self, request: api.ReadInvitation, credential: Credential | None) -> api.InvitationOffer:
        """Any signed-in user may call this; auth itself knows who is invited."""
        self._user(credential)
        team = self.invitations.get(request.token)
        if team is None:
            raise errors.NotFound("no open invitation for you has this code", hint="copy the whole code, or ask for a new invitation")
        page = self.teams[team]
        owner = next(member.username for member in page.members if member.role is TeamRole.OWNER)
        return api.InvitationOffer(page.organisation.name, self.offered, owner, NOW + timedelta(days=7))

    def _accept_invitation(self, request: api.AcceptInvitation, credential: Credential | None) -> api.Organization:
        team = self.invitations.pop(request.token, None)
        if team is None:
            raise errors.NotFound("there is no such invitation", hint="copy the whole code from the mail")
        user = self._user(credential)
        member = api.TeamMember(user.id, user.username, user.email, TeamRole.MEMBER, NOW)
        self._keep_members(team, (*self.teams[team].members, member))
        return self._seen_by(user, self.teams[team]).organisation

    def _set_organisation_role(self, request: api.SetTeamRole, credential: Credential | None) -> api.OrganizationDetails:
        self._check_fresh("auth.setOrganisationRole")
        page = self._owned(request.organisation, credential)
        changed = tuple(
            msgspec.structs.replace(member, role=request.role) if member.user_id == request.user_id else member for member in page.members
        )
        self._keep_members(request.organisation, changed)
        return self.teams[request.organisation]

    def _remove_organisation_member(self, request: api.RemoveTeamMember, credential: Credential | None) -> Nothing:
        user = self._user(credential)
        if request.user_id != user.id:
            self._owned(request.organisation, credential)
        # Sessions that act for the organization end with the membership.
        self.sessions = {
            token: each
            for token, each in self.sessions.items()
            if each.id != request.user_id or self.acting.get(token) != request.organisation
        }
        members = self.teams[request.organisation].members
        self._keep_members(request.organisation, tuple(member for member in members if member.user_id != request.user_id))
        return Nothing()

    # --- helpers -----------------------------------------------------------------------------------------------------------

    def _user(self, credential: Credential | None) -> auth.User:
        raise NotImplementedError

    def _check_fresh(self, method: str) -> None:
        raise NotImplementedError

    def _teams_of(self, user: auth.User) -> Iterator[api.OrganizationDetails]:
        for page in self.teams.values():
            if any(member.user_id == user.id for member in page.members):
                yield self._seen_by(user, page)

    def _seen_by(self, user: auth.User, page: api.OrganizationDetails) -> api.OrganizationDetails:
        role = next(member.role for member in page.members if member.user_id == user.id)
        return msgspec.structs.replace(page, organisation=msgspec.structs.replace(page.organisation, role=role))

    def _owned(self, team: TenantId, credential: Credential | None) -> api.OrganizationDetails:
        page = self._get_organisation(api.GetOrganization(team), credential)
        if page.organisation.role is not TeamRole.OWNER:
            raise errors.NotAllowed("only an owner of the organization can do this", hint="ask one of its owners")
        return self.teams[team]

    def _keep_members(self, team: TenantId, members: tuple[api.TeamMember, ...]) -> None:
        if not any(member.role is TeamRole.OWNER for member in members):
            raise errors.NotAllowed("an organization needs at least one owner", hint="make another member an owner first")
        page = self.teams[team]
        organisation = msgspec.structs.replace(page.organisation, members=len(members))
        self.teams[team] = msgspec.structs.replace(page, organisation=organisation, members=members)
