"""Sign in with the header that Google's Identity-Aware Proxy adds. Auth verifies it; here it is only passed on."""

from services.web.request_context import PageRequest
from shared.api import accounts, auth

HEADER = "x-goog-iap-jwt-assertion"
#: Auth may have to fetch IAP's keys.
IAP_CALL_SECONDS = 10.0


def find_assertion(page_request: PageRequest, options: accounts.SignInOptions) -> str | None:
    """Return the header; None without one, or if auth doesn't take users from IAP."""
    return page_request.request.headers.get(HEADER) if options.iap else None


async def log_in(page_request: PageRequest, assertion: str) -> auth.LoginSession | None:
    """Raises a CallerError if auth doesn't accept the header or has no account for it."""
    request = accounts.LoginByIap(assertion, page_request.client())
    return (await page_request.app.caller.call(accounts.login_by_iap, request, deadline_seconds=IAP_CALL_SECONDS)).session


async def link(page_request: PageRequest, assertion: str) -> None:
    """Link the account of this session to the identity in the header."""
    request = accounts.LoginByIap(assertion, page_request.client(), page_request.session_token)
    await page_request.submit(accounts.login_by_iap, request, deadline_seconds=IAP_CALL_SECONDS)
