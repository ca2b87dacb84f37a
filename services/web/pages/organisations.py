"""Organisations: which one belongs to, for which one acts, who else belongs to them, and invitations."""

from dataclasses import dataclass
from http import HTTPStatus
from uuid import UUID

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from services.web import forms, rendering
from services.web.pages import settings
from services.web.visits import Page, Visit
from shared import errors
from shared.api import accounts
from shared.api import organisations as api
from shared.api.organisations import Invitation, NewInvitation, Organisation, TeamMember, TeamRole
from shared.types import TenantId, UserId

_HERE = "/organisations"
#: The words that a redirect may bring.
_DONE = {
    "created": "The organisation is there. Invite the others.",
    "joined": "You belong to this organisation now.",
    "renamed": "The new name is set.",
    "withdrawn": "The invitation is withdrawn. Its link opens nothing any more.",
    "role": "The role is changed.",
    "removed": "The member is removed. Their keys of this organisation have ended.",
    "left": "You have left the organisation.",
    "switched": "From now on your requests, keys and pages are those of whom you act for.",
}


class NameForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class SwitchForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: Empty for oneself.
    id: str = ""


class InviteForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    email: str
    role: str = TeamRole.MEMBER.value


class InvitationForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str


class RoleForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    user_id: str
    role: str


class MemberForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    user_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganisationsPage:
    organisations: tuple[Organisation, ...]
    #: Whom the person acts for; None for themselves.
    acts_for: TenantId | None
    username: str
    name: str = ""
    problem: errors.AimeshError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamPage:
    organisation: Organisation
    members: tuple[TeamMember, ...]
    invitations: tuple[Invitation, ...]
    #: May invite, remove and rename.
    is_owner: bool
    #: The person who looks.
    user_id: UserId
    acts_for: TenantId | None
    #: On the answer to the invitation and never again.
    invited: NewInvitation | None = None
    #: Where the new invitation is accepted.
    link: str = ""
    typed: InviteForm | None = None
    problem: errors.AimeshError | None = None


# --- all of them -----------------------------------------------------------------------------------------------------


@get(_HERE)
async def show_organisations(visit: NamedDependency[Visit], done: FromQuery[str] = "") -> Page:
    return await _list(visit, notice=settings.notice_of(done, _DONE))


@post(_HERE)
async def create(visit: NamedDependency[Visit]) -> Page:
    form = await visit.read_form(NameForm)
    try:
        made = await visit.call(api.create_organisation, api.CreateOrganisation(form.name.strip()))
    except (errors.NotAuthenticated, errors.ConfirmationNeeded):
        raise
    except errors.CallerError as error:
        return await _list(visit, name=form.name, problem=error)
    return visit.redirect(f"{_HERE}/{made.id}?done=created")


@post(f"{_HERE}/switch")
async def switch(visit: NamedDependency[Visit]) -> Page:
    form = await visit.read_form(SwitchForm)
    await _act_for(visit, TenantId(read_id(form.id)) if form.id else None)
    return visit.redirect(f"{_HERE}?done=switched")


# --- one of them -----------------------------------------------------------------------------------------------------


@get(f"{_HERE}/{{team:uuid}}")
async def show_team(visit: NamedDependency[Visit], team: FromPath[UUID], done: FromQuery[str] = "") -> Page:
    page = await visit.call(api.get_organisation, api.GetOrganisation(TenantId(team)))
    return _team_page(visit, _team_view(visit, page), notice=settings.notice_of(done, _DONE))


@post(f"{_HERE}/{{team:uuid}}/rename")
async def rename(visit: NamedDependency[Visit], team: FromPath[UUID]) -> Page:
    form = await visit.read_form(NameForm)
    try:
        await visit.call(api.rename_organisation, api.RenameOrganisation(TenantId(team), form.name.strip()))
    except (errors.NotAuthenticated, errors.ConfirmationNeeded):
        raise
    except errors.CallerError as error:
        return await _refused(visit, team, error)
    settings.forget_session(visit)
    return visit.redirect(f"{_HERE}/{team}?done=renamed")


@post(f"{_HERE}/{{team:uuid}}/invite")
async def invite(visit: NamedDependency[Visit], team: FromPath[UUID]) -> Page:
    """Answers with the page itself: nothing else may carry the link."""
    form = await visit.read_form(InviteForm)
    try:
        request = api.InviteMember(TenantId(team), form.email.strip(), read_role(form.role))
        invited = await visit.call(api.invite_member, request)
    except (errors.NotAuthenticated, errors.ConfirmationNeeded):
        raise
    except errors.CallerError as error:
        return await _refused(visit, team, error, typed=form)
    page = await visit.call(api.get_organisation, api.GetOrganisation(TenantId(team)))
    view = _team_view(visit, page, invited=invited, link=f"{visit.address}/invitation#{invited.token}")
    return _team_page(visit, view, status=HTTPStatus.CREATED)


@post(f"{_HERE}/{{team:uuid}}/withdraw")
async def withdraw(visit: NamedDependency[Visit], team: FromPath[UUID]) -> Page:
    form = await visit.read_form(InvitationForm)
    try:
        await visit.call(api.withdraw_invitation, api.WithdrawInvitation(TenantId(team), form.id))
    except (errors.NotAuthenticated, errors.ConfirmationNeeded):
        raise
    except errors.CallerError as error:
        return await _refused(visit, team, error)
    return visit.redirect(f"{_HERE}/{team}?done=withdrawn")


@post(f"{_HERE}/{{team:uuid}}/role")
async def set_role(visit: NamedDependency[Visit], team: FromPath[UUID]) -> Page:
    form = await visit.read_form(RoleForm)
    try:
        request = api.SetTeamRole(TenantId(team), UserId(read_id(form.user_id)), read_role(form.role))
        await visit.call(api.set_team_role, request)
    except (errors.NotAuthenticated, errors.ConfirmationNeeded):
        raise
    except errors.CallerError as error:
        return await _refused(visit, team, error)
    return visit.redirect(f"{_HERE}/{team}?done=role")


@post(f"{_HERE}/{{team:uuid}}/remove")
async def remove(visit: NamedDependency[Visit], team: FromPath[UUID]) -> Page:
    form = await visit.read_form(MemberForm)
    try:
        await visit.call(api.remove_team_member, api.RemoveTeamMember(TenantId(team), UserId(read_id(form.user_id))))
    except (errors.NotAuthenticated, errors.ConfirmationNeeded):
        raise
    except errors.CallerError as error:
        return await _refused(visit, team, error)
    return visit.redirect(f"{_HERE}/{team}?done=removed")


@post(f"{_HERE}/{{team:uuid}}/leave")
async def leave(visit: NamedDependency[Visit], team: FromPath[UUID]) -> Page:
    """A session that acts for an organisation ends with the membership, so that it first acts for its person again."""
    await visit.read_form(forms.Confirmation)
    acted_for = visit.person.team_id
    if acted_for == team:
        await _act_for(visit, None)
    try:
        await visit.call(api.remove_team_member, api.RemoveTeamMember(TenantId(team), visit.person.user.id))
    except (errors.NotAuthenticated, errors.ConfirmationNeeded):
        raise
    except errors.CallerError as error:
        if acted_for == team:
            await _act_for(visit, acted_for)
        return await _refused(visit, team, error)
    return visit.redirect(f"{_HERE}?done=left")


# --- parts -----------------------------------------------------------------------------------------------------------


def read_id(text: str) -> UUID:
    """Raises BadRequest."""
    try:
        return UUID(text)
    except ValueError:
        raise errors.BadRequest("this is no id of ours", hint="open the page again and send the form from there") from None


def read_role(text: str) -> TeamRole:
    """Raises BadRequest."""
    try:
        return TeamRole(text)
    except ValueError:
        raise errors.BadRequest("role: a member or an owner", hint="choose one of them") from None


async def _act_for(visit: Visit, team: TenantId | None) -> None:
    visit.sign_in(await visit.call(accounts.switch_organisation, accounts.SwitchTeam(team)))


async def _list(visit: Visit, *, name: str = "", problem: errors.CallerError | None = None, notice: rendering.Notice | None = None) -> Page:
    answer = await visit.call(api.list_organisations, api.ListOrganisations())
    view = OrganisationsPage(
        organisations=answer.organisations,
        acts_for=visit.person.team_id,
        username=visit.person.user.username,
        name=name,
        problem=problem,
    )
    status = HTTPStatus.OK if problem is None else problem.status
    return visit.page("organisations/list.html", view, here="organisations", status=status, notice=notice)


async def _refused(visit: Visit, team: UUID, error: errors.CallerError, *, typed: InviteForm | None = None) -> Page:
    page = await visit.call(api.get_organisation, api.GetOrganisation(TenantId(team)))
    return _team_page(visit, _team_view(visit, page, typed=typed, problem=error), status=error.status)


def _team_view(
    visit: Visit,
    page: api.OrganisationPage,
    *,
    invited: NewInvitation | None = None,
    link: str = "",
    typed: InviteForm | None = None,
    problem: errors.CallerError | None = None,
) -> TeamPage:
    person = visit.person
    return TeamPage(
        organisation=page.organisation,
        # Owners first, and each by name.
        members=tuple(sorted(page.members, key=lambda member: (member.role is not TeamRole.OWNER, member.username.lower()))),
        invitations=page.invitations,
        is_owner=page.organisation.role is TeamRole.OWNER or person.user.role == "admin",
        user_id=person.user.id,
        acts_for=person.team_id,
        invited=invited,
        link=link,
        typed=typed,
        problem=problem,
    )


def _team_page(visit: Visit, view: TeamPage, *, status: int = HTTPStatus.OK, notice: rendering.Notice | None = None) -> Page:
    return visit.page("organisations/team.html", view, here="organisations", status=status, notice=notice)


ROUTES = (show_organisations, create, switch, show_team, rename, invite, withdraw, set_role, remove, leave)
