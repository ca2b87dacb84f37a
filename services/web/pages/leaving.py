"""A page that leads the browser away, to the login provider. Browsers hold a redirect to the answer of a form against `form-action`
of the policy, which names nobody but us; a page that goes on by itself is not a form."""

from dataclasses import dataclass
from enum import StrEnum

from litestar.datastructures import Cookie

from services.web.visits import Page, Visit
from shared.api import accounts

#: As long as auth remembers a login that has begun.
BINDING_SECONDS = 600


class Why(StrEnum):
    LOG_IN = "login"
    LOG_OUT = "logout"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeavingPage:
    url: str
    why: Why


def page(visit: Visit, url: str, why: Why) -> Page:
    return visit.page("login_leaving.html", LeavingPage(url=url, why=why), here="login")


def begin(visit: Visit, start: accounts.OidcStart) -> Page:
    """To the provider, with the cookie that whoever comes back has to bring."""
    answer = page(visit, start.url, Why.LOG_IN)
    answer.set_cookie(_cookie(visit, start.binding, BINDING_SECONDS))
    return answer


def binding(visit: Visit) -> str:
    """Empty where there is none."""
    return visit.request.cookies.get(_name(visit), "")


def forget(visit: Visit, answer: Page) -> Page:
    """Each is good once."""
    answer.set_cookie(_cookie(visit, "", 0))
    return answer


def way_back(visit: Visit) -> str:
    """The address that has to be registered at the provider."""
    return f"{visit.address}/login/oidc/back"


def _cookie(visit: Visit, value: str, seconds: int) -> Cookie:
    return Cookie(_name(visit), value=value, max_age=seconds, path="/", secure=visit.secure, httponly=True, samesite="lax")


def _name(visit: Visit) -> str:
    return "__Host-aimesh_login" if visit.secure else "aimesh_login"
