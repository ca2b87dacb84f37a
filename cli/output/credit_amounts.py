"""Parse amounts of credits on the command line, and show an account."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from shared.amounts import written
from shared.types import MicroCredits

if TYPE_CHECKING:
    from shared.api.gateway import KeyBudget
    from shared.api.ledger import Account


#: A click callback for an option or argument; None if it was left out.
Reader = Callable[[click.Context, click.Parameter, str | None], "MicroCredits | None"]


def reader(*, for_a_token: bool = False, least_micro: int | None = None) -> Reader:
    """Parse credits with up to 6 decimals, or prices of one token with up to 12, as exact micro-credits."""

    def read(context: click.Context, parameter: click.Parameter, text: str | None) -> "MicroCredits | None":
        from shared import amounts

        if text is None:
            return None
        try:
            amount = amounts.read(text, amounts.PRICE_DECIMALS if for_a_token else amounts.DECIMALS)
        except ValueError as error:
            raise click.BadParameter(str(error), context, parameter) from error
        if least_micro is not None and amount < least_micro:
            raise click.BadParameter(f"{text} is too small: use {'more than 0' if least_micro else '0 or more'}", context, parameter)
        return amount

    return read


def account_lines(account: "Account") -> Iterator[str]:
    """Show what can be spent and where it comes from."""
    from shared.lists.account import lines

    for name, text in lines(account):
        yield f"{name:<12}  {text}"


def budget_line(budget: "KeyBudget") -> str:
    held = f", {written(budget.reserved_micro)} of it held by running requests" if budget.reserved_micro else ""
    renewed = f" every {budget.every}" if budget.every else ""
    return f"this key      {written(budget.free_micro)} left of its {written(budget.budget_micro)}{renewed}{held}"
