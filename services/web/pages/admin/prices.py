"""Show the prices and their history, and set new ones."""

import asyncio
from dataclasses import dataclass

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web import rendering
from services.web.pages.admin import price_view
from services.web.pages.admin.price_view import PriceView
from services.web.request_context import Page, PageRequest
from shared import amounts, errors
from shared.api import gateway, ledger
from shared.types import MicroCredits, ModelName

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


NOTHING_TYPED = PriceForm()


@dataclass(frozen=True, slots=True, kw_only=True)
class PricesPage:
    lines: tuple[PriceView, ...]
    with_history: bool
    #: Served models that use the default price.
    unpriced: tuple[ModelName, ...]
    #: False if the served models are unavailable.
    knows_models: bool
    typed: PriceForm
    example: tuple[int, int, int]
    problem: errors.AimeshError | None = None


@get("/admin/prices")
async def show_prices(
    page_request: NamedDependency[PageRequest], history: FromQuery[str] = "", model: FromQuery[str] = "", done: FromQuery[str] = ""
) -> Page:
    view = await _page_of(page_request, with_history=history == "yes", typed=PriceForm(model=model[:200]))
    notice = rendering.find_notice(done, _DONE)
    return page_request.page("admin/prices.html", view, here="admin", notice=notice)


@post("/admin/prices")
async def set_price(page_request: NamedDependency[PageRequest]) -> Page:
    form = await page_request.read_form(PriceForm)
    try:
        await page_request.submit(ledger.set_price, ledger.SetPrice(read_price(form)))
    except errors.CallerError as error:
        view = await _page_of(page_request, with_history=False, typed=form, problem=error)
        return page_request.page("admin/prices.html", view, here="admin", problem=error)
    return page_request.redirect("/admin/prices?done=set")


def read_price(form: PriceForm) -> ledger.ModelPrice:
    """Parse the form. Raises BadRequest."""
    model = form.model.strip()
    return ledger.ModelPrice(
        ModelName(model) if model else None,
        _amount(form.input, "the input price"),
        _amount(form.output, "the output price"),
        _amount(form.request or "0", "the price per request"),
        _amount(form.compute_second or "0", "the price per compute second"),
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


async def _page_of(
    page_request: PageRequest, *, with_history: bool, typed: PriceForm, problem: errors.AimeshError | None = None
) -> PricesPage:
    """Return the page. Raises PeerError while the gateway is down."""
    current, models = await asyncio.gather(
        page_request.call(ledger.list_prices, ledger.ListPrices()), page_request.fetch(gateway.list_models, gateway.ListModels())
    )
    history = (await page_request.call(ledger.list_prices, ledger.ListPrices(history=True))).prices if with_history else ()
    return PricesPage(
        lines=price_view.lines(current.prices, history),
        with_history=with_history,
        unpriced=price_view.without_own(models.models, current.prices) if models else (),
        knows_models=models is not None,
        typed=typed,
        example=(price_view.EXAMPLE_IN, price_view.EXAMPLE_OUT, price_view.EXAMPLE_SECONDS),
        problem=problem,
    )


ROUTES = (show_prices, set_price)
