"""Reset a forgotten password with an emailed code. Neither page reveals whether an account exists."""

from dataclasses import dataclass

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web.pages.account import signing_in
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import accounts


class ResetForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    code: str
    new_password: str
    repeated: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgotPage:
    name: str = ""
    is_sent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetPage:
    code: str
    password_min_length: int


@get("/forgot")
async def show_forgot(page_request: NamedDependency[PageRequest], done: FromQuery[str] = "") -> Page:
    return page_request.page("forgot.html", ForgotPage(is_sent=done == "sent"), here="login")


@post("/forgot")
async def request_reset(page_request: NamedDependency[PageRequest]) -> Page:
    # A username or an email address.
    name = await page_request.read_field("name", by_visitor=True)
    try:
        await page_request.app.caller.call(
            accounts.request_password_reset, accounts.RequestPasswordReset(name.strip(), page_request.client())
        )
    except errors.CallerError as error:
        return page_request.page("forgot.html", ForgotPage(name=name), here="login", problem=error)
    return page_request.redirect("/forgot?done=sent")


@get("/reset")
async def show_reset(page_request: NamedDependency[PageRequest], token: FromQuery[str] = "") -> Page:
    return await _reset_page(page_request, token)


@post("/reset")
async def reset(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(ResetForm, by_visitor=True)
    try:
        check_repeated(form.new_password, form.repeated)
        request = accounts.ResetPassword(form.code.strip(), form.new_password)
        await page_request.app.caller.call(accounts.reset_password, request, deadline_seconds=signing_in.PASSWORD_CALL_SECONDS)
    except errors.CallerError as error:
        return await _reset_page(page_request, form.code, error)
    return page_request.redirect("/login?done=reset")


def check_repeated(password: str, repeated: str) -> None:
    """Raise BadRequest unless both passwords are equal."""
    if password != repeated:
        raise errors.BadRequest("the passwords do not match", hint="type the new password twice")


async def _reset_page(page_request: PageRequest, code: str, problem: errors.CallerError | None = None) -> Page:
    options = await signing_in.find_options(page_request)
    view = ResetPage(code=code, password_min_length=options.password_min_length)
    return page_request.page("reset.html", view, here="login", problem=problem)
