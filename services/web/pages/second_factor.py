"""What setting up a second factor shows, at a login that lacks it and in the settings alike: the seed once, and the recovery codes once.

The seed goes into the form that proves it, so that a mistyped code does not ask for another scan; it is in force only once proven.
"""

import re
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

import msgspec

from services.web import qr
from services.web.visits import Page, Visit
from shared import errors
from shared.api import accounts, auth

_URI = re.compile(r"otpauth://totp/[!-~]{1,600}")
_SECRET = re.compile(r"[A-Z2-7]{16,128}")


class SeedForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    code: str = ""
    uri: str = ""
    #: Where a login goes on.
    then: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A QR code as a path of SVG."""

    path: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedPage:
    action: str
    uri: str
    #: In groups of four letters, as people type.
    secret: str
    #: None for an address that is too long for a code; it is typed then.
    drawn: Drawn | None
    then: str
    #: At a login that cannot go on without it.
    is_login: bool
    problem: errors.AimeshError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CodesPage:
    codes: tuple[str, ...]
    #: Where it goes on.
    then: str
    #: A second factor was set up just now; otherwise the codes were renewed.
    is_new: bool


async def begin(visit: Visit, *, action: str, then: str = "") -> Page:
    """A new seed. Raises ConfirmationNeeded and whatever else ``beginMfa`` raises."""
    seed = await visit.call(accounts.begin_mfa, accounts.BeginMfa())
    return show_seed(visit, SeedForm(uri=seed.uri, then=then), action=action)


def show_seed(visit: Visit, form: SeedForm, *, action: str, problem: errors.CallerError | None = None) -> Page:
    view = SeedPage(
        action=action,
        uri=form.uri,
        secret=_grouped(secret_of(form.uri)),
        drawn=draw(form.uri),
        then=form.then,
        is_login=visit.person.step is not auth.Step.DONE,
        problem=problem,
    )
    return visit.page("settings/second_factor.html", view, status=HTTPStatus.OK if problem is None else problem.status)


async def enable(visit: Visit, form: SeedForm, *, action: str, then: str) -> Page:
    """The recovery codes, or the same seed again with what was wrong."""
    try:
        answer = await visit.call(accounts.enable_mfa, accounts.EnableMfa(form.code.strip()))
    except (errors.NotAuthenticated, errors.ConfirmationNeeded):
        raise
    except errors.CallerError as error:
        return show_seed(visit, form, action=action, problem=error)
    if answer.session is not None:
        visit.sign_in(answer.session)
    return show_codes(visit, answer, then=then, is_new=True)


def show_codes(visit: Visit, answer: accounts.RecoveryCodes, *, then: str, is_new: bool) -> Page:
    """Of the answer to a form, because nothing else may carry them."""
    return visit.page("settings/recovery_codes.html", CodesPage(codes=answer.codes, then=then, is_new=is_new))


def secret_of(uri: str) -> str:
    """Raises BadRequest for what is no address of an authenticator app."""
    if _URI.fullmatch(uri):
        try:
            secret = parse_qs(urlsplit(uri).query).get("secret", [""])[0]
        except ValueError:
            secret = ""
        if _SECRET.fullmatch(secret):
            return secret
    raise errors.BadRequest("this form has lost its seed", hint="open the page again and scan the new code")


def draw(uri: str) -> Drawn | None:
    try:
        matrix = qr.encode(uri)
    except ValueError:
        return None
    return Drawn(path=qr.svg_path(matrix), size=len(matrix) + 2 * qr.QUIET)


def _grouped(secret: str) -> str:
    return " ".join(secret[place : place + 4] for place in range(0, len(secret), 4))
