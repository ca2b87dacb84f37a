"""Handle the sign-in steps after the password: enter a second factor, or set one up if it is required."""

from dataclasses import dataclass

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web import request_context
from services.web.pages.account import second_factor, signing_in
from services.web.request_context import ConfirmFirst, Page, PageRequest
from shared import errors
from shared.api import accounts, auth

_SET_UP = "/login/second-factor"


class LoginCodeForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: Six digits, or a recovery code.
    code: str
    then: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodePage:
    username: str
    then: str
    problem: errors.AimeshError | None = None


@get("/login/code")
async def show_code(page_request: NamedDependency[PageRequest], then: FromQuery[str] = "") -> Page:
    if page_request.person.step is not auth.Step.ENTER_CODE:
        return page_request.redirect(signing_in.after_login(page_request.person, then))
    return _code_page(page_request, request_context.own_page(then))


@post("/login/code")
async def enter_code(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(LoginCodeForm)
    if page_request.person.step is not auth.Step.ENTER_CODE:
        # The form was submitted twice and the first one succeeded.
        return page_request.redirect(signing_in.after_login(page_request.person, form.then))
    try:
        session = await page_request.submit(auth.confirm_login, auth.ConfirmLogin(form.code.strip()))
    except errors.CallerError as error:
        return _code_page(page_request, request_context.own_page(form.then), error)
    page_request.sign_in(session)
    return page_request.redirect(signing_in.after_login(session, form.then))


@get(_SET_UP)
async def show_set_up(page_request: NamedDependency[PageRequest], then: FromQuery[str] = "") -> Page:
    if page_request.person.step is not auth.Step.SET_UP_MFA:
        return page_request.redirect(signing_in.after_login(page_request.person, then))
    try:
        seed = await page_request.submit(accounts.begin_mfa, accounts.BeginMfa())
    except ConfirmFirst:
        return await _begin_again(page_request)
    form = second_factor.SeedForm(uri=seed.uri, then=request_context.own_page(then))
    return second_factor.show_seed(page_request, form, action=_SET_UP)


@post(_SET_UP)
async def set_up(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(second_factor.SeedForm)
    if page_request.person.step is not auth.Step.SET_UP_MFA:
        return page_request.redirect(signing_in.after_login(page_request.person, form.then))
    try:
        return await second_factor.enable(page_request, form, action=_SET_UP, then=request_context.own_page(form.then))
    except ConfirmFirst:
        return await _begin_again(page_request)


async def _begin_again(page_request: PageRequest) -> Page:
    """End a sign-in that took too long: an incomplete one cannot be confirmed again."""
    await signing_in.end_session(page_request)
    page_request.sign_out()
    return page_request.redirect("/login?done=late")


def _code_page(page_request: PageRequest, then: str, problem: errors.CallerError | None = None) -> Page:
    view = CodePage(username=page_request.person.user.username, then=then, problem=problem)
    return page_request.page("login_code.html", view, here="login", problem=problem)


ROUTES = (show_code, enter_code, show_set_up, set_up)
