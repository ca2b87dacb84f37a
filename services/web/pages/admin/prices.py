"""Show the prices and their history, and set new ones."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web.request_context import Page, PageRequest
from shared import amounts, errors
from shared.api import gateway, ledger
from shared.api.gateway import ServedModel
from shared.api.ledger import MICRO, ModelPrice
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


NOTHING_TYPED = PriceForm()


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceView:
    price: ModelPrice
    example_micro: MicroCredits
    #: In force now, not a previous price.
    is_current: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PricesPage:
    lines: tuple[PriceView, ...]
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


async def _page(page_request: PageRequest, *, with_history: bool, typed: PriceForm, problem: errors.CallerError | None = None) -> Page:
    """Raises PeerError while the gateway is down."""
    current, models = await asyncio.gather(
        page_request.call(ledger.list_prices, ledger.ListPrices()), page_request.fetch(gateway.list_models, gateway.ListModels())
    )
    history = (await page_request.call(ledger.list_prices, ledger.ListPrices(history=True))).prices if with_history else ()
    view = PricesPage(
        lines=price_lines(current.prices, history),
        with_history=with_history,
        unpriced=without_own(models.models, current.prices) if models else (),
        knows_models=models is not None,
        typed=typed,
    )
    return page_request.page("admin/prices.html", view, problem=problem, notices=_DONE)


def cost_of_example(price: ModelPrice) -> MicroCredits:
    """Return the cost of the example. The total is rounded up once, as in the gateway."""
    millionths = EXAMPLE_IN * price.input_micro_per_million + EXAMPLE_OUT * price.output_micro_per_million
    return MicroCredits(-(-millionths // MICRO) + price.request_micro + EXAMPLE_SECONDS * price.compute_second_micro)


def price_lines(current: Iterable[ModelPrice], history: Sequence[ModelPrice] = ()) -> tuple[PriceView, ...]:
    """Return the prices: the default first, then by name; each followed by its previous prices, newest first."""
    now = {price.model: price for price in current}
    former = [price for price in history if price != now.get(price.model)]
    found = [PriceView(price=price, example_micro=cost_of_example(price), is_current=True) for price in now.values()]
    found += [PriceView(price=price, example_micro=cost_of_example(price), is_current=False) for price in former]
    return tuple(sorted(found, key=_place))


def without_own(served: Iterable[ServedModel], current: Iterable[ModelPrice]) -> tuple[ModelName, ...]:
    priced = {price.model for price in current}
    return tuple(sorted(model.name for model in served if model.name not in priced))


def _place(line: PriceView) -> tuple[str, bool, float]:
    since = line.price.since
    return line.price.model or "", not line.is_current, 0.0 if since is None else -since.timestamp()
