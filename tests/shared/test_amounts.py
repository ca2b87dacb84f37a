"""Amounts are exact in both directions, and text that is not an amount is refused."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import amounts
from shared.api import ledger


@pytest.mark.parametrize(
    ("text", "micro"),
    [
        ("2.5", 2_500_000),
        ("100", 100_000_000),
        (".0001", 100),
        (" 1.000000 ", 1_000_000),
        ("1.0000000000", 1_000_000),
        ("0.000001", 1),
        ("-5", -5_000_000),
        ("-.5", -500_000),
        ("+5", 5_000_000),
        ("-0", 0),
        ("0.1", 100_000),
        ("1000000000000", 10**18),
    ],
)
def test_valid_amounts(text: str, micro: int) -> None:
    assert amounts.read(text) == micro


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not an amount"),
        (".", "not an amount"),
        ("5.", "not an amount"),
        ("2,5", "such as 2.5"),
        ("1_000", "not an amount"),
        ("1e3", "not an amount"),
        ("--5", "not an amount"),
        ("nan", "not an amount"),
        ("inf", "not an amount"),
        ("١", "not an amount"),
        ("0.0000001", "more than 6 decimals"),
        ("1000000000000.000001", "larger than any amount"),
        ("9" * 50, "larger than any amount"),
        ("9" * 5000, "not an amount"),
    ],
)
def test_invalid_amounts(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        amounts.read(text)


def test_a_price_per_token_is_stored_per_million() -> None:
    assert amounts.read(".0001", amounts.PRICE_DECIMALS) == 100 * ledger.MICRO
    assert amounts.read(".00015", amounts.PRICE_DECIMALS) == 150 * ledger.MICRO
    assert amounts.written(150 * ledger.MICRO, amounts.PRICE_DECIMALS) == "0.00015"
    assert 10**amounts.DECIMALS == ledger.MICRO


@pytest.mark.parametrize(("sent", "micro"), [("2.5", 2_500_000), ("3", 3_000_000), ('"2.5"', 2_500_000), ("1e-05", 10), ("0.1", 100_000)])
def test_json_numbers(sent: str, micro: int) -> None:
    assert amounts.read_json(json.loads(sent)) == micro


@pytest.mark.parametrize("sent", ["100000000000.123456", "1e300", "0.0000001", '"many"'])
def test_an_inexact_json_number_is_refused(sent: str) -> None:
    with pytest.raises(ValueError, match=r"digits|decimals|no amount|more than"):
        amounts.read_json(json.loads(sent))


@given(st.integers(-(10**18), 10**18), st.sampled_from([amounts.DECIMALS, amounts.PRICE_DECIMALS]))
def test_a_formatted_amount_is_parsed_as_the_same(amount: int, decimals: int) -> None:
    text = amounts.written(amount, decimals)
    assert amounts.read(text, decimals) == amount
    assert Decimal(text) == Decimal(amount).scaleb(-decimals)
    assert "." not in text or not text.endswith("0")


@given(st.integers(-(10**15) + 1, 10**15 - 1))
def test_a_float_of_fifteen_digits_is_exact(amount: int) -> None:
    assert amounts.read_json(json.loads(amounts.written(amount))) == amount


@pytest.mark.parametrize(
    ("size", "shown"), [(2 * 2**20, "2.0 MiB"), (300 * 2**20, "300 MiB"), (5 * 2**30 + 2**29, "5.5 GiB"), (0, "0.0 MiB")]
)
def test_sizes_are_shown_in_a_fitting_unit(size: int, shown: str) -> None:
    assert amounts.show_bytes(size) == shown


@pytest.mark.parametrize(("micro", "text"), [(1_234_567_500_000, "1,234,567.5"), (-1_000_000_000, "-1,000"), (1, "0.000001"), (0, "0")])
def test_amounts_for_people(micro: int, text: str) -> None:
    assert amounts.grouped(micro) == text
