from decimal import ROUND_CEILING, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.billing import prices
from services.gateway.billing.prices import Price, PriceList
from shared import errors
from shared.api.ledger import ModelPrice
from shared.types import MicroCredits, ModelName


def price(model: str | None, *numbers: int) -> Price:
    return Price(1, ModelPrice(None if model is None else ModelName(model), *map(MicroCredits, numbers)))


#: .0001 and .0002 credits a token.
SEED = price("llama", 100_000_000, 200_000_000)


def test_the_seed_prices_give_the_documented_example() -> None:
    # 1,000 tokens in for .1 credits, 500 out for .1
    assert SEED.cost(1000, 500, 60.0) == 200_000
    assert SEED.cost(1000, 0, 60.0) == 100_000


@given(
    st.tuples(*[st.integers(0, 10**6)] * 2),
    st.tuples(*[st.integers(0, prices.MAX_PER_MILLION)] * 2),
    st.integers(0, 10**6),
    st.floats(0, 7200),
)
def test_a_cost_is_the_exact_sum_rounded_up(tokens: tuple[int, int], each: tuple[int, int], compute: int, seconds: float) -> None:
    cost = price(None, *each, 7, compute).cost(*tokens, seconds)
    exact = sum(Decimal(number) * one for number, one in zip(tokens, each, strict=True)) / 10**6
    of_tokens = exact.to_integral_value(ROUND_CEILING) if exact else 0
    assert cost >= of_tokens + 7
    assert abs(cost - (of_tokens + 7 + Decimal(seconds * compute))) <= 1
    assert cost < 2**63


def test_a_model_has_its_own_price_or_the_default() -> None:
    price_list = PriceList.of([price(None, 1, 1), SEED])
    assert price_list.find(ModelName("llama")) == SEED
    assert price_list.find(ModelName("other")).price.model is None


@pytest.mark.parametrize("numbers", [(-1, 0), (0, prices.MAX_PER_MILLION + 1), (0, 0, -1), (0, 0, 0, prices.MAX_OTHER + 1)])
def test_an_invalid_price_is_refused(numbers: tuple[int, ...]) -> None:
    prices.check(SEED.price)
    with pytest.raises(errors.BadRequest, match="out of range"):
        prices.check(price("m", *numbers).price)


@pytest.mark.parametrize(("percent", "expected"), [(50, (1, 2, 3, 1)), (100, (1, 3, 5, 1)), (0, (0, 0, 0, 0)), (33, (1, 1, 2, 1))])
def test_price_of_batches_is_a_share_of_each_part_rounded_up(percent: int, expected: tuple[int, ...]) -> None:
    price = Price(7, ModelPrice(None, *map(MicroCredits, (1, 3, 5, 1)), batch_percent=percent))
    batch = price.of_batches()
    parts = batch.price
    assert batch.id == 7
    assert (parts.input_micro_per_million, parts.output_micro_per_million, parts.request_micro, parts.compute_second_micro) == expected
