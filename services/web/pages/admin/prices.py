"""What models cost, what they cost before, and setting a price that holds from now on."""

import asyncio
from dataclasses import dataclass

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery

from services.web import rendering
from services.web.pages.admin import price_lines
from services.web.pages.admin.price_lines import PriceLine
from services.web.visits import Page, Visit
from shared import amounts, errors
from shared.api import gateway, ledger
from shared.types import MicroCredits, ModelName

#: The words that a redirect may bring.
_DONE = {"set": "The price holds from now on. What runs already keeps the one that it began with."}


class PriceForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Amounts in credits."""

    #: Empty for the default.
    model: str = ""
    #: For a million tokens.
    input: str = ""
    output: str = ""
    request: str = ""
    compute_second: str = ""


NOTHING_TYPED = PriceForm()


@dataclass(frozen=True, slots=True, kw_only=True)
class PricesPage:
    lines: tuple[PriceLine, ...]
    with_history: bool
    #: Served, and charged by the default.
    unpriced: tuple[ModelName, ...]
    #: False where the gateway did not say what is served.
    knows_models: bool
    typed: PriceForm
    example: tuple[int, int, int]
    problem: errors.AimeshError | None = None


@get("/admin/prices")
async def show_prices(
    visit: NamedDependency[Visit], history: FromQuery[str] = "", model: FromQuery[str] = "", done: FromQuery[str] = ""
) -> Page:
    view = await _page_of(visit, with_history=history == "yes", typed=PriceForm(model=model[:200]))
    notice = rendering.Notice(_DONE[done]) if done in _DONE else None
    return visit.page("admin/prices.html", view, here="admin", notice=notice)


@post("/admin/prices")
async def set_price(visit: NamedDependency[Visit]) -> Page:
    form = await visit.read_form(PriceForm)
    try:
        await visit.call(ledger.set_price, ledger.SetPrice(read_price(form)))
    except (errors.ConfirmationNeeded, errors.NotAuthenticated):
        raise
    except errors.CallerError as error:
        view = await _page_of(visit, with_history=False, typed=form, problem=error)
        return visit.page("admin/prices.html", view, here="admin", status=error.status)
    return visit.redirect("/admin/prices?done=set")


def read_price(form: PriceForm) -> ledger.ModelPrice:
    """Raises BadRequest."""
    model = form.model.strip()
    return ledger.ModelPrice(
        ModelName(model) if model else None,
        _amount(form.input, "tokens in"),
        _amount(form.output, "tokens out"),
        _amount(form.request or "0", "a request"),
        _amount(form.compute_second or "0", "a second of compute"),
    )


def _amount(text: str, what: str) -> MicroCredits:
    if not text.strip():
        raise errors.BadRequest(f"{what}: no price", hint="type 0 where it costs nothing")
    try:
        amount = amounts.read(text)
    except ValueError as error:
        raise errors.BadRequest(f"{what}: {error}") from error
    if amount < 0:
        raise errors.BadRequest(f"{what}: less than 0", hint="type 0 where it costs nothing")
    return amount


async def _page_of(visit: Visit, *, with_history: bool, typed: PriceForm, problem: errors.AimeshError | None = None) -> PricesPage:
    """Without prices there is nothing to show: raises PeerError where the gateway is away."""
    current, models = await asyncio.gather(
        visit.call(ledger.list_prices, ledger.ListPrices()), visit.ask(gateway.list_models, gateway.ListModels())
    )
    history = (await visit.call(ledger.list_prices, ledger.ListPrices(history=True))).prices if with_history else ()
    return PricesPage(
        lines=price_lines.lines(current.prices, history),
        with_history=with_history,
        unpriced=price_lines.without_own(models.models, current.prices) if models else (),
        knows_models=models is not None,
        typed=typed,
        example=(price_lines.EXAMPLE_IN, price_lines.EXAMPLE_OUT, price_lines.EXAMPLE_SECONDS),
        problem=problem,
    )


ROUTES = (show_prices, set_price)
