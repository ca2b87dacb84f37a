"""Handle the sign-in steps after the password: enter a second factor, or set one up if it is required."""

from dataclasses import dataclass
from http import HTTPStatus

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web import request_context
from services.web.pages.account import second_factor, signing_in
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import auth

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
async def show_code(visit: NamedDependency[PageRequest], then: FromQuery[str] = "") -> Page:
    if visit.person.step is not auth.Step.ENTER_CODE:
        return visit.redirect(signing_in.after_login(visit.person, then))
    return _code_page(visit, request_context.own_page(then))


@post("/login/code")
async def enter_code(visit: NamedDependency[PageRequest]) -> Page:
    form = await visit.read_form(LoginCodeForm)
    if visit.person.step is not auth.Step.ENTER_CODE:
        # The form was submitted twice and the first one succeeded.
        return visit.redirect(signing_in.after_login(visit.person, form.then))
    try:
        session = await visit.call(auth.confirm_login, auth.ConfirmLogin(form.code.strip()))
    except errors.NotAuthenticated:
        raise
    except errors.CallerError as error:
        return _code_page(visit, request_context.own_page(form.then), error)
    visit.sign_in(session)
    return visit.redirect(signing_in.after_login(session, form.then))


@get(_SET_UP)
async def show_set_up(visit: NamedDependency[PageRequest], then: FromQuery[str] = "") -> Page:
    if visit.person.step is not auth.Step.SET_UP_MFA:
        return visit.redirect(signing_in.after_login(visit.person, then))
    try:
        return await second_factor.begin(visit, action=_SET_UP, then=request_context.own_page(then))
    except errors.ConfirmationNeeded:
        return await _begin_again(visit)


@post(_SET_UP)
async def set_up(visit: NamedDependency[PageRequest]) -> Page:
    form = await visit.read_form(second_factor.SeedForm)
    if visit.person.step is not auth.Step.SET_UP_MFA:
        return visit.redirect(signing_in.after_login(visit.person, form.then))
    try:
        return await second_factor.enable(visit, form, action=_SET_UP, then=request_context.own_page(form.then))
    except errors.ConfirmationNeeded:
        return await _begin_again(visit)


async def _begin_again(visit: PageRequest) -> Page:
    """End a sign-in that took too long: an incomplete one cannot be confirmed again."""
    await signing_in.end_session(visit)
    visit.sign_out()
    return visit.redirect("/login?done=late")


def _code_page(visit: PageRequest, then: str, problem: errors.CallerError | None = None) -> Page:
    view = CodePage(username=visit.person.user.username, then=then, problem=problem)
    return visit.page("login_code.html", view, here="login", status=HTTPStatus.OK if problem is None else problem.status)


ROUTES = (show_code, enter_code, show_set_up, set_up)
