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


class RedirectReason(StrEnum):
    LOG_IN = "login"
    LOG_OUT = "logout"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeavingPage:
    url: str
    why: RedirectReason


def page(page_request: PageRequest, url: str, why: RedirectReason) -> Page:
    return page_request.page("login_leaving.html", LeavingPage(url=url, why=why), here="login")


def begin(page_request: PageRequest, start: accounts.OidcStart) -> Page:
    """Start a login at the provider, and set the cookie that binds it to this browser."""
    answer = page(page_request, start.url, RedirectReason.LOG_IN)
    answer.set_cookie(_cookie(page_request, start.binding, BINDING_SECONDS))
    return answer


def binding(page_request: PageRequest) -> str:
    """Return the binding cookie; empty without one."""
    return page_request.request.cookies.get(_name(page_request), "")


def forget(page_request: PageRequest, answer: Page) -> Page:
    """Delete the binding cookie: it works once."""
    answer.set_cookie(_cookie(page_request, "", 0))
    return answer


def callback(page_request: PageRequest) -> str:
    """Return the redirect URI to register at the provider."""
    return f"{page_request.address}/login/oidc/back"


def _cookie(page_request: PageRequest, value: str, seconds: int) -> Cookie:
    return Cookie(_name(page_request), value=value, max_age=seconds, path="/", secure=page_request.secure, httponly=True, samesite="lax")


def _name(page_request: PageRequest) -> str:
    return "__Host-aimesh_login" if page_request.secure else "aimesh_login"
