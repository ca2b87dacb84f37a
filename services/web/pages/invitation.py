"""Accepting an invitation to an organisation, with the code of the mail. What it invites to, auth says only to whom it is for."""

from dataclasses import dataclass
from http import HTTPStatus

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web.visits import Page, Visit
from shared import errors
from shared.api import organisations as api


class AcceptForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InvitationPage:
    code: str
    username: str
    email: str
    problem: errors.AimeshError | None = None


@get("/invitation")
async def show_invitation(visit: NamedDependency[Visit], token: FromQuery[str] = "") -> Page:
    return _page(visit, token)


@post("/invitation")
async def accept(visit: NamedDependency[Visit]) -> Page:
    form = await visit.read_form(AcceptForm)
    try:
        joined = await visit.call(api.accept_invitation, api.AcceptInvitation(form.code.strip()))
    except (errors.NotAuthenticated, errors.ConfirmationNeeded):
        raise
    except errors.CallerError as error:
        return _page(visit, form.code, error)
    return visit.redirect(f"/organisations/{joined.id}?done=joined")


def _page(visit: Visit, code: str, problem: errors.CallerError | None = None) -> Page:
    user = visit.person.user
    view = InvitationPage(code=code, username=user.username, email=user.email, problem=problem)
    return visit.page("invitation.html", view, here="organisations", status=HTTPStatus.OK if problem is None else problem.status)


ROUTES = (show_invitation, accept)
