"""Accept an invitation to an organization. Auth reveals its details only to the invited user.

The code is in the fragment of the link, so it never appears in a log. The page's script sends it in a request body.
"""

from dataclasses import dataclass
from http import HTTPStatus

import msgspec
from litestar import MediaType, get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web import rendering
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import organizations as api
from shared.api.organizations import TeamRole

_AS = {TeamRole.MEMBER: "a member", TeamRole.OWNER: "an owner"}


class Code(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The code that the script found in the fragment or the field."""

    code: str


class InvitationView(msgspec.Struct, frozen=True):
    """The details of an invitation, as the page shows them."""

    organisation: str
    #: With its article, such as "a member".
    role: str
    invited_by: str
    until: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InvitationPage:
    code: str


@get("/invitation")
async def show_invitation(page_request: NamedDependency[PageRequest], token: FromQuery[str] = "") -> Page:
    return _page(page_request, token)


@post("/invitation/offer", status_code=HTTPStatus.OK)
async def read_offer(page_request: NamedDependency[PageRequest]) -> Page:
    body = await page_request.read_json(Code)
    found = await page_request.call(api.read_invitation, api.ReadInvitation(body.code.strip()))
    offer = InvitationView(found.organisation_name, _AS[found.role], found.invited_by, rendering.day(found.expires_at))
    return Page(msgspec.json.encode(offer), media_type=MediaType.JSON)


@post("/invitation")
async def accept(page_request: NamedDependency[PageRequest]) -> Page:
    code = await page_request.read_field("code")
    try:
        joined = await page_request.submit(api.accept_invitation, api.AcceptInvitation(code.strip()))
    except errors.CallerError as error:
        return _page(page_request, code, error)
    return page_request.redirect(f"/organisations/{joined.id}?done=joined")


def _page(page_request: PageRequest, code: str, problem: errors.CallerError | None = None) -> Page:
    return page_request.page("invitation.html", InvitationPage(code=code), here="organisations", problem=problem)
