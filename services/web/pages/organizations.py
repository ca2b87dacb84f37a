"""Manage organizations: create, switch, members and invitations."""

from dataclasses import dataclass
from http import HTTPStatus
from uuid import UUID

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath

from services.web.http import forms
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import accounts
from shared.api import organizations as api
from shared.api.organizations import Invitation, NewInvitation, Organization, TeamMember, TeamRole
from shared.types import TenantId, UserId

_HERE = "/organisations"
_DONE = {
    "created": "Organization created. Now invite members.",
    "joined": "You joined this organization.",
    "renamed": "Organization renamed.",
    "revoked": "Invitation revoked. Its link no longer works.",
    "role": "Role changed.",
    "removed": "Member removed. Their keys for this organization no longer work.",
    "left": "You left the organization.",
    "switched": "Account switched. Requests, keys and pages now belong to this account.",
}


class InviteForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    email: str
    role: str = TeamRole.MEMBER.value


class TeamRoleForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    user_id: str
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationsPage:
    organisations: tuple[Organization, ...]
    #: The organization that the user acts as; None for the personal account.
    acts_for: TenantId | None
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationMembersPage:
    organisation: Organization
    members: tuple[TeamMember, ...]
    invitations: tuple[Invitation, ...]
    #: Whether the user can invite, remove and rename.
    is_owner: bool
    acts_for: TenantId | None
    #: Set only in the response that created the invitation.
    invited: NewInvitation | None = None
    link: str = ""
    typed: InviteForm | None = None


@get(_HERE)
async def show_organisations(page_request: NamedDependency[PageRequest]) -> Page:
    return await _list(page_request)


@post(_HERE)
async def create(page_request: NamedDependency[PageRequest]) -> Page:
    name = await page_request.read_field("name")
    try:
        made = await page_request.submit(api.create_organisation, api.CreateOrganization(name.strip()))
    except errors.CallerError as error:
        return await _list(page_request, name=name, problem=error)
    return page_request.redirect(f"{_HERE}/{made.id}?done=created")


@post(f"{_HERE}/switch")
async def switch(page_request: NamedDependency[PageRequest]) -> Page:
    # Empty for the personal account.
    chosen = await page_request.read_field("id", "")
    await _act_for(page_request, TenantId(read_id(chosen)) if chosen else None)
    return page_request.redirect(f"{_HERE}?done=switched")


@get(f"{_HERE}/{{team:uuid}}")
async def show_team(page_request: NamedDependency[PageRequest], team: FromPath[UUID]) -> Page:
    return await _team_page(page_request, team)


@post(f"{_HERE}/{{team:uuid}}/rename")
async def rename(page_request: NamedDependency[PageRequest], team: FromPath[UUID]) -> Page:
    name = await page_request.read_field("name")
    try:
        await page_request.submit(api.rename_organisation, api.RenameOrganization(TenantId(team), name.strip()))
    except errors.CallerError as error:
        return await _team_page(page_request, team, error)
    page_request.forget_session()
    return page_request.redirect(f"{_HERE}/{team}?done=renamed")


@post(f"{_HERE}/{{team:uuid}}/invite")
async def invite(page_request: NamedDependency[PageRequest], team: FromPath[UUID]) -> Page:
    """Invite a member. Responds with the page itself, because nothing else may carry the link."""
    form = await page_request.read_form(InviteForm)
    try:
        request = api.InviteMember(TenantId(team), form.email.strip(), forms.read_choice(TeamRole, form.role, "role"))
        invited = await page_request.submit(api.invite_member, request)
    except errors.CallerError as error:
        return await _team_page(page_request, team, error, typed=form)
    return await _team_page(page_request, team, invited=invited)


@post(f"{_HERE}/{{team:uuid}}/revoke")
async def revoke(page_request: NamedDependency[PageRequest], team: FromPath[UUID]) -> Page:
    chosen = await page_request.read_field("id")
    try:
        await page_request.submit(api.withdraw_invitation, api.WithdrawInvitation(TenantId(team), chosen))
    except errors.CallerError as error:
        return await _team_page(page_request, team, error)
    return page_request.redirect(f"{_HERE}/{team}?done=revoked")


@post(f"{_HERE}/{{team:uuid}}/role")
async def set_role(page_request: NamedDependency[PageRequest], team: FromPath[UUID]) -> Page:
    form = await page_request.read_form(TeamRoleForm)
    try:
        request = api.SetTeamRole(TenantId(team), UserId(read_id(form.user_id)), forms.read_choice(TeamRole, form.role, "role"))
        await page_request.submit(api.set_team_role, request)
    except errors.CallerError as error:
        return await _team_page(page_request, team, error)
    return page_request.redirect(f"{_HERE}/{team}?done=role")


@post(f"{_HERE}/{{team:uuid}}/remove")
async def remove(page_request: NamedDependency[PageRequest], team: FromPath[UUID]) -> Page:
    user_id = await page_request.read_field("user_id")
    try:
        await page_request.submit(api.remove_team_member, api.RemoveTeamMember(TenantId(team), UserId(read_id(user_id))))
    except errors.CallerError as error:
        return await _team_page(page_request, team, error)
    return page_request.redirect(f"{_HERE}/{team}?done=removed")


@post(f"{_HERE}/{{team:uuid}}/leave")
async def leave(page_request: NamedDependency[PageRequest], team: FromPath[UUID]) -> Page:
    """Leave an organization. Switches to the personal account first, because the session ends with the membership."""
    await page_request.read_form(forms.Confirmation)
    acted_for = page_request.person.team_id
    if acted_for == team:
        await _act_for(page_request, None)
    try:
        await page_request.submit(api.remove_team_member, api.RemoveTeamMember(TenantId(team), page_request.person.user.id))
    except errors.CallerError as error:
        if acted_for == team:
            await _act_for(page_request, acted_for)
        return await _team_page(page_request, team, error)
    return page_request.redirect(f"{_HERE}?done=left")


def read_id(text: str) -> UUID:
    """Parse an id. Raises BadRequest."""
    try:
        return UUID(text)
    except ValueError:
        raise errors.BadRequest("invalid ID", hint="reload the page and submit the form again") from None


async def _act_for(page_request: PageRequest, team: TenantId | None) -> None:
    page_request.sign_in(await page_request.call(accounts.switch_organisation, accounts.SwitchTeam(team)))


async def _list(page_request: PageRequest, *, name: str = "", problem: errors.CallerError | None = None) -> Page:
    answer = await page_request.call(api.list_organisations, api.ListOrganizations())
    view = OrganizationsPage(organisations=answer.organisations, acts_for=page_request.person.team_id, name=name)
    return page_request.page("organizations/list.html", view, problem=problem, notices=_DONE)


async def _team_page(
    page_request: PageRequest,
    team: UUID,
    problem: errors.CallerError | None = None,
    *,
    invited: NewInvitation | None = None,
    typed: InviteForm | None = None,
) -> Page:
    page = await page_request.call(api.get_organisation, api.GetOrganization(TenantId(team)))
    person = page_request.person
    view = OrganizationMembersPage(
        organisation=page.organisation,
        # Owners first, then by name.
        members=tuple(sorted(page.members, key=lambda member: (member.role is not TeamRole.OWNER, member.username.lower()))),
        invitations=page.invitations,
        is_owner=page.organisation.role is TeamRole.OWNER or person.user.role == "admin",
        acts_for=person.team_id,
        invited=invited,
        link="" if invited is None else f"{page_request.address}/invitation#{invited.token}",
        typed=typed,
    )
    status = None if invited is None else HTTPStatus.CREATED
    return page_request.page("organizations/team.html", view, status=status, problem=problem, notices=_DONE)
