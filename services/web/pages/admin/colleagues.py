"""Invite people to the mesh, and list and revoke open invitations."""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import ClassVar

import msgspec
from litestar import get, post
from litestar.di import NamedDependency

from services.web.http import forms
from services.web.request_context import JOIN, Page, PageRequest
from shared import errors
from shared.api import organizations as api
from shared.lists.columns import Listing
from shared.lists.invitations import INVITATIONS
from shared.types import UserRole

_HERE = "/admin/invitations"
_DONE = {"revoked": "Invitation revoked. Its link no longer works."}
#: Names that the field suggests; others can be typed.
_SUGGESTED = 100


class ColleagueForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    email: str = ""
    role: str = UserRole.USER.value
    organisation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColleaguesPage:
    invitations: tuple[api.ColleagueInvitation, ...]
    listing: ClassVar[Listing[api.ColleagueInvitation]] = INVITATIONS
    organisations: tuple[str, ...]
    roles: ClassVar[tuple[UserRole, ...]] = tuple(UserRole)
    typed: ColleagueForm
    #: Set only in the response that created the invitation.
    invited: api.InvitedColleague | None
    link: str


@get(_HERE)
async def show_colleagues(page_request: NamedDependency[PageRequest]) -> Page:
    return await _page(page_request)


@post(_HERE)
async def invite_colleague(page_request: NamedDependency[PageRequest]) -> Page:
    """Invite someone. Responds with the page itself, because nothing else may carry the link."""
    form = await page_request.read_form(ColleagueForm)
    try:
        role = forms.read_choice(UserRole, form.role, "role")
        request = api.InviteColleague(form.email.strip(), role, form.organisation.strip())
        return await _page(page_request, invited=await page_request.submit(api.invite_colleague, request))
    except errors.CallerError as error:
        return await _page(page_request, typed=form, problem=error)


@post(f"{_HERE}/revoke")
async def revoke_invitation(page_request: NamedDependency[PageRequest]) -> Page:
    chosen = await page_request.read_field("id")
    try:
        await page_request.submit(api.withdraw_colleague_invitation, api.WithdrawColleagueInvitation(chosen))
    except errors.CallerError as error:
        return await _page(page_request, problem=error)
    return page_request.redirect(f"{_HERE}?done=revoked")


async def _page(
    page_request: PageRequest,
    *,
    invited: api.InvitedColleague | None = None,
    typed: ColleagueForm | None = None,
    problem: errors.CallerError | None = None,
) -> Page:
    listed, teams = await asyncio.gather(
        page_request.call(api.list_colleague_invitations, api.ListColleagueInvitations()),
        page_request.fetch(api.list_all_organisations, api.ListAllOrganizations(_SUGGESTED)),
    )
    view = ColleaguesPage(
        invitations=listed.invitations,
        organisations=tuple(sorted({team.name for team in teams.organisations})) if teams else (),
        typed=typed or ColleagueForm(),
        invited=invited,
        link="" if invited is None else f"{page_request.address}{JOIN}#{invited.token}",
    )
    status = None if invited is None else HTTPStatus.CREATED
    return page_request.page("admin/invitations.html", view, status=status, problem=problem, notices=_DONE)
