"""Calculates what providers ask for requests, in whole micro-credits. Pure."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal

import msgspec

from shared.api.generation import Usage
from shared.api.ledger import MICRO
from shared.config_documents import UpstreamPriceDocument
from shared.types import MicroCredits, ModelName

_NOTHING = MicroCredits(0)


@dataclass(frozen=True, slots=True)
class UpstreamPrice:
    input_micro_per_million: int
    cached_input_micro_per_million: int
    output_micro_per_million: int
    request_micro: int

    def cost(self, usage: Usage) -> MicroCredits:
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        millionths = (
            (usage.prompt_tokens - cached) * self.input_micro_per_million
            + cached * self.cached_input_micro_per_million
            + usage.completion_tokens * self.output_micro_per_million
        )
        return MicroCredits(-(-millionths // MICRO) + self.request_micro)


def compiled(document: UpstreamPriceDocument) -> UpstreamPrice:
    cached = document.input if document.cached_input is None else document.cached_input
    return UpstreamPrice(micro(document.input), micro(cached), micro(document.output), micro(document.request))


def micro(money: str | float) -> MicroCredits:
    """Convert credits as they are written; a number means its shortest decimal form."""
    return MicroCredits(round(Decimal(str(money)) * MICRO))


#: Route and target -> what it has cost upstream today, and what running requests hold.
TargetsSpending = Mapping[tuple[str, str], tuple[MicroCredits, MicroCredits]]
ReadSpending = Callable[[], Awaitable[TargetsSpending]]


@dataclass(frozen=True, slots=True)
class TargetSpending:
    """What a request cost upstream at one target."""

    #: Empty without a route; the target is then the model.
    route: str
    target: str
    micro: MicroCredits


@dataclass(frozen=True, slots=True)
class TargetHold:
    """What a request may cost upstream at a target with a ceiling."""

    route: str
    target: str
    model: ModelName
    micro: MicroCredits
    #: For a UTC day.
    ceiling_micro: MicroCredits


class UpstreamPrices(msgspec.Struct, frozen=True):
    """The prices that apply to one request, from its start to its end."""

    prices: Mapping[ModelName, UpstreamPrice] = msgspec.field(default_factory=dict)
    #: What its internal answer is compared with; None for nothing.
    compared: UpstreamPrice | None = None

    def cost(self, model: ModelName, usage: Usage) -> MicroCredits:
        """Return what a provider asks; 0 if the price isn't known."""
        price = self.prices.get(model)
        return _NOTHING if price is None else price.cost(usage)
