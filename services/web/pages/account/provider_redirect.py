"""Send the browser to the login provider with an intermediate page.

Browsers check redirects after a form against the policy's `form-action`, which allows only our origin. A page that redirects itself is
not a form.
"""

from dataclasses import dataclass
from enum import StrEnum

from litestar.datastructures import Cookie

from services.web.request_context import Page, PageRequest
from shared.api import accounts

#: How long auth remembers a started login.
BINDING_SECONDS = 600


class Why(StrEnum):
    LOG_IN = "login"
    LOG_OUT = "logout"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeavingPage:
    url: str
    why: Why


def page(visit: PageRequest, url: str, why: Why) -> Page:
    return visit.page("login_leaving.html", LeavingPage(url=url, why=why), here="login")


def begin(visit: PageRequest, start: accounts.OidcStart) -> Page:
    """Start a login at the provider, and set the cookie that binds it to this browser."""
    answer = page(visit, start.url, Why.LOG_IN)
    answer.set_cookie(_cookie(visit, start.binding, BINDING_SECONDS))
    return answer


def binding(visit: PageRequest) -> str:
    """Return the binding cookie; empty without one."""
    return visit.request.cookies.get(_name(visit), "")


def forget(visit: PageRequest, answer: Page) -> Page:
    """Delete the binding cookie: it works once."""
    answer.set_cookie(_cookie(visit, "", 0))
    return answer


def way_back(visit: PageRequest) -> str:
    """Return the redirect URI to register at the provider."""
    return f"{visit.address}/login/oidc/back"


def _cookie(visit: PageRequest, value: str, seconds: int) -> Cookie:
    return Cookie(_name(visit), value=value, max_age=seconds, path="/", secure=visit.secure, httponly=True, samesite="lax")


def _name(visit: PageRequest) -> str:
    return "__Host-aimesh_login" if visit.secure else "aimesh_login"
