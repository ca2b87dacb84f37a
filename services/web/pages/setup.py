"""Show the administrators' setup checklist on the overview and on its own page, with a test email."""

import asyncio
from dataclasses import dataclass

from litestar import get, post
from litestar.di import NamedDependency

from services.web.http import forms
from services.web.pages import setup_view
from services.web.pages.setup_view import Checklist
from services.web.request_context import HOME, Page, PageRequest
from shared import errors
from shared.api import gateway, ledger
from shared.api import service_settings as api
from shared.api.service_settings import MailTestResult

_HERE = "/admin/setup"
#: Longer than auth's deadline for the mail server.
_MAIL_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupPage:
    setup: Checklist
    #: Set only in the response to the test email.
    mail: MailTestResult | None = None


@get(_HERE)
async def show_setup(page_request: NamedDependency[PageRequest]) -> Page:
    return await _page(page_request)


@post(f"{_HERE}/dismiss")
async def dismiss_setup(page_request: NamedDependency[PageRequest]) -> Page:
    is_dismissed = await page_request.read_field("dismissed", "yes") == "yes"
    await page_request.call(api.dismiss_setup, api.DismissSetup(is_dismissed))
    return page_request.redirect(HOME)


@post(f"{_HERE}/registration")
async def confirm_registration(page_request: NamedDependency[PageRequest]) -> Page:
    # As the page showed it.
    is_open = await page_request.read_field("open") == "yes"
    try:
        await page_request.submit(api.confirm_registration, api.ConfirmRegistration(is_open))
    except errors.CallerError as error:
        return await _page(page_request, problem=error)
    return page_request.redirect(_HERE)


@post(f"{_HERE}/mail")
async def send_test_mail(page_request: NamedDependency[PageRequest]) -> Page:
    await page_request.read_form(forms.Confirmation)
    try:
        result = await page_request.submit(api.send_test_mail, api.SendTestMail(), deadline_seconds=_MAIL_SECONDS)
    except errors.CallerError as error:
        return await _page(page_request, problem=error)
    return await _page(page_request, mail=result)


async def find_checklist(page_request: PageRequest) -> Checklist | None:
    """Return the checklist for the overview; None if it is done or dismissed, for other users, and while auth is down."""
    if not page_request.is_administrator:
        return None
    facts = await page_request.fetch(api.get_setup, api.GetSetup())
    if facts is None or facts.is_dismissed:
        return None
    found = await _read(page_request, facts)
    return found if found.is_shown else None


async def _read(page_request: PageRequest, facts: api.SetupFacts) -> Checklist:
    prices, nodes = await asyncio.gather(
        page_request.fetch(ledger.list_prices, ledger.ListPrices()), page_request.fetch(gateway.list_nodes, gateway.ListNodes())
    )
    return setup_view.checklist(facts, page_request.app.settings.public_url, prices, nodes)


async def _page(page_request: PageRequest, *, mail: MailTestResult | None = None, problem: errors.CallerError | None = None) -> Page:
    setup = await _read(page_request, await page_request.call(api.get_setup, api.GetSetup()))
    return page_request.page("admin/setup.html", SetupPage(setup=setup, mail=mail), problem=problem)
