"""The list of model prices, in credits."""

from collections.abc import Sequence
from datetime import datetime

from shared.amounts import grouped
from shared.api.ledger import ModelPrice
from shared.lists.columns import Column, Listing, Tone
from shared.types import ModelName

#: The prices of the documents that ordered this product: model (None: every model without its own price), and micro-credits for a million
#: input and output tokens.
EXAMPLES = ((None, 100_000_000, 200_000_000), ("llama-2-7b", 100_000_000, 200_000_000), ("mistral-7b", 150_000_000, 300_000_000))


def are_examples(prices: Sequence[ModelPrice]) -> bool:
    """Return whether these current prices are only examples: no administrator has set another one."""
    return bool(prices) and all(
        (price.model, price.input_micro_per_million, price.output_micro_per_million) in EXAMPLES
        and not price.request_micro
        and not price.compute_second_micro
        for price in prices
    )


def list_prices(prices: Sequence[ModelPrice]) -> Listing[ModelPrice]:
    """Return the list of these prices: of each model its newest, which is in force, or its history too."""
    newest: dict[ModelName | None, float] = {}
    for price in prices:
        newest[price.model] = max(_seconds(price), newest.get(price.model, 0.0))

    def is_over(price: ModelPrice) -> bool:
        return _seconds(price) < newest[price.model]

    state: Column[ModelPrice] = Column(
        title="State",
        show=lambda price: "Previous" if is_over(price) else "Current",
        tone=lambda price: Tone.OFF if is_over(price) else Tone.GOOD,
        rank=3,
    )
    return Listing(
        columns=(
            Column(title="Model", show=lambda price: "Default" if price.model is None else price.model),
            *([state] if any(map(is_over, prices)) else []),
            Column(title="Input, per 1M tokens", show=lambda price: grouped(price.input_micro_per_million), is_number=True),
            Column(title="Output, per 1M tokens", show=lambda price: grouped(price.output_micro_per_million), rank=2, is_number=True),
            Column(title="Per request", show=lambda price: grouped(price.request_micro), rank=5, is_number=True),
            Column(title="Per compute second", show=lambda price: grouped(price.compute_second_micro), rank=6, is_number=True),
            Column(title="Plan tokens per token", show=lambda price: price.allowance_weight, rank=7, is_number=True),
            Column(title="Batch, % of the price", show=lambda price: price.batch_percent, rank=8, is_number=True),
            Column(title="Since", show=_since, rank=4),
        ),
        empty="No prices yet, so everything is free.",
        is_over=is_over,
    )


def in_order(price: ModelPrice) -> tuple[str, float]:
    """Return the key that sorts prices: the default first, then by name; of each model the newest first."""
    return price.model or "", -_seconds(price)


def _seconds(price: ModelPrice) -> float:
    return price.since.timestamp() if price.since else 0.0


def _since(price: ModelPrice) -> str | datetime | None:
    # The first price applies from the beginning of time.
    return "Always" if price.since and not _seconds(price) else price.since
