"""Let administrators create accounts, for meshes with closed registration."""

import secrets
from dataclasses import dataclass
from http import HTTPStatus

import msgspec
from litestar import get, post
from litestar.di import NamedDependency

from services.web.pages.account import signing_in
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import accounts, auth

_HERE = "/admin/users/new"


class NewUserForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    username: str = ""
    email: str = ""
    #: Empty to email a link for choosing one.
    password: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewUserPage:
    #: Without the password.
    typed: NewUserForm
    password_min_length: int
    problem: errors.AimeshError | None = None


@get(_HERE)
async def show_new_user(page_request: NamedDependency[PageRequest]) -> Page:
    return await _page(page_request, NewUserForm())


@post(_HERE)
async def add_user(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(NewUserForm)
    # Nobody knows the random password, so the emailed link is the only way in.
    password = form.password or secrets.token_urlsafe(32)
    try:
        async with page_request.take_turn():
            request = auth.RegisterUser(auth.UserData(form.username.strip(), form.email.strip(), password))
            user = await page_request.call(auth.register_user, request, deadline_seconds=signing_in.PASSWORD_CALL_SECONDS)
    except (errors.NotAuthenticated, errors.ConfirmationNeeded):
        raise
    except errors.CallerError as error:
        return await _page(page_request, form, error)
    done = "added" if form.password else await _invite(page_request, user)
    return page_request.redirect(f"/admin/users/{user.id}?done={done}")


async def _invite(page_request: PageRequest, user: auth.User) -> str:
    """Request the email. Returns the `done` parameter. The account exists, so a failure is only reported."""
    try:
        await page_request.call(accounts.request_password_reset, accounts.RequestPasswordReset(user.username, page_request.client()))
    except errors.AimeshError:
        return "unmailed"
    return "mailed"


async def _page(page_request: PageRequest, form: NewUserForm, problem: errors.CallerError | None = None) -> Page:
    options = await signing_in.find_options(page_request)
    typed = NewUserForm(form.username, form.email)
    view = NewUserPage(typed=typed, password_min_length=options.password_min_length, problem=problem)
    status = HTTPStatus.OK if problem is None else problem.status
    return page_request.page("admin/new_user.html", view, here="admin", status=status)


ROUTES = (show_new_user, add_user)
