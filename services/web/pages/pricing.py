"""Show the plans for sale and the prices of models to anyone, with PRICING_PAGE=on."""

import asyncio
from dataclasses import dataclass

from litestar import get
from litestar.di import NamedDependency

from services.web.pages import landing
from services.web.pages.landing import STATUS_CALL_SECONDS
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import billing, ledger
from shared.api.billing import Plan
from shared.api.ledger import ModelPrice
from shared.lists.columns import Listing
from shared.lists.prices import in_order, list_prices


@dataclass(frozen=True, slots=True, kw_only=True)
class PricingPage:
    #: Empty while MONEY is off.
    plans: tuple[Plan, ...]
    prices: tuple[ModelPrice, ...]
    listing: Listing[ModelPrice]


@get("/pricing")
async def show_pricing(page_request: NamedDependency[PageRequest]) -> Page:
    settings, call = page_request.app.settings, page_request.app.caller.call
    if settings.pricing_page == "off":
        raise errors.NotFound("page not found")
    # Everyone sees what visitors see, so these calls have no credential.
    plans, found, _ = await asyncio.gather(
        call(billing.list_plans, billing.ListPlans(), deadline_seconds=STATUS_CALL_SECONDS),
        call(ledger.list_prices, ledger.ListPrices(), deadline_seconds=STATUS_CALL_SECONDS),
        landing.session_if_auth_answers(page_request),
    )
    view = PricingPage(
        plans=plans.plans if settings.money == "on" else (),
        prices=tuple(sorted(found.prices, key=in_order)),
        listing=list_prices(found.prices),
    )
    return page_request.page("billing/pricing.html", view)
