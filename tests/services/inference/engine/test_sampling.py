"""Callers' parameters. The values pass through the API's own types first, as in the services."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine import sampling
from services.inference.engine.sampling import Parameters
from shared.api.generation import MAX_SEED, Sampling
from tests import tiers

CONTEXT = 2048


def check(requested: Sampling, context_tokens: int | None = CONTEXT) -> Parameters:
    return sampling.check(requested, context_tokens=context_tokens, draw_seed=lambda: 42)


def test_defaults_are_filled_in() -> None:
    assert check(Sampling()) == Parameters(temperature=0.7, top_p=0.95, top_k=40, seed=42)


def test_given_values_are_kept() -> None:
    requested = Sampling(
        max_tokens=CONTEXT,
        temperature=0,
        top_p=1,
        top_k=0,
        stop=("a", "b"),
        seed=2**63 - 1,
        min_p=0.05,
        repeat_penalty=1.1,
        frequency_penalty=-2,
        presence_penalty=2,
        logit_bias={0: -100, 2**31 - 1: 100.0},
        ignore_eos=True,
        n=4,
        top_logprobs=20,
    )
    expected = Parameters(
        temperature=0.0,
        top_p=1.0,
        top_k=0,
        seed=2**63 - 1,
        max_tokens=CONTEXT,
        stop=("a", "b"),
        min_p=0.05,
        repeat_penalty=1.1,
        frequency_penalty=-2.0,
        presence_penalty=2.0,
        logit_bias=((0, -100.0), (2**31 - 1, 100.0)),
        ignore_eos=True,
        n=4,
        top_logprobs=20,
    )
    assert check(requested) == expected


def test_seed_zero_is_kept_and_missing_log_probabilities_stay_none() -> None:
    assert check(Sampling(seed=0)).seed == 0
    assert (check(Sampling()).top_logprobs, check(Sampling(top_logprobs=0)).top_logprobs) == (None, 0)


# --- numbers ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """The valid range of a field, written down independently."""

    least: float
    most: float
    whole: bool = False
    #: Whether the least value itself is refused.
    above: bool = False

    def holds(self, value: float) -> bool:
        return self.least <= value <= self.most and not (self.above and value == self.least)


RANGES = {
    "temperature": Range(0, 2),
    "top_p": Range(0, 1, above=True),
    "min_p": Range(0, 1),
    "repeat_penalty": Range(0.1, 2),
    "frequency_penalty": Range(-2, 2),
    "presence_penalty": Range(-2, 2),
    "max_tokens": Range(1, 2**63 - 1, whole=True),
    "top_k": Range(0, 1000, whole=True),
    "seed": Range(0, 2**63 - 1, whole=True),
    "n": Range(1, 4, whole=True),
    "top_logprobs": Range(0, 20, whole=True),
}


def encoded_name(field: str) -> str:
    (name,) = (one.encode_name for one in msgspec.structs.fields(Sampling) if one.name == field)
    return name


def whole_values() -> list[int]:
    """Return values around each limit and around every power of two and ten, far beyond any stored number."""
    powers = [2**exponent for exponent in range(130)] + [10**exponent for exponent in range(2, 260)]
    limits = [int(limit) for field in RANGES.values() for limit in (field.least, field.most)]
    around = (value + step for value in itertools.chain(powers, limits) for step in (-1, 0, 1))
    return sorted({sign * value for value in around for sign in (1, -1)})


def broken_values() -> list[float]:
    """Return every power of two that a float can hold, including subnormal ones, and the neighbors of each limit."""
    limits = {limit for field in RANGES.values() for limit in (field.least, field.most)}
    beside = (math.nextafter(limit, toward) for limit in limits for toward in (-math.inf, math.inf))
    powers = (2.0**exponent for exponent in range(-1074, 1024))
    values = itertools.chain(powers, limits, beside, [1e308, 5e-324, 1.5, math.inf, math.nan])
    return [sign * value for value in values for sign in (1, -1)]


def decoded(field: str, value: float) -> Iterator[Sampling | None]:
    """Yield what the contract's types decode from JSON and msgpack, if these can express the value; None if the types refuse it."""
    name = encoded_name(field)
    ways: list[Callable[[], Sampling]] = []
    if math.isfinite(value):
        ways.append(lambda: msgspec.json.decode(f'{{"{name}": {value!r}}}', type=Sampling))
    if isinstance(value, float) or -(2**63) <= value < 2**64:
        ways.append(lambda: msgspec.msgpack.decode(msgspec.msgpack.encode({name: value}), type=Sampling))
    for way in ways:
        try:
            yield way()
        except msgspec.ValidationError:
            yield None


@pytest.mark.parametrize("field", RANGES)
def test_two_thousand_values_are_accepted_or_refused_with_the_field(field: str) -> None:
    allowed = RANGES[field]
    values: list[float] = [*whole_values(), *broken_values()]
    assert len(values) > 2000
    tried = 0
    # `make test` tries each number in some fields; the nightly run tries it in all.
    step = 1 if tiers.is_nightly() else tiers.FRACTION
    for value in values[list(RANGES).index(field) % step :: step]:
        for requested in decoded(field, value):
            tried += 1
            legal = allowed.holds(value) and (isinstance(value, int) or not allowed.whole)
            if requested is None:
                assert not legal, f"{value} is refused by its type"
                continue
            assert legal, f"{value} is accepted by its type"
            taken = getattr(check(requested), field)
            expected = min(value, CONTEXT) if field == "max_tokens" else 0 if field == "temperature" and value < 0.001 else value
            assert taken == expected
            assert type(taken) is (int if allowed.whole else float)
    assert tried > 2000 // step


@pytest.mark.parametrize("field", RANGES)
@pytest.mark.parametrize("value", ['"1"', "[]", "{}", "true", "false", '"NaN"', "[1]"])
def test_wrong_type_is_refused_while_decoding(field: str, value: str) -> None:
    name = encoded_name(field)
    with pytest.raises(msgspec.ValidationError, match=rf"\$\.{name}`"):
        msgspec.json.decode(f'{{"{name}": {value}}}', type=Sampling)


@pytest.mark.parametrize("field", RANGES)
def test_null_equals_missing(field: str) -> None:
    assert check(msgspec.json.decode(f'{{"{encoded_name(field)}": null}}', type=Sampling)) == check(Sampling())


def test_max_tokens_above_the_context_is_lowered() -> None:
    assert check(Sampling(max_tokens=CONTEXT + 1)).max_tokens == CONTEXT


def test_without_a_known_context_any_max_tokens_is_accepted() -> None:
    assert check(Sampling(max_tokens=2**63 - 1), context_tokens=None).max_tokens == 2**63 - 1


# --- lists ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bias",
    [
        pytest.param(dict.fromkeys(range(301), 0.0), id="too many"),
        pytest.param({-1: 0.0}, id="for no token"),
        pytest.param({2**31: 0.0}, id="for a token that no model has"),
        pytest.param({1: 100.5}, id="too large"),
        pytest.param({1: -100.5}, id="too small"),
        pytest.param({1: math.nan}, id="not a number"),
        pytest.param({1: -math.inf}, id="infinite"),
    ],
)
def test_bias_out_of_bounds_is_refused_while_decoding(bias: dict[int, float]) -> None:
    with pytest.raises(msgspec.ValidationError, match="logitBias"):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"logitBias": bias}), type=Sampling)


def test_lists_at_their_limits_are_accepted() -> None:
    biases = dict.fromkeys(range(300), -0.5)
    taken = check(Sampling(stop=("x" * 64, "b", "c", "d"), logit_bias=biases))
    assert (len(taken.stop), dict(taken.logit_bias)) == (4, biases)


# --- randomness -------------------------------------------------------------------------------------------------------------------


def test_mix_is_frozen_because_other_workers_continue_with_it() -> None:
    assert [sampling.mix(seed, position) for seed, position in ((0, 0), (1, 0), (0, 1), (2**63 - 1, 2047))] == [
        2813496256,
        2521568596,
        2886394076,
        574530814,
    ]


@given(st.integers(0, MAX_SEED), st.integers(0, 1 << 20))
def test_mix_never_asks_llama_cpp_to_seed_itself(seed: int, position: int) -> None:
    assert 0 <= sampling.mix(seed, position) < 0xFFFFFFFF


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 2, 2**63 - 1])
def test_each_answer_has_its_own_seed_and_the_first_the_requested_one(seed: int) -> None:
    parameters = Parameters(1, 1, 0, seed, n=4)
    seeds = [sampling.of_answer(parameters, answer).seed for answer in range(4)]
    assert seeds[0] == seed
    assert len(set(seeds)) == 4
    assert all(0 <= one <= MAX_SEED for one in seeds)
