"""Show an invitation to the mesh, to visitors and to users, and accept it.

The code arrives in the fragment of the link, so no log has it. A form posts it, and a cookie keeps it until the invitation is accepted.
"""

import re
from dataclasses import dataclass

from litestar import get, post
from litestar.di import NamedDependency

from services.web.http import forms
from services.web.request_context import HOME, JOIN, PAGE_CALL_SECONDS, Page, PageRequest
from shared import errors
from shared.api import auth, organizations
from shared.api.organizations import ColleagueInvitation

#: As in fragment.js, and fit for a cookie.
_CODE = re.compile(r"[\w.~-]{16,200}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinPage:
    #: None without the code of an open invitation.
    offer: ColleagueInvitation | None
    is_for_user: bool


@get(JOIN)
async def show_join(page_request: NamedDependency[PageRequest]) -> Page:
    await page_request.find_session()
    try:
        return _page(page_request, await _read_offer(page_request) if page_request.invitation else None)
    except errors.CallerError as error:
        return _page(page_request, None, error)


@post(JOIN)
async def keep_code(page_request: NamedDependency[PageRequest]) -> Page:
    is_visitor = await page_request.find_session() is None
    code = (await page_request.read_field("code", by_visitor=is_visitor)).strip()
    if not _CODE.fullmatch(code):
        return _page(page_request, None, errors.NotFound("there is no such invitation", hint="copy the whole code from the mail"))
    page_request.keep_invitation(code)
    return page_request.redirect(JOIN)


@post(f"{JOIN}/accept")
async def accept_offer(page_request: NamedDependency[PageRequest]) -> Page:
    await page_request.read_form(forms.Confirmation)
    try:
        request = organizations.AcceptColleagueInvitation(page_request.invitation)
        await page_request.submit(organizations.accept_colleague_invitation, request)
    except errors.CallerError as error:
        return _page(page_request, None, error)
    page_request.keep_invitation(None)
    # The role may be another one now.
    page_request.forget_session()
    return page_request.redirect(HOME)


async def find_offer(page_request: PageRequest) -> ColleagueInvitation | None:
    """Return what the kept code offers; None without one, or if it is not open, or while auth is down."""
    try:
        return await _read_offer(page_request) if page_request.invitation else None
    except errors.AimeshError:
        return None


async def _read_offer(page_request: PageRequest) -> ColleagueInvitation:
    """Drops a code that is not open. Raises CallerError, and PeerError while auth is down."""
    request = organizations.ReadColleagueInvitation(page_request.invitation, page_request.client())
    try:
        return await page_request.app.caller.call(organizations.read_colleague_invitation, request, deadline_seconds=PAGE_CALL_SECONDS)
    except errors.NotFound:
        page_request.keep_invitation(None)
        raise


def _page(page_request: PageRequest, offer: ColleagueInvitation | None, problem: errors.CallerError | None = None) -> Page:
    session = page_request.session
    is_for_user = session is not None and offer is not None and session.user.email.lower() == offer.email.lower()
    view = JoinPage(offer=offer, is_for_user=is_for_user and session is not None and session.step is auth.Step.DONE)
    return page_request.page("join.html", view, problem=problem)
