"""Show the prices and their history, and set new ones."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web.http import forms
from services.web.request_context import Page, PageRequest
from shared import amounts, errors
from shared.api import gateway, ledger
from shared.api.gateway import ServedModel
from shared.api.ledger import MICRO, ModelPrice
from shared.lists.columns import Column, Listing
from shared.lists.prices import in_order, list_prices
from shared.types import MicroCredits, ModelName

#: The example: input tokens, output tokens and compute seconds.
EXAMPLE_IN, EXAMPLE_OUT, EXAMPLE_SECONDS = 1000, 500, 5

_DONE = {"set": "New requests use this price. Running requests keep theirs."}


class PriceForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Amounts in credits."""

    #: Empty for the default.
    model: str = ""
    #: Per 1M tokens.
    input: str = ""
    output: str = ""
    request: str = ""
    compute_second: str = ""
    #: Empty for 1.
    weight: str = ""
    #: Empty for 50.
    batch_percent: str = ""


NOTHING_TYPED = PriceForm()


@dataclass(frozen=True, slots=True, kw_only=True)
class PricesPage:
    prices: tuple[ModelPrice, ...]
    listing: Listing[ModelPrice]
    with_history: bool
    #: Served models that use the default price.
    unpriced: tuple[ModelName, ...]
    #: False if the served models are unavailable.
    knows_models: bool
    typed: PriceForm
    example: ClassVar[tuple[int, int, int]] = (EXAMPLE_IN, EXAMPLE_OUT, EXAMPLE_SECONDS)


@get("/admin/prices")
async def show_prices(page_request: NamedDependency[PageRequest], history: FromQuery[str] = "", model: FromQuery[str] = "") -> Page:
    return await _page(page_request, with_history=history == "yes", typed=PriceForm(model=model[:200]))


@post("/admin/prices")
async def set_price(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(PriceForm)
    try:
        await page_request.submit(ledger.set_price, ledger.SetPrice(read_price(form)))
    except errors.CallerError as error:
        return await _page(page_request, with_history=False, typed=form, problem=error)
    return page_request.redirect("/admin/prices?done=set")


def read_price(form: PriceForm) -> ledger.ModelPrice:
    """Parse the form. Raises BadRequest."""
    model = form.model.strip()
    weight = forms.read_number(form.weight, "the plan’s tokens per token", ledger.ModelPrice, "allowance_weight")
    percent = forms.read_number(form.batch_percent, "the share for batches", ledger.ModelPrice, "batch_percent")
    return ledger.ModelPrice(
        ModelName(model) if model else None,
        _amount(form.input, "the input price"),
        _amount(form.output, "the output price"),
        _amount(form.request or "0", "the price per request"),
        _amount(form.compute_second or "0", "the price per compute second"),
        1 if weight is None else weight,
        batch_percent=50 if percent is None else percent,
    )


def _amount(text: str, what: str) -> MicroCredits:
    if not text.strip():
        raise errors.BadRequest(f"{what} is missing", hint="enter 0 if it is free")
    try:
        amount = amounts.read(text)
    except ValueError as error:
        raise errors.BadRequest(f"{what}: {error}", hint="enter a number such as 2.5") from error
    if amount < 0:
        raise errors.BadRequest(f"{what} is negative", hint="enter 0 if it is free")
    return amount


async def _page(page_request: PageRequest, *, with_history: bool, typed: PriceForm, problem: errors.CallerError | None = None) -> Page:
    """Raises PeerError while the gateway is down."""
    found, models = await asyncio.gather(
        page_request.call(ledger.list_prices, ledger.ListPrices(history=with_history)),
        page_request.fetch(gateway.list_models, gateway.ListModels()),
    )
    listing = list_prices(found.prices)
    *columns, since = listing.columns
    view = PricesPage(
        prices=tuple(sorted(found.prices, key=in_order)),
        listing=replace(listing, columns=(*columns, _EXAMPLE, since)),
        with_history=with_history,
        unpriced=without_own(models.models, found.prices) if models else (),
        knows_models=models is not None,
        typed=typed,
    )
    return page_request.page("admin/prices.html", view, problem=problem, notices=_DONE)


def cost_of_example(price: ModelPrice) -> MicroCredits:
    """Return the cost of the example. The total is rounded up once, as in the gateway."""
    millionths = EXAMPLE_IN * price.input_micro_per_million + EXAMPLE_OUT * price.output_micro_per_million
    return MicroCredits(-(-millionths // MICRO) + price.request_micro + EXAMPLE_SECONDS * price.compute_second_micro)


_EXAMPLE: Column[ModelPrice] = Column(title="Example", show=lambda price: amounts.grouped(cost_of_example(price)), is_number=True)


def without_own(served: Iterable[ServedModel], current: Iterable[ModelPrice]) -> tuple[ModelName, ...]:
    priced = {price.model for price in current}
    return tuple(sorted(model.name for model in served if model.name not in priced))
