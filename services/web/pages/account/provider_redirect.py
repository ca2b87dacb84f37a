"""Send the browser to the login provider, or to the payment provider, with an intermediate page.

Browsers check redirects after a form against the policy's `form-action`, which allows only our origin. A page that redirects itself is
not a form.
"""

from dataclasses import dataclass
from enum import StrEnum

from services.web.request_context import Page, PageRequest
from shared.api import accounts


class RedirectReason(StrEnum):
    LOG_IN = "login"
    LOG_OUT = "logout"
    PAY = "pay"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeavingPage:
    url: str
    why: RedirectReason


def page(page_request: PageRequest, url: str, why: RedirectReason) -> Page:
    return page_request.page("login_leaving.html", LeavingPage(url=url, why=why), here="login")


def begin(page_request: PageRequest, start: accounts.OidcStart) -> Page:
    """Start a login at the provider, and set the cookie that binds it to this browser."""
    page_request.set_cookie("login", start.binding)
    return page(page_request, start.url, RedirectReason.LOG_IN)


def callback(page_request: PageRequest) -> str:
    """Return the redirect URI to register at the provider."""
    return f"{page_request.address}/login/oidc/back"
