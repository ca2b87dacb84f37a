"""`aicli admin prices`: show and set model prices, in credits."""

from typing import TYPE_CHECKING

import click

from cli import options, value_completion
from cli.cli_context import CliContext
from cli.output import credit_amounts, print_format, printing, watching
from shared import api
from shared.types import MicroCredits, ModelName

if TYPE_CHECKING:
    from shared.api.ledger import ModelPrice

#: Stands for every model without its own price.
DEFAULT = "default"

_FOR_A_TOKEN, _CREDITS = credit_amounts.reader(for_a_token=True, least_micro=0), credit_amounts.reader(least_micro=0)


@click.group()
def prices() -> None:
    """Show and set model prices, in credits."""


@prices.command("list")
@click.option("--history", is_flag=True, help="Include past prices.")
@watching.listing_options("Print a JSON list in micro-credits; token prices are per million tokens.")
@click.pass_obj
def list_(here: CliContext, /, *, history: bool, as_json: bool) -> None:
    """List prices. `default` applies to every model without its own price."""
    _show(here.call(api.ledger.list_prices, api.ledger.ListPrices(history=history)).prices, as_json=as_json)


@prices.command("set")
@click.argument("model", shell_complete=value_completion.models)
@click.option(
    "--input", "input_price", callback=_FOR_A_TOKEN, metavar="CREDITS", required=True, help="Price per input token, such as .0001."
)
@click.option(
    "--output", "output_price", callback=_FOR_A_TOKEN, metavar="CREDITS", required=True, help="Price per output token, such as .0002."
)
@click.option("--request", "request_price", callback=_CREDITS, metavar="CREDITS", default="0", show_default=True, help="Price per request.")
@click.option(
    "--compute-second",
    "compute_price",
    callback=_CREDITS,
    metavar="CREDITS",
    default="0",
    show_default=True,
    help="Price per second of compute time.",
)
@options.whole_number(
    "--weight",
    lambda: api.ledger.ModelPrice,
    "allowance_weight",
    default=1,
    help="How many tokens of a plan each token uses. 0: plans never cover the model.",
)
@options.whole_number(
    "--batch-percent",
    lambda: api.ledger.ModelPrice,
    "batch_percent",
    default=50,
    help="What requests with `service_tier: flex` pay of each price.",
)
@print_format.output_options("Print all prices as a JSON list in micro-credits; token prices are per million tokens.")
@click.pass_obj
def set_(
    here: CliContext,
    /,
    model: str,
    *,
    input_price: "MicroCredits",
    output_price: "MicroCredits",
    request_price: "MicroCredits",
    compute_price: "MicroCredits",
    weight: int,
    batch_percent: int,
    as_json: bool,
) -> None:
    """Set the price of MODEL. `default` applies to every model without its own price.

    New requests use this price. Running requests keep theirs. The list shows prices per 1M tokens.
    """
    named = None if model == DEFAULT else ModelName(model)
    price = api.ledger.ModelPrice(named, input_price, output_price, request_price, compute_price, weight, batch_percent=batch_percent)
    _show(here.call(api.ledger.set_price, api.ledger.SetPrice(price)).prices, as_json=as_json)


@prices.command("examples")
@print_format.output_options("Print all prices as a JSON list in micro-credits; token prices are per million tokens.")
@click.pass_obj
def examples(here: CliContext, /, *, as_json: bool) -> None:
    """Set example prices: of llama-2-7b, which is also the default, and of mistral-7b."""
    from shared.lists.prices import EXAMPLES

    listed: tuple[ModelPrice, ...] = ()
    for model, input_price, output_price in EXAMPLES:
        named = None if model is None else ModelName(model)
        price = api.ledger.ModelPrice(named, MicroCredits(input_price), MicroCredits(output_price))
        listed = here.call(api.ledger.set_price, api.ledger.SetPrice(price)).prices
    _show(listed, as_json=as_json)


def _show(listed: "tuple[ModelPrice, ...]", *, as_json: bool) -> None:
    from shared.lists.prices import list_prices

    create = "Set one: aicli admin prices set default --input .0001 --output .0002"
    printing.show_list(listed, list_prices(listed), as_json=as_json, create=create)
