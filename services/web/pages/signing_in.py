"""Register, log in, log out: by form for people, by JSON for programs."""

from http import HTTPStatus

import msgspec
from litestar import MediaType, get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web import forms, problems, views, visits
from services.web.pages import overview
from services.web.visits import Page, Visit
from shared import errors
from shared.api import auth
from shared.types import Credential

#: argon2 may have to wait for its turn in auth's queue.
PASSWORD_CALL_SECONDS = 10.0
FIRST_KEY_NAME = "first key"


@get("/register")
async def show_register(visit: NamedDependency[Visit]) -> Page:
    if await visit.find_session() is not None:
        return visit.redirect("/dashboard")
    return visit.page("register.html", _register_page(visit), here="register")


@post("/register")
async def register(visit: NamedDependency[Visit]) -> Page:
    if visits.media_type(visit.request) == "application/json":
        wanted = forms.read_json(await visit.request.body(), forms.Registration)
        user = await _register(visit, auth.UserData(wanted.username, wanted.email, wanted.password))
        return _json(user, HTTPStatus.CREATED)
    if await visit.find_session() is not None:
        # A reload of the answer to this form: the account is there and the key has been shown.
        await visit.read_fields()
        return visit.redirect("/dashboard")
    form = await visit.read_form(forms.RegistrationForm, by_visitor=True)
    try:
        user = await _register(visit, auth.UserData(form.username.strip(), form.email.strip(), form.password))
    except errors.CallerError as error:
        view = _register_page(visit, form, error)
        return visit.page("register.html", view, here="register", status=error.status)
    return await _welcome(visit, user, form.password)


@get("/login")
async def show_login(visit: NamedDependency[Visit], then: FromQuery[str] = "") -> Page:
    if await visit.find_session() is not None:
        return visit.redirect(_after_login(then))
    return visit.page("login.html", views.LoginPage(then=then if visits.own_page(then) == then else ""), here="login")


@post("/login", status_code=HTTPStatus.OK)
async def login(visit: NamedDependency[Visit]) -> Page:
    if visits.media_type(visit.request) == "application/json":
        wanted = forms.read_json(await visit.request.body(), forms.Login)
        credentials = auth.Credentials(wanted.password, wanted.username, wanted.email)
        return _json(await _login(visit, credentials), HTTPStatus.OK)
    form = await visit.read_form(forms.LoginForm, by_visitor=True)
    try:
        session = await _login(visit, _credentials(form.name.strip(), form.password))
    except errors.CallerError as error:
        return visit.page("login.html", views.LoginPage(name=form.name, then=form.then, problem=error), here="login", status=error.status)
    visit.sign_in(session)
    return visit.redirect(_after_login(form.then))


@post("/logout")
async def logout(visit: NamedDependency[Visit]) -> Page:
    if visit.session_token is None:
        await visit.read_fields()
    else:
        await visit.read_form(forms.Confirmation)
        try:
            await visit.site.caller.call(auth.logout_user, auth.LogoutUser(visit.session_token))
        except errors.NotAuthenticated:
            # It had ended by itself; the browser forgets it all the same.
            pass
    visit.sign_out()
    return visit.redirect("/")


@get("/login-link")
async def show_login_link(visit: NamedDependency[Visit], token: FromQuery[str] = "") -> Page:
    """Only shows a button: a mail scanner or a prefetch that opens the link must not use it up."""
    return visit.page("login_link.html", views.LoginLinkPage(link=token))


@post("/login-link")
async def redeem_login_link(visit: NamedDependency[Visit]) -> Page:
    form = await visit.read_form(forms.LoginLinkForm, by_visitor=True)
    try:
        session = await visit.site.caller.call(auth.redeem_login_link, auth.RedeemLoginLink(form.link))
    except errors.CallerError as error:
        return visit.page("login.html", views.LoginPage(problem=error), here="login", status=error.status)
    visit.sign_in(session)
    return visit.redirect("/dashboard")


async def _welcome(visit: Visit, user: auth.User, password: str) -> Page:
    """The new account's first page, with its first key. From here on the account exists, so whatever fails is said and not undone."""
    try:
        session = await _login(visit, auth.Credentials(password, username=user.username))
    except errors.AimeshError as error:
        view = views.LoginPage(name=user.username, registered=True, problem=error)
        return visit.page("login.html", view, here="login", status=problems.status(error))
    visit.sign_in(session)
    return await overview.show(visit, new_key=await _first_key(visit), welcome=True)


async def _first_key(visit: Visit) -> Credential | None:
    request = auth.GenerateApiKey(name=FIRST_KEY_NAME)
    try:
        return (await visit.call(auth.generate_api_key, request)).api_key
    except errors.AimeshError:
        # The page then leads to the key page, where the next attempt says what is wrong.
        return None


async def _register(visit: Visit, user: auth.UserData) -> auth.User:
    return await visit.site.caller.call(auth.register_user, auth.RegisterUser(user), deadline_seconds=PASSWORD_CALL_SECONDS)


async def _login(visit: Visit, credentials: auth.Credentials) -> auth.Session:
    return await visit.site.caller.call(auth.login_user, auth.LoginUser(credentials), deadline_seconds=PASSWORD_CALL_SECONDS)


def _register_page(
    visit: Visit, form: forms.RegistrationForm | None = None, problem: errors.AimeshError | None = None
) -> views.RegisterPage:
    return views.RegisterPage(
        username=form.username if form else "",
        email=form.email if form else "",
        password_min_length=visit.site.settings.password_min_length,
        problem=problem,
    )


def _credentials(name: str, password: str) -> auth.Credentials:
    # Usernames have no @, addresses always do.
    return auth.Credentials(password, email=name) if "@" in name else auth.Credentials(password, username=name)


def _after_login(then: str) -> str:
    return visits.own_page(then)


def _json(answer: msgspec.Struct, status: HTTPStatus) -> Page:
    return Page(msgspec.json.encode(answer), media_type=MediaType.JSON, status_code=status)


ROUTES = (show_register, register, show_login, login, logout, show_login_link, redeem_login_link)
