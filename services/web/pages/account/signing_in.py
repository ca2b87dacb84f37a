"""Register, sign in and sign out, with forms for browsers and JSON for programs."""

import contextlib
from dataclasses import dataclass
from http import HTTPStatus

import msgspec
from litestar import MediaType, get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web import request_context
from services.web.http import forms
from services.web.pages import join, overview
from services.web.pages.account import iap_login, provider_redirect
from services.web.rendering import Notice
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import accounts, auth, organizations
from shared.api.organizations import ColleagueInvitation
from shared.types import Credential

#: argon2 may have to wait in auth's queue.
PASSWORD_CALL_SECONDS = 10.0
FIRST_KEY_NAME = "first key"

_DONE: dict[str, str | Notice] = {
    "reset": "Password changed. Sign in with your new password.",
    "late": Notice("The sign-in timed out. Sign in again.", "warn"),
    "ended": Notice("Your session has expired. Sign in to continue.", "warn"),
    "undone": Notice("Your session has expired, so nothing was changed. Sign in and try again.", "warn"),
}
#: Missing sign-in step -> its page.
STEPS = {auth.Step.ENTER_CODE: "/login/code", auth.Step.SET_UP_MFA: "/login/second-factor"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterPage:
    #: If false, registration requires an invitation.
    is_open: bool
    password_min_length: int
    #: The provider's name; None without a provider.
    oidc_name: str | None
    username: str = ""
    email: str = ""
    invitation: str = ""
    #: What the invitation to the mesh offers; None without one.
    offer: ColleagueInvitation | None = None
    #: The page to open afterwards; empty for none.
    then: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginPage:
    oidc_name: str | None
    is_open: bool
    name: str = ""
    then: str = ""
    #: The account was just created, but signing in failed.
    registered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginLinkPage:
    link: str


@get("/register")
async def show_register(page_request: NamedDependency[PageRequest], then: FromQuery[str] = "") -> Page:
    if await page_request.find_session() is not None:
        return page_request.redirect(request_context.own_page(then))
    # An account made with an invitation has accepted it.
    then = then if request_context.own_page(then) == then != request_context.JOIN else ""
    form = forms.RegistrationForm("", "", "", then, page_request.invitation)
    return await _show_register(page_request, form)


@post("/register")
async def register(page_request: NamedDependency[PageRequest]) -> Page:
    if request_context.media_type(page_request.request) == "application/json":
        wanted = forms.read_json(await page_request.read_body(), forms.RegistrationFields)
        user = await _register(page_request, auth.UserData(wanted.username, wanted.email, wanted.password), wanted.invitation)
        return _json(user, HTTPStatus.CREATED)
    if await page_request.find_session() is not None:
        # The user reloaded the response to this form: the account exists and the key was shown.
        await page_request.read_fields()
        return page_request.redirect(request_context.HOME)
    form = await page_request.read_form(forms.RegistrationForm, by_visitor=True)
    try:
        data = auth.UserData(form.username.strip(), form.email.strip(), form.password)
        user = await _register(page_request, data, form.invitation.strip() or None)
    except errors.CallerError as error:
        return await _show_register(page_request, form, error)
    return await _welcome(page_request, user, form)


@get("/login")
async def show_login(page_request: NamedDependency[PageRequest], then: FromQuery[str] = "") -> Page:
    session = await page_request.find_session()
    if session is not None:
        return page_request.redirect(after_login(session, then))
    problem = None
    if (assertion := iap_login.find_assertion(page_request, await find_options(page_request))) is not None:
        try:
            session = await iap_login.log_in(page_request, assertion)
        except errors.CallerError as error:
            problem = error
    if session is not None:
        page_request.sign_in(session)
        return page_request.redirect(after_login(session, then))
    return await _show_login(page_request, then=then if request_context.own_page(then) == then else "", problem=problem)


@post("/login", status_code=HTTPStatus.OK)
async def login(page_request: NamedDependency[PageRequest]) -> Page:
    if request_context.media_type(page_request.request) == "application/json":
        wanted = forms.read_json(await page_request.read_body(), forms.LoginFields)
        credentials = auth.Credentials(wanted.password, wanted.username, wanted.email, wanted.code)
        return _json(await _login(page_request, credentials, auth.SessionKind.PROGRAM), HTTPStatus.OK)
    try:
        form = await page_request.read_form(forms.LoginForm, by_visitor=True)
    except errors.NotAllowed as error:
        return await _too_old(page_request, error)
    name = form.name.strip()
    # Usernames have no @, addresses always do.
    typed = auth.Credentials(form.password, email=name) if "@" in name else auth.Credentials(form.password, username=name)
    try:
        session = await _login(page_request, typed, auth.SessionKind.BROWSER)
    except errors.CallerError as error:
        return await _show_login(page_request, name=form.name, then=form.then, problem=error)
    page_request.sign_in(session)
    return page_request.redirect(after_login(session, form.then))


@post("/logout")
async def logout(page_request: NamedDependency[PageRequest]) -> Page:
    if page_request.session_token is None:
        await page_request.read_fields()
        return page_request.redirect("/")
    await page_request.read_form(forms.Confirmation)
    token = page_request.session_token
    ends_at = await _end_at_provider(page_request, token)
    try:
        await page_request.app.caller.call(auth.logout_user, auth.LogoutUser(token))
    except errors.NotAuthenticated:
        # The session has already expired; delete the cookie anyway.
        pass
    page_request.sign_out()
    if ends_at is None:
        return page_request.redirect("/")
    return provider_redirect.page(page_request, ends_at, provider_redirect.RedirectReason.LOG_OUT)


@get("/login-link")
async def show_login_link(page_request: NamedDependency[PageRequest], token: FromQuery[str] = "") -> Page:
    """Show a button only, so that a mail scanner or a prefetch does not consume the link."""
    return page_request.page("login_link.html", LoginLinkPage(link=token))


@post("/login-link")
async def redeem_login_link(page_request: NamedDependency[PageRequest]) -> Page:
    link = await page_request.read_field("link", by_visitor=True)
    try:
        request = auth.RedeemLoginLink(link, page_request.client(), page_request.find_cookie("browser") or "")
        session = await page_request.app.caller.call(auth.redeem_login_link, request)
    except errors.CallerError as error:
        return await _show_login(page_request, problem=error)
    page_request.sign_in(session)
    return page_request.redirect(after_login(session, ""))


def after_login(session: auth.LoginSession, then: str) -> str:
    """Return the missing sign-in step, or the requested page."""
    step, page = STEPS.get(session.step), request_context.own_page(then)
    if step is None:
        return page
    return step if page == request_context.HOME else f"{step}?then={page}"


async def end_session(page_request: PageRequest) -> None:
    """End the session at auth. If auth is down, the session expires within the hour."""
    if page_request.session_token is not None:
        with contextlib.suppress(errors.AimeshError):
            await page_request.app.caller.call(auth.logout_user, auth.LogoutUser(page_request.session_token))


async def find_options(page_request: PageRequest, *, deadline_seconds: float = request_context.PAGE_CALL_SECONDS) -> accounts.SignInOptions:
    """Return auth's sign-in options, or the defaults while auth is down."""
    try:
        return await page_request.app.caller.call(
            accounts.get_sign_in_options, accounts.GetSignInOptions(), deadline_seconds=deadline_seconds
        )
    except errors.AimeshError:
        return accounts.SignInOptions(open_registration=True, password_min_length=page_request.app.settings.password_min_length)


async def _end_at_provider(page_request: PageRequest, token: str) -> str | None:
    """Return the provider's logout URL; None without one or while auth is down."""
    request = accounts.LeaveOidc(token, f"{page_request.address}/")
    try:
        left = await page_request.app.caller.call(accounts.leave_oidc, request, deadline_seconds=request_context.PAGE_CALL_SECONDS)
    except errors.AimeshError:
        return None
    return left.url


async def _too_old(page_request: PageRequest, error: errors.NotAllowed) -> Page:
    """Handle a form whose token no longer matches: another tab signed in, or the browser was restarted."""
    if not page_request.posted:
        # The form came from another site, not from one of our pages.
        raise error
    then = page_request.posted.get("then", "")
    session = await page_request.find_session()
    if session is not None:
        return page_request.redirect(after_login(session, then))
    problem = errors.NotAllowed("this page was open for too long", hint="enter your password again")
    return await _show_login(page_request, name=page_request.posted.get("name", ""), then=then, problem=problem)


async def _welcome(page_request: PageRequest, user: auth.User, form: forms.RegistrationForm) -> Page:
    """Return the new account's first page, with its first key. The account exists, so later failures are reported, not undone."""
    try:
        session = await _login(page_request, auth.Credentials(form.password, username=user.username), auth.SessionKind.BROWSER)
    except errors.AimeshError as error:
        return await _show_login(page_request, name=user.username, then=form.then, registered=True, problem=error)
    page_request.sign_in(session)
    if form.invitation:
        page_request.keep_invitation(None)
    if session.step is not auth.Step.DONE:
        return page_request.redirect(after_login(session, form.then))
    if form.invitation:
        # If this fails, the user can still use the link in the email.
        with contextlib.suppress(errors.AimeshError):
            await page_request.call(organizations.accept_invitation, organizations.AcceptInvitation(form.invitation.strip()))
    then = request_context.own_page(form.then)
    return await overview.welcome(page_request, new_key=await _first_key(page_request), then="" if then == request_context.HOME else then)


async def _first_key(page_request: PageRequest) -> Credential | None:
    request = auth.GenerateApiKey(name=FIRST_KEY_NAME)
    try:
        return (await page_request.call(auth.generate_api_key, request)).api_key
    except errors.AimeshError:
        # The page links to the key page, where another attempt shows the error.
        return None


async def _register(page_request: PageRequest, user: auth.UserData, invitation: str | None) -> auth.User:
    request = auth.RegisterUser(user, page_request.client(), invitation)
    async with page_request.take_turn():
        return await page_request.app.caller.call(auth.register_user, request, deadline_seconds=PASSWORD_CALL_SECONDS)


async def _login(page_request: PageRequest, credentials: auth.Credentials, kind: auth.SessionKind) -> auth.LoginSession:
    browser = (page_request.find_cookie("browser") or "") if kind is auth.SessionKind.BROWSER else ""
    request = auth.LoginUser(credentials, kind, page_request.client(), browser)
    async with page_request.take_turn():
        return await page_request.app.caller.call(auth.login_user, request, deadline_seconds=PASSWORD_CALL_SECONDS)


async def _show_register(page_request: PageRequest, form: forms.RegistrationForm, problem: errors.AimeshError | None = None) -> Page:
    options, offer = await find_options(page_request), await join.find_offer(page_request)
    is_kept = form.invitation == page_request.invitation
    view = RegisterPage(
        is_open=options.open_registration,
        password_min_length=options.password_min_length,
        oidc_name=options.oidc_name,
        username=form.username,
        email=form.email or ("" if offer is None else offer.email),
        invitation="" if is_kept and offer is None else form.invitation,
        offer=offer if is_kept else None,
        then=form.then,
    )
    return page_request.page("register.html", view, problem=problem)


async def _show_login(
    page_request: PageRequest, *, name: str = "", then: str = "", problem: errors.AimeshError | None = None, registered: bool = False
) -> Page:
    options = await find_options(page_request)
    view = LoginPage(oidc_name=options.oidc_name, is_open=options.open_registration, name=name, then=then, registered=registered)
    return page_request.page("login.html", view, here="login", problem=problem, notices=_DONE)


def _json(answer: msgspec.Struct, status: HTTPStatus) -> Page:
    return Page(msgspec.json.encode(_in_snake_case(answer)), media_type=MediaType.JSON, status_code=status)


def _in_snake_case(value: object) -> object:
    """Return a message with snake_case names, as in the rest of the API."""
    if not isinstance(value, msgspec.Struct):
        return value
    return {name: _in_snake_case(part) for name, part in msgspec.structs.asdict(value).items()}
