import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.structured_output import scalars
from tests.services.inference.structured_output.gbnf_texts import fits, grammar_of

bounds = st.one_of(st.none(), st.integers(-1500, 1500), st.integers(-(10**16) + 1, 10**16 - 1))


def grammar(expression: str) -> str:
    return f"root ::= {expression}\n"


@given(bounds, bounds, st.data())
def test_exactly_the_integers_between_the_bounds(one: int | None, other: int | None, data: st.DataObject) -> None:
    low, high = (min(one, other), max(one, other)) if one is not None and other is not None else (one, other)
    wanted = grammar(scalars.between(low, high))
    near = [bound + step for bound in (low, high) if bound is not None for step in (-11, -1, 0, 1, 11)]
    for value in [*near, *data.draw(st.lists(st.integers(-(10**17), 10**17), max_size=5)), 0, 9, 10, -10, 99, 100]:
        assert fits(wanted, str(value)) == ((low is None or low <= value) and (high is None or value <= high)), value


def test_the_bounds_of_javascript_are_kept() -> None:
    wanted = grammar_of({"type": "integer", "minimum": 1 - 2**53, "maximum": 2**53 - 1})
    assert [fits(wanted, str(value)) for value in (-(2**53), 1 - 2**53, 0, 2**53 - 1, 2**53)] == [False, True, True, True, False]


@pytest.mark.parametrize("text", ["007", "+7", "7.0", "", "-0"])
def test_integers_have_one_spelling(text: str) -> None:
    assert not fits(grammar(scalars.between(-10, 10)), text)


@given(st.integers(-500, 500), st.integers(0, 600), st.decimals(-1200, 1200, places=3))
def test_decimals_between_the_bounds(low: int, width: int, value: object) -> None:
    text = str(value)
    assert fits(grammar(scalars.real_between(low, low + width)), text) == (low <= float(text) <= low + width)


@pytest.mark.parametrize(("low", "high", "text"), [(5, None, "4.9"), (None, -5, "-4.9"), (None, 5, "5.1"), (-5, None, "-5.1")])
def test_decimals_with_one_bound(low: int | None, high: int | None, text: str) -> None:
    wanted = grammar(scalars.real_between(low, high))
    assert not fits(wanted, text)
    assert fits(wanted, str(low if low is not None else high))
