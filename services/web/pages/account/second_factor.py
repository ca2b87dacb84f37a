"""Set up a second factor, during sign-in and in the settings, and ask for its code after the password.

The seed and the recovery codes are shown once. The form carries the seed, so a mistyped code does not require another scan. Auth enables
the seed only after a correct code.
"""

import re
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

import msgspec
import segno
from litestar import MediaType, get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery
from markupsafe import Markup

from services.web import request_context
from services.web.http import downloads
from services.web.pages.account import signing_in
from services.web.request_context import ConfirmFirst, Page, PageRequest
from shared import errors
from shared.api import accounts, auth

_URI = re.compile(r"otpauth://totp/[!-~]{1,600}")
_SECRET = re.compile(r"[A-Z2-7]{16,128}")
#: The largest code, version 10 at error correction level M. A denser one is hard to scan from a screen.
MAX_DRAWN_BYTES = 213
_SET_UP = "/login/second-factor"
DOWNLOAD = "/settings/security/recovery-codes.txt"
_RECOVERY_CODE = re.compile(r"[0-9a-z]{4}(-[0-9a-z]{4}){2}")
_MAX_CODES = 20


class SeedForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    code: str = ""
    uri: str = ""
    then: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedPage:
    action: str
    uri: str
    #: In groups of four characters, for typing.
    secret: str
    #: The QR code as an SVG element; None if the URI is too long.
    drawn: Markup | None
    then: str
    #: Whether sign-in requires it.
    is_login: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CodesPage:
    codes: tuple[str, ...]
    then: str
    #: True after setup, false after renewing the codes.
    is_new: bool


def show_seed(page_request: PageRequest, form: SeedForm, *, action: str, problem: errors.CallerError | None = None) -> Page:
    secret = secret_of(form.uri)
    view = SeedPage(
        action=action,
        uri=form.uri,
        secret=" ".join(secret[place : place + 4] for place in range(0, len(secret), 4)),
        drawn=draw(form.uri),
        then=form.then,
        is_login=page_request.person.step is not auth.Step.DONE,
    )
    return page_request.page("settings/second_factor.html", view, here="", problem=problem)


async def enable(page_request: PageRequest, form: SeedForm, *, action: str, then: str) -> Page:
    """Enable the seed and show the recovery codes, or show the seed again with the error. Raises what ``submit`` raises."""
    try:
        answer = await page_request.submit(accounts.enable_mfa, accounts.EnableMfa(form.code.strip()))
    except errors.CallerError as error:
        return show_seed(page_request, form, action=action, problem=error)
    if answer.session is not None:
        page_request.sign_in(answer.session)
    return show_codes(page_request, answer, then=then, is_new=True)


def show_codes(page_request: PageRequest, answer: accounts.RecoveryCodes, *, then: str, is_new: bool) -> Page:
    """Show the codes in the response to a form, because nothing else may carry them."""
    return page_request.page("settings/recovery_codes.html", CodesPage(codes=answer.codes, then=then, is_new=is_new))


def secret_of(uri: str) -> str:
    """Return the secret of an otpauth URI. Raises BadRequest if it is invalid."""
    if _URI.fullmatch(uri):
        try:
            secret = parse_qs(urlsplit(uri).query).get("secret", [""])[0]
        except ValueError:
            secret = ""
        if _SECRET.fullmatch(secret):
            return secret
    raise errors.BadRequest("the form has no valid seed", hint="reload the page and scan the new code")


def draw(uri: str) -> Markup | None:
    """Return the QR code as an SVG element without styles, which the CSP forbids; None if the URI is too long."""
    if len(uri.encode()) > MAX_DRAWN_BYTES:
        return None
    code = segno.make_qr(uri, error="m", mode="byte", boost_error=False)
    return Markup(code.svg_inline(svgclass="qr", lineclass=None, omitsize=True, dark="#000", light="#fff"))  # noqa: S704 - made by segno


@post(DOWNLOAD, status_code=HTTPStatus.OK)
async def download_codes(page_request: NamedDependency[PageRequest]) -> Page:
    """Return the codes of the form as a file: only the page that shows them has them."""
    codes = (await page_request.read_field("codes")).split()
    if not 0 < len(codes) <= _MAX_CODES or not all(_RECOVERY_CODE.fullmatch(code) for code in codes):
        raise errors.BadRequest("these are no recovery codes", hint="create new ones in your security settings")
    user, day = page_request.person.user, f"{page_request.app.now():%Y-%m-%d}"
    lines = (f"Recovery codes of {user.username} at {page_request.address}, created {day}.", "Each code signs you in once.", "", *codes, "")
    content = "\r\n".join(lines).encode()
    return Page(content, media_type=MediaType.TEXT, headers=downloads.attachment("aimesh-recovery-codes.txt"))


class LoginCodeForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: Six digits, or a recovery code.
    code: str
    then: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodePage:
    username: str
    then: str


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
    form = SeedForm(uri=seed.uri, then=request_context.own_page(then))
    return show_seed(page_request, form, action=_SET_UP)


@post(_SET_UP)
async def set_up(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(SeedForm)
    if page_request.person.step is not auth.Step.SET_UP_MFA:
        return page_request.redirect(signing_in.after_login(page_request.person, form.then))
    try:
        return await enable(page_request, form, action=_SET_UP, then=request_context.own_page(form.then))
    except ConfirmFirst:
        return await _begin_again(page_request)


async def _begin_again(page_request: PageRequest) -> Page:
    """End a sign-in that took too long: an incomplete one cannot be confirmed again."""
    await signing_in.end_session(page_request)
    page_request.sign_out()
    return page_request.redirect("/login?done=late")


def _code_page(page_request: PageRequest, then: str, problem: errors.CallerError | None = None) -> Page:
    view = CodePage(username=page_request.person.user.username, then=then)
    return page_request.page("login_code.html", view, problem=problem)
