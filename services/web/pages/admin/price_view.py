"""Describe prices, with the cost of an example, and find the models without their own price. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shared.api.gateway import ServedModel
from shared.api.ledger import MICRO, ModelPrice
from shared.types import MicroCredits, ModelName

#: The example: input tokens, output tokens and compute seconds.
EXAMPLE_IN, EXAMPLE_OUT, EXAMPLE_SECONDS = 1000, 500, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceView:
    price: ModelPrice
    example_micro: MicroCredits
    #: In force now, not a previous price.
    is_current: bool


def example(price: ModelPrice) -> MicroCredits:
    """Return the cost of the example. The total is rounded up once, as in the gateway."""
    millionths = EXAMPLE_IN * price.input_micro_per_million + EXAMPLE_OUT * price.output_micro_per_million
    return MicroCredits(-(-millionths // MICRO) + price.request_micro + EXAMPLE_SECONDS * price.compute_second_micro)


def lines(current: Iterable[ModelPrice], history: Sequence[ModelPrice] = ()) -> tuple[PriceView, ...]:
    """Return the prices: the default first, then by name; each followed by its previous prices, newest first."""
    now = {price.model: price for price in current}
    former = [price for price in history if price != now.get(price.model)]
    found = [PriceView(price=price, example_micro=example(price), is_current=True) for price in now.values()]
    found += [PriceView(price=price, example_micro=example(price), is_current=False) for price in former]
    return tuple(sorted(found, key=_place))


def without_own(served: Iterable[ServedModel], current: Iterable[ModelPrice]) -> tuple[ModelName, ...]:
    priced = {price.model for price in current}
    return tuple(sorted(model.name for model in served if model.name not in priced))


def _place(line: PriceView) -> tuple[str, bool, float]:
    since = line.price.since
    return line.price.model or "", not line.is_current, 0.0 if since is None else -since.timestamp()
