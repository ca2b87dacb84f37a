from datetime import UTC, datetime, timedelta

import pytest

from services.web.pages.admin import prices
from shared.api.gateway import ServedModel
from shared.api.ledger import ModelPrice
from shared.types import MicroCredits, ModelName

NOW = datetime(2026, 11, 20, tzinfo=UTC)


def price(model: str | None, input_: int = 0, output: int = 0, request: int = 0, second: int = 0, *, days_ago: int = 0) -> ModelPrice:
    named = None if model is None else ModelName(model)
    since = NOW - timedelta(days=days_ago)
    return ModelPrice(named, MicroCredits(input_), MicroCredits(output), MicroCredits(request), MicroCredits(second), since=since)


@pytest.mark.parametrize(
    ("price", "micro"),
    [
        pytest.param(price(None), 0, id="free"),
        pytest.param(price(None, 2_000_000), 2_000, id="1,000 tokens in at 2 credits a million"),
        pytest.param(price(None, 0, 2_000_000), 1_000, id="500 tokens out"),
        pytest.param(price(None, 1), 1, id="any part of a micro-credit is rounded up"),
        pytest.param(price(None, 0, 0, 7, 3), 22, id="a request and five seconds"),
    ],
)
def test_example_cost_equals_the_gateways_charge(price: ModelPrice, micro: int) -> None:
    assert prices.cost_of_example(price) == micro


def test_default_price_comes_first_and_history_after_current_prices() -> None:
    default, zeta, alpha = price(None, 1), price("zeta", 2), price("alpha", 3)
    older, oldest = price("alpha", 4, days_ago=1), price("alpha", 5, days_ago=2)
    found = prices.price_lines((zeta, alpha, default), (oldest, alpha, older, zeta, default))
    assert [(line.price, line.is_current) for line in found] == [
        (default, True), (alpha, True), (older, False), (oldest, False), (zeta, True),
    ]  # fmt: skip


def test_models_without_their_own_price_are_named() -> None:
    served = [ServedModel(ModelName(name), 1, 2048) for name in ("b", "a", "c")]
    assert prices.without_own(served, (price(None), price("c"))) == ("a", "b")
