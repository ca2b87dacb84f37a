"""Show the plan of the account and when its tokens end. Choose a plan, buy credits, and read invoices."""

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import msgspec
from litestar import MediaType, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from services.web import paged_search, rendering
from services.web.http import forms
from services.web.pages import quota_view
from services.web.pages.account import provider_redirect
from services.web.pages.organizations import read_id
from services.web.pages.quota_view import CreditsView
from services.web.request_context import Page, PageRequest
from shared import context, errors
from shared.api import billing as api
from shared.api import usage_report
from shared.api.billing import Billing, Invoice, Plan
from shared.api.ledger import Allowance
from shared.api.method import Method, Request
from shared.lists.billing import INVOICES, state
from shared.lists.columns import Listing, Tone
from shared.types import RequestId

ROWS_OF_A_PAGE = 50
_WEEK = timedelta(days=7)
_DONE = {
    "changed": "Plan changed.",
    "ordered": "Order placed. It takes effect once this invoice is paid.",
    "paid": "Invoice paid. Its plan or credits are in effect.",
    "void": "Invoice taken back by a credit note.",
    "refunded": "Invoice refunded by a credit note. Return the money yourself.",
}


class TopUpForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    amount: str = ""
    #: The page creates this id, so that submitting the form twice is one order.
    order: str = ""


_NOTHING_TYPED = TopUpForm()
_OWN_INVOICES = replace(INVOICES, columns=tuple(column for column in INVOICES.columns if column.title != "Customer"))


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingPage:
    billing: Billing
    credits: CreditsView
    used_percent: int
    held_percent: int
    forecast: str
    #: For sale.
    plans: tuple[Plan, ...]
    invoices: tuple[Invoice, ...]
    listing: ClassVar[Listing[Invoice]] = _OWN_INVOICES
    older: str
    is_later_page: bool
    typed: TopUpForm
    order: str
    bounds: ClassVar[tuple[int, int]] = (api.MIN_TOP_UP, api.MAX_TOP_UP)


@dataclass(frozen=True, slots=True, kw_only=True)
class InvoicePage:
    invoice: Invoice
    state: tuple[str, Tone]
    is_test: bool
    is_open: bool


@get("/billing")
async def show_billing(page_request: NamedDependency[PageRequest], before: FromQuery[str] = "") -> Page:
    return await _page(page_request, before=before)


@post("/billing/plan")
async def set_plan(page_request: NamedDependency[PageRequest]) -> Page:
    return await _order(page_request, api.set_plan, api.SetPlan(await page_request.read_field("plan")))


@post("/billing/top-ups")
async def order_top_up(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(TopUpForm)
    request = api.OrderTopUp(form.amount.strip(), RequestId(read_id(form.order)))
    return await _order(page_request, api.order_top_up, request, form)


@post("/billing/portal")
async def open_portal(page_request: NamedDependency[PageRequest]) -> Page:
    await page_request.read_form(forms.Confirmation)
    try:
        portal = await page_request.submit(api.open_portal, api.OpenPortal())
    except errors.CallerError as error:
        return await _page(page_request, problem=error)
    return provider_redirect.page(page_request, portal.url, provider_redirect.RedirectReason.PAY)


@get(["/billing/invoices/{number:str}", "/admin/money/invoices/{number:str}"])
async def show_invoice(page_request: NamedDependency[PageRequest], number: FromPath[str]) -> Page:
    return await invoice_page(page_request, number)


async def invoice_page(page_request: PageRequest, number: str, problem: errors.CallerError | None = None) -> Page:
    """Raises NotFound for an invoice of others."""
    found = await page_request.call(api.get_invoice, api.GetInvoice(number))
    if page_request.request.query_params.get("format") == "json":
        return Response(msgspec.json.encode(found), media_type=MediaType.JSON)
    is_open = found.state in {api.InvoiceState.OPEN, api.InvoiceState.LATE}
    view = InvoicePage(invoice=found, state=state(found), is_test=number.startswith("TEST-"), is_open=is_open)
    return page_request.page("billing/invoice.html", view, problem=problem, notices=_DONE)


async def _order(
    page_request: PageRequest, method: Method[Request, api.Order], request: Request, typed: TopUpForm = _NOTHING_TYPED
) -> Page:
    try:
        order = await page_request.submit(method, request)
    except errors.CallerError as error:
        return await _page(page_request, typed=typed, problem=error)
    if order.url is not None:
        return provider_redirect.page(page_request, order.url, provider_redirect.RedirectReason.PAY)
    return page_request.redirect("/billing?done=changed" if order.invoice is None else f"/billing/invoices/{order.invoice}?done=ordered")


async def _page(
    page_request: PageRequest, *, before: str = "", typed: TopUpForm = _NOTHING_TYPED, problem: errors.CallerError | None = None
) -> Page:
    """Raises NotFound if this mesh sells nothing."""
    now = page_request.app.now().astimezone(UTC)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    found, plans, listed, week = await asyncio.gather(
        page_request.call(api.read_billing, api.ReadBilling()),
        page_request.call(api.list_plans, api.ListPlans()),
        page_request.call(api.list_invoices, api.ListInvoices(before=before or None, limit=ROWS_OF_A_PAGE)),
        page_request.fetch(usage_report.get_usage_report, usage_report.GetUsageReport(since=today - _WEEK, until=today)),
    )
    allowance, rows = found.account.allowance, listed.invoices
    has_more = len(rows) == ROWS_OF_A_PAGE
    view = BillingPage(
        billing=found,
        credits=quota_view.credits(found.account),
        used_percent=_percent(allowance, allowance.used if allowance else 0),
        held_percent=_percent(allowance, allowance.held if allowance else 0),
        forecast=forecast(allowance, week.total.prompt_tokens + week.total.completion_tokens if week else None, now),
        plans=tuple(plan for plan in plans.plans if plan.for_sale),
        invoices=rows,
        older=paged_search.address("/billing", {"before": rows[-1].document.number}) if has_more else "",
        is_later_page=bool(before),
        typed=typed,
        order=typed.order or str(context.new_request_id()),
    )
    return page_request.page("billing/account.html", view, problem=problem, notices=_DONE)


def forecast(allowance: Allowance | None, tokens_in_a_week: int | None, now: datetime) -> str:
    """Say when the tokens of the plan end if usage stays as it is. Empty if they never do, or if usage is unavailable."""
    if allowance is None or allowance.left is None or tokens_in_a_week is None:
        return ""
    if not allowance.left:
        return f"No tokens are left until {rendering.day(allowance.renews_at)}."
    if not tokens_in_a_week:
        return "No usage in the 7 days before today."
    rate = f"At {-(-tokens_in_a_week // _WEEK.days):,} tokens a day, as in the 7 days before today, your tokens"
    ends_at = now + _WEEK * min(allowance.left / tokens_in_a_week, 1000)
    if ends_at >= allowance.renews_at:
        return f"{rate} last until they renew."
    days = (allowance.renews_at.date() - ends_at.date()).days
    return f"{rate} end on {rendering.day(ends_at)}" + (f", {days} day{'s' * (days > 1)} before they renew." if days else ".")


def _percent(allowance: Allowance | None, tokens: int) -> int:
    return min(100, 100 * tokens // allowance.included) if allowance and allowance.included else 0
