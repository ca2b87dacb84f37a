"""Calculates what a request may cost and did cost, in whole micro-credits. Pure.

Token prices are per million; every sum is rounded up once, at its end.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from shared import errors
from shared.api.generation import Usage
from shared.api.ledger import MICRO, ModelPrice
from shared.types import MicroCredits, ModelName

#: The table's bounds, which keep every sum within 64 bits.
MAX_PER_MILLION = 10 * MICRO * MICRO
MAX_OTHER = MICRO * MICRO
#: A smaller answer is useless.
MIN_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Price:
    id: int
    price: ModelPrice

    def of_batches(self) -> "Price":
        """Return the price of a request that runs behind live ones."""

        def share(micro: MicroCredits) -> MicroCredits:
            return MicroCredits(-(-micro * self.price.batch_percent // 100))

        price = self.price
        return Price(
            self.id,
            msgspec.structs.replace(
                price,
                input_micro_per_million=share(price.input_micro_per_million),
                output_micro_per_million=share(price.output_micro_per_million),
                request_micro=share(price.request_micro),
                compute_second_micro=share(price.compute_second_micro),
            ),
        )

    def with_seconds(self, token_seconds: float) -> "Price":
        """Return the price of tokens that compute so long each."""
        more = math.ceil(token_seconds * self.price.compute_second_micro * MICRO)
        output = MicroCredits(min(self.price.output_micro_per_million + more, MAX_PER_MILLION))
        return Price(self.id, msgspec.structs.replace(self.price, output_micro_per_million=output))

    def cost(self, prompt_tokens: int, completion_tokens: int, compute_seconds: float, covered: int = 0) -> MicroCredits:
        """Return the cost of a request that delivered something. Its plan covers so many tokens, first those of the prompt."""
        price = self.price
        rest = completion_tokens - max(covered - prompt_tokens, 0)
        millionths = max(prompt_tokens - covered, 0) * price.input_micro_per_million + rest * price.output_micro_per_million
        return MicroCredits(-(-millionths // MICRO) + self.fixed(compute_seconds))

    def fixed(self, compute_seconds: float) -> MicroCredits:
        """Return the part of the cost that doesn't depend on tokens."""
        return MicroCredits(self.price.request_micro - int(-compute_seconds * self.price.compute_second_micro // 1))

    def settle(self, usage: Usage, compute_seconds: float, plan_tokens: int) -> tuple[MicroCredits, int]:
        """Return the cost, and what it uses of the plan's tokens, of which it holds ``plan_tokens``."""
        weight = self.price.allowance_weight
        covered = min(plan_tokens // weight, usage.prompt_tokens + usage.completion_tokens) if weight else 0
        return self.cost(usage.prompt_tokens, usage.completion_tokens, compute_seconds, covered), covered * weight


@dataclass(frozen=True, slots=True)
class PriceList:
    """The current prices: the default for None, and at most one for each model."""

    rows: dict[ModelName | None, Price]

    @classmethod
    def of(cls, rows: Iterable[Price]) -> "PriceList":
        return cls({row.price.model: row for row in rows})

    def find(self, model: ModelName) -> Price:
        return self.rows.get(model) or self.rows[None]


def check(price: ModelPrice) -> None:
    """Raise BadRequest for a price outside the table's bounds."""
    bounds = {
        "the price of input tokens": (price.input_micro_per_million, MAX_PER_MILLION),
        "the price of output tokens": (price.output_micro_per_million, MAX_PER_MILLION),
        "the price of a request": (price.request_micro, MAX_OTHER),
        "the price of a second of compute": (price.compute_second_micro, MAX_OTHER),
    }
    for what, (value, most) in bounds.items():
        if not 0 <= value <= most:
            raise errors.BadRequest(f"{what} is out of range", hint="the limits are 10 credits per token and a million for the others")
    if price.model is not None and not 0 < len(price.model) <= 200:
        raise errors.BadRequest("a model name has 1 to 200 characters")
