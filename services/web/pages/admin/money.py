"""Show what this mesh sells: revenue by month, customers, invoices and plans. Mark invoices as paid, and take them back."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import ClassVar

from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from services.web import features, paged_search
from services.web.features import ShownSection
from services.web.pages.billing import ROWS_OF_A_PAGE, invoice_page
from services.web.pages.organizations import read_id
from services.web.request_context import Page, PageRequest
from shared import currency, errors, plan_names
from shared.api import billing as api
from shared.api import business, ledger
from shared.api.billing import Customer, Invoice, MonthRevenue, Plan, PlanState
from shared.api.method import Method, Request
from shared.lists.billing import INVOICES, PLANS
from shared.lists.columns import Column, Listing, Tone
from shared.lists.prices import are_examples
from shared.types import TenantId, UserId

_STATES = {PlanState.GIVEN: ("Given", Tone.OFF), PlanState.ACTIVE: ("Active", Tone.GOOD), PlanState.PAST_DUE: ("Late", Tone.BAD)}
_CUSTOMERS_OF_A_PAGE = 100


#: A month, and its text and number by currency.
RevenueLine = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MoneyPage:
    currencies: tuple[str, ...]
    revenue: tuple[RevenueLine, ...]
    customers: tuple[Customer, ...]
    customer_list: Listing[Customer]
    next_customers: str
    invoices: tuple[Invoice, ...]
    invoice_list: ClassVar[Listing[Invoice]] = INVOICES
    #: Which invoices are shown.
    only_open: bool
    owner: str
    newest: str
    older: str
    is_later_page: bool
    #: Of features.
    sections: Sequence[ShownSection]
    has_example_prices: bool
    plans: tuple[Plan, ...]
    plan_list: ClassVar[Listing[Plan]] = PLANS


@get("/admin/money")
async def show_money(
    page_request: NamedDependency[PageRequest],
    after: FromQuery[str] = "",
    before: FromQuery[str] = "",
    owner: FromQuery[str] = "",
    show: FromQuery[str] = "",
) -> Page:
    """Raises NotFound if this mesh sells nothing."""
    only_open, whose, place = show == "open", _read_owner(owner), _read_owner(after)
    request = api.ListInvoices(whose, everyone=whose is None, only_open=only_open, before=before or None, limit=ROWS_OF_A_PAGE)
    revenue, customers, invoices, plans, sections, prices = await asyncio.gather(
        page_request.call(api.read_revenue, api.ReadRevenue()),
        page_request.call(api.list_customers, api.ListCustomers(place, _CUSTOMERS_OF_A_PAGE)),
        page_request.call(api.list_invoices, request),
        page_request.call(api.list_plans, api.ListPlans()),
        features.read_sections(page_request, "/admin/money"),
        page_request.fetch(ledger.list_prices, ledger.ListPrices()),
    )
    found, rows = customers.customers, invoices.invoices
    ids = tuple(UserId(each.owner) for each in found)
    names = await page_request.fetch(business.name_users, business.NameUsers(ids)) if ids else None
    filters = {name: value for name, value in (("owner", owner), ("show", show)) if value}
    currencies = tuple(sorted({each.currency for each in revenue.months}))
    view = MoneyPage(
        currencies=currencies,
        revenue=tuple(revenue_lines(revenue.months, currencies)),
        customers=found,
        customer_list=_list_customers(names.names if names else {}),
        next_customers=paged_search.address("/admin/money", {"after": str(found[-1].owner)}) if len(found) == _CUSTOMERS_OF_A_PAGE else "",
        invoices=rows,
        only_open=only_open,
        owner=owner,
        newest=paged_search.address("/admin/money", filters),
        older=paged_search.address("/admin/money", filters | {"before": rows[-1].number}) if len(rows) == ROWS_OF_A_PAGE else "",
        is_later_page=bool(before),
        sections=sections,
        has_example_prices=prices is not None and are_examples(prices.prices),
        plans=plans.plans,
    )
    return page_request.page("admin/money.html", view)


@post("/admin/money/invoices/{number:str}/pay")
async def pay_invoice(page_request: NamedDependency[PageRequest], number: FromPath[str]) -> Page:
    reference = await page_request.read_field("reference")
    return await _change(page_request, number, api.pay_invoice, api.PayInvoice(number, reference.strip()))


@post("/admin/money/invoices/{number:str}/void")
async def void_invoice(page_request: NamedDependency[PageRequest], number: FromPath[str]) -> Page:
    reason = await page_request.read_field("reason")
    return await _change(page_request, number, api.void_invoice, api.VoidInvoice(number, reason.strip()))


@post("/admin/money/invoices/{number:str}/refund")
async def refund_invoice(page_request: NamedDependency[PageRequest], number: FromPath[str]) -> Page:
    reason = await page_request.read_field("reason")
    return await _change(page_request, number, api.void_invoice, api.VoidInvoice(number, reason.strip(), refund=True))


async def _change(page_request: PageRequest, number: str, method: Method[Request, Invoice], request: Request) -> Page:
    try:
        changed = await page_request.submit(method, request)
    except errors.CallerError as error:
        return await invoice_page(page_request, number, error)
    return page_request.redirect(f"/admin/money/invoices/{number}?done={changed.state}")


def revenue_lines(months: Sequence[MonthRevenue], currencies: Sequence[str]) -> Iterator[RevenueLine]:
    """Yield a line for each month from the first to the last."""
    paid = {(each.month, each.currency): each.net_minor for each in months}
    day, last = (date.fromisoformat(f"{each.month}-01") for each in (months[0], months[-1])) if months else (date.max, date.min)
    while day <= last:
        minor = [(paid.get((f"{day:%Y-%m}", each), 0), each) for each in currencies]
        texts = ((currency.written(*each), str(Decimal(each[0]).scaleb(-currency.decimals(each[1])))) for each in minor)
        yield f"{day:%b %Y}", tuple(texts)
        day = (day + timedelta(days=31)).replace(day=1)


def _list_customers(names: Mapping[str, str]) -> Listing[Customer]:
    return Listing(
        columns=(
            Column(title="Customer", show=lambda row: names.get(str(row.owner), str(row.owner)), wraps=True),
            Column(title="Plan", show=lambda row: row.plan and plan_names.name_of(row.plan), wraps=True),
            Column(title="Next plan", show=lambda row: row.next_plan and plan_names.name_of(row.next_plan), wraps=True),
            Column(title="State", show=lambda row: _STATES[row.state][0], tone=lambda row: _STATES[row.state][1]),
            Column(title="Paid by", show=lambda row: row.provider),
            Column(title="Period ends", show=lambda row: row.period_ends_at, is_day=True),
        ),
        empty="No customers yet.",
    )


def _read_owner(text: str) -> TenantId | None:
    return TenantId(read_id(text)) if text else None
