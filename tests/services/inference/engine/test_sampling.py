import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine import sampling
from services.inference.engine.sampling import Parameters
from shared import errors
from shared.api.generation import Sampling


def check(asked: Sampling) -> Parameters:
    return sampling.check(asked, context_tokens=2048, draw_seed=lambda: 42)


def test_what_is_not_said_is_filled_in() -> None:
    assert check(Sampling()) == Parameters(temperature=0.7, top_p=0.95, top_k=40, seed=42, max_tokens=None, stop=())


def test_what_is_said_is_kept() -> None:
    asked = Sampling(max_tokens=2048, temperature=0, top_p=1, top_k=0, stop=("a", "b"), seed=2**63 - 1)
    assert check(asked) == Parameters(temperature=0.0, top_p=1.0, top_k=0, seed=2**63 - 1, max_tokens=2048, stop=("a", "b"))


def test_seed_zero_is_a_seed() -> None:
    assert check(Sampling(seed=0)).seed == 0


@pytest.mark.parametrize("field", ["temperature", "top_p"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.1, 1e300, 2.1])
def test_numbers_out_of_range_are_refused_by_the_name_of_their_field(field: str, value: float) -> None:
    with pytest.raises(errors.BadRequest, match=field):
        check(msgspec.structs.replace(Sampling(), **{field: value}))


@pytest.mark.parametrize("field", ["max_tokens", "top_k", "seed"])
@pytest.mark.parametrize("value", [-1, 2**63, 2**64, -(2**63), pytest.param(10**5000, id="ten to the 5000th")])
def test_whole_numbers_out_of_range_are_refused_by_the_name_of_their_field(field: str, value: int) -> None:
    with pytest.raises(errors.BadRequest, match=field) as refused:
        check(msgspec.structs.replace(Sampling(), **{field: value}))
    assert len(refused.value.message) < 200


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        pytest.param(Sampling(max_tokens=0), "max_tokens", id="no token at all"),
        pytest.param(Sampling(max_tokens=2049), "max_tokens", id="more tokens than the context holds"),
        pytest.param(Sampling(top_p=0), "top_p", id="nothing left to choose from"),
        pytest.param(Sampling(stop=("",)), "stop", id="an empty stop sequence"),
        pytest.param(Sampling(stop=("x" * 65,)), "stop", id="a stop sequence that is too long"),
        pytest.param(Sampling(stop=("a", "b", "c", "d", "e")), "stop", id="too many stop sequences"),
    ],
)
def test_limits_of_single_fields(asked: Sampling, field: str) -> None:
    with pytest.raises(errors.BadRequest, match=field):
        check(asked)


def test_mix_is_frozen_because_other_workers_continue_with_it() -> None:
    assert [sampling.mix(seed, position) for seed, position in ((0, 0), (1, 0), (0, 1), (2**63 - 1, 2047))] == [
        2813496256,
        2521568596,
        2886394076,
        574530814,
    ]


@given(st.integers(0, sampling.MAX_SEED), st.integers(0, 1 << 20))
def test_mix_never_asks_llama_cpp_to_seed_itself(seed: int, position: int) -> None:
    assert 0 <= sampling.mix(seed, position) < 0xFFFFFFFF
