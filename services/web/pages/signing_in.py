"""Register, log in, log out: by form for people, by JSON for programs."""

import contextlib
from dataclasses import dataclass
from http import HTTPStatus

import msgspec
from litestar import MediaType, get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web import forms, problems, rendering, visits
from services.web.pages import leaving, overview
from services.web.visits import Page, Visit
from shared import errors
from shared.api import accounts, auth, organisations
from shared.types import Credential

#: argon2 may have to wait for its turn in auth's queue.
PASSWORD_CALL_SECONDS = 10.0
FIRST_KEY_NAME = "first key"

#: The words that a redirect may bring.
_DONE = {
    "reset": "Your new password is set. Sign in with it.",
    "late": "That took too long, so that the sign-in ended. Please begin again.",
    "ended": "Your session has ended. Sign in to go on.",
    "undone": "Your session had ended, so nothing was done. Sign in, and do it again.",
}
#: Where each step that a login still lacks is done.
_STEPS = {auth.Step.ENTER_CODE: "/login/code", auth.Step.SET_UP_MFA: "/login/second-factor"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterPage:
    #: Otherwise an invitation is needed.
    is_open: bool
    password_min_length: int
    #: The provider's name; None where there is none.
    oidc_name: str | None
    username: str = ""
    email: str = ""
    #: The code of one, which is needed where registration is closed.
    invitation: str = ""
    #: The page that the newcomer is on the way to; empty for none.
    then: str = ""
    problem: errors.AimeshError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginPage:
    oidc_name: str | None
    is_open: bool
    name: str = ""
    then: str = ""
    problem: errors.AimeshError | None = None
    #: The account was made just now, but the session could not be.
    registered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginLinkPage:
    link: str


@get("/register")
async def show_register(visit: NamedDependency[Visit], then: FromQuery[str] = "") -> Page:
    if await visit.find_session() is not None:
        return visit.redirect(visits.own_page(then))
    form = forms.RegistrationForm("", "", "", then if visits.own_page(then) == then else "")
    return visit.page("register.html", await _register_page(visit, form), here="register")


@post("/register")
async def register(visit: NamedDependency[Visit]) -> Page:
    if visits.media_type(visit.request) == "application/json":
        wanted = forms.read_json(await visit.read_body(), forms.Registration)
        user = await _register(visit, auth.UserData(wanted.username, wanted.email, wanted.password), wanted.invitation)
        return _json(user, HTTPStatus.CREATED)
    if await visit.find_session() is not None:
        # A reload of the answer to this form: the account is there and the key has been shown.
        await visit.read_fields()
        return visit.redirect(visits.HOME)
    form = await visit.read_form(forms.RegistrationForm, by_visitor=True)
    try:
        data = auth.UserData(form.username.strip(), form.email.strip(), form.password)
        user = await _register(visit, data, form.invitation.strip() or None)
    except errors.CallerError as error:
        view = await _register_page(visit, form, error)
        return visit.page("register.html", view, here="register", status=error.status)
    return await _welcome(visit, user, form)


@get("/login")
async def show_login(visit: NamedDependency[Visit], then: FromQuery[str] = "", done: FromQuery[str] = "") -> Page:
    session = await visit.find_session()
    if session is not None:
        return visit.redirect(after_login(session, then))
    notice = rendering.Notice(_DONE[done], "good" if done == "reset" else "warn") if done in _DONE else None
    view = await _login_page(visit, then=then if visits.own_page(then) == then else "")
    return visit.page("login.html", view, here="login", notice=notice)


@post("/login", status_code=HTTPStatus.OK)
async def login(visit: NamedDependency[Visit]) -> Page:
    if visits.media_type(visit.request) == "application/json":
        wanted = forms.read_json(await visit.read_body(), forms.Login)
        credentials = auth.Credentials(wanted.password, wanted.username, wanted.email, wanted.code)
        return _json(await _login(visit, credentials, auth.SessionKind.PROGRAM), HTTPStatus.OK)
    try:
        form = await visit.read_form(forms.LoginForm, by_visitor=True)
    except errors.NotAllowed as error:
        return await _too_old(visit, error)
    try:
        session = await _login(visit, _credentials(form.name.strip(), form.password), auth.SessionKind.BROWSER)
    except errors.CallerError as error:
        view = await _login_page(visit, name=form.name, then=form.then, problem=error)
        return visit.page("login.html", view, here="login", status=error.status)
    visit.sign_in(session)
    return visit.redirect(after_login(session, form.then))


@post("/logout")
async def logout(visit: NamedDependency[Visit]) -> Page:
    if visit.session_token is None:
        await visit.read_fields()
        return visit.redirect("/")
    await visit.read_form(forms.Confirmation)
    token = visit.session_token
    ends_at = await _end_at_provider(visit, token)
    try:
        await visit.site.caller.call(auth.logout_user, auth.LogoutUser(token))
    except errors.NotAuthenticated:
        # It had ended by itself; the browser forgets it all the same.
        pass
    visit.sign_out()
    return visit.redirect("/") if ends_at is None else leaving.page(visit, ends_at, leaving.Why.LOG_OUT)


@get("/login-link")
async def show_login_link(visit: NamedDependency[Visit], token: FromQuery[str] = "") -> Page:
    """Only shows a button: a mail scanner or a prefetch that opens the link must not use it up."""
    return visit.page("login_link.html", LoginLinkPage(link=token))


@post("/login-link")
async def redeem_login_link(visit: NamedDependency[Visit]) -> Page:
    form = await visit.read_form(forms.LoginLinkForm, by_visitor=True)
    try:
        session = await visit.site.caller.call(auth.redeem_login_link, auth.RedeemLoginLink(form.link, visit.client()))
    except errors.CallerError as error:
        return visit.page("login.html", await _login_page(visit, problem=error), here="login", status=error.status)
    visit.sign_in(session)
    return visit.redirect(after_login(session, ""))


def after_login(session: auth.Session, then: str) -> str:
    """To the step that it still lacks, or else to the page that asked for it."""
    step, page = _STEPS.get(session.step), visits.own_page(then)
    if step is None:
        return page
    return step if page == visits.HOME else f"{step}?then={page}"


async def end_session(visit: Visit) -> None:
    """Of a session that the browser forgets anyhow: where auth does not answer it ends by itself within the hour."""
    if visit.session_token is not None:
        with contextlib.suppress(errors.AimeshError):
            await visit.site.caller.call(auth.logout_user, auth.LogoutUser(visit.session_token))


async def find_options(visit: Visit, *, deadline_seconds: float = visits.PAGE_CALL_SECONDS) -> accounts.SignInOptions:
    """What these pages have to know of auth; where it does not answer they stand as if it were set up as usual."""
    try:
        return await visit.site.caller.call(accounts.get_sign_in_options, accounts.GetSignInOptions(), deadline_seconds=deadline_seconds)
    except errors.AimeshError:
        return accounts.SignInOptions(open_registration=True, password_min_length=visit.site.settings.password_min_length)


async def _end_at_provider(visit: Visit, token: str) -> str | None:
    """Where the provider ends its session; None where there is none, or it cannot be had: the session here ends all the same."""
    request = accounts.LeaveOidc(token, f"{visit.address}/")
    try:
        left = await visit.site.caller.call(accounts.leave_oidc, request, deadline_seconds=visits.PAGE_CALL_SECONDS)
    except errors.AimeshError:
        return None
    return left.url


async def _too_old(visit: Visit, error: errors.NotAllowed) -> Page:
    """The form is older than the browser's cookie: another tab has signed in since, or the browser was started anew."""
    if not visit.posted:
        # It came from another site, and not from a page of ours that stood open.
        raise error
    then = visit.posted.get("then", "")
    session = await visit.find_session()
    if session is not None:
        return visit.redirect(after_login(session, then))
    problem = errors.NotAllowed("this page stood open for too long", hint="type your password again")
    view = await _login_page(visit, name=visit.posted.get("name", ""), then=then, problem=problem)
    return visit.page("login.html", view, here="login", status=problem.status)


async def _welcome(visit: Visit, user: auth.User, form: forms.RegistrationForm) -> Page:
    """The new account's first page, with its first key. From here on the account exists, so whatever fails is said and not undone."""
    try:
        session = await _login(visit, auth.Credentials(form.password, username=user.username), auth.SessionKind.BROWSER)
    except errors.AimeshError as error:
        view = await _login_page(visit, name=user.username, then=form.then, registered=True, problem=error)
        return visit.page("login.html", view, here="login", status=problems.status(error))
    visit.sign_in(session)
    if session.step is not auth.Step.DONE:
        return visit.redirect(after_login(session, form.then))
    if form.invitation:
        # The code is in no other page now. Where this fails, the mail still has it.
        with contextlib.suppress(errors.AimeshError):
            await visit.call(organisations.accept_invitation, organisations.AcceptInvitation(form.invitation.strip()))
    then = visits.own_page(form.then)
    return await overview.welcome(visit, new_key=await _first_key(visit), then="" if then == visits.HOME else then)


async def _first_key(visit: Visit) -> Credential | None:
    request = auth.GenerateApiKey(name=FIRST_KEY_NAME)
    try:
        return (await visit.call(auth.generate_api_key, request)).api_key
    except errors.AimeshError:
        # The page then leads to the key page, where the next attempt says what is wrong.
        return None


async def _register(visit: Visit, user: auth.UserData, invitation: str | None) -> auth.User:
    request = auth.RegisterUser(user, visit.client(), invitation)
    async with visit.take_turn():
        return await visit.site.caller.call(auth.register_user, request, deadline_seconds=PASSWORD_CALL_SECONDS)


async def _login(visit: Visit, credentials: auth.Credentials, kind: auth.SessionKind) -> auth.Session:
    browser = visit.browser_mark if kind is auth.SessionKind.BROWSER else ""
    request = auth.LoginUser(credentials, kind, visit.client(), browser)
    async with visit.take_turn():
        return await visit.site.caller.call(auth.login_user, request, deadline_seconds=PASSWORD_CALL_SECONDS)


async def _register_page(
    visit: Visit, form: forms.RegistrationForm | None = None, problem: errors.AimeshError | None = None
) -> RegisterPage:
    options = await find_options(visit)
    return RegisterPage(
        is_open=options.open_registration,
        password_min_length=options.password_min_length,
        oidc_name=options.oidc_name,
        username=form.username if form else "",
        email=form.email if form else "",
        invitation=form.invitation if form else "",
        then=form.then if form else "",
        problem=problem,
    )


async def _login_page(
    visit: Visit, *, name: str = "", then: str = "", problem: errors.AimeshError | None = None, registered: bool = False
) -> LoginPage:
    options = await find_options(visit)
    return LoginPage(
        oidc_name=options.oidc_name, is_open=options.open_registration, name=name, then=then, problem=problem, registered=registered
    )


def _credentials(name: str, password: str) -> auth.Credentials:
    # Usernames have no @, addresses always do.
    return auth.Credentials(password, email=name) if "@" in name else auth.Credentials(password, username=name)


def _json(answer: msgspec.Struct, status: HTTPStatus) -> Page:
    return Page(msgspec.json.encode(answer), media_type=MediaType.JSON, status_code=status)


ROUTES = (show_register, register, show_login, login, logout, show_login_link, redeem_login_link)
