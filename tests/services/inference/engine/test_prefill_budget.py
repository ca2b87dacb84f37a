import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine.prefill_budget import FIRST_TOKENS, LEAST_TOKENS, QUIET_EVERY, SLOWDOWN, PrefillBudget

MOST = 1024
STEP_SECONDS = 0.02
TOKEN_SECONDS = 0.001


def taught(
    step_seconds: float = STEP_SECONDS, token_seconds: float = TOKEN_SECONDS, *, answering: int = 4, most: int = MOST, noise: float = 0
) -> PrefillBudget:
    """After a while on a machine that is so fast."""
    pace, chance = PrefillBudget(most), random.Random(1)
    for step in range(200):
        read = 0 if step % 4 == 0 else pace.budget(answering)
        seconds = (step_seconds + read * token_seconds) * (1 + chance.uniform(-noise, noise))
        pace.took(seconds, answering=answering, read=read)
    return pace


@pytest.mark.parametrize("answering", [1, 2, 32])
def test_before_anything_is_known_a_few_are_read(answering: int) -> None:
    pace = PrefillBudget(MOST)
    assert pace.budget(answering) == FIRST_TOKENS
    pace.took(STEP_SECONDS, answering=answering, read=0)
    assert pace.budget(answering) == FIRST_TOKENS


def test_after_many_steps_that_read_one_does_not() -> None:
    pace = taught()
    budgets = []
    for _ in range(2 * QUIET_EVERY + 2):
        budgets.append(pace.budget(4))
        pace.took(STEP_SECONDS + budgets[-1] * TOKEN_SECONDS, answering=4, read=budgets[-1])
    assert 2 <= budgets.count(0) <= 3


def test_when_nobody_waits_for_a_token_all_is_read_that_a_step_can() -> None:
    assert PrefillBudget(MOST).budget(0) == taught(answering=4).budget(0) == MOST


def test_a_step_never_takes_more_than_it_can_hold() -> None:
    assert PrefillBudget(8).budget(1) == 8
    assert taught(step_seconds=10, most=300).budget(4) == 300


@pytest.mark.parametrize("answering", [1, 3, 4, 7, 32])
def test_the_answers_come_so_much_later_as_is_allowed_and_no_more(answering: int) -> None:
    budget = taught(answering=answering).budget(answering)
    slowed = (STEP_SECONDS + budget * TOKEN_SECONDS) / STEP_SECONDS
    assert SLOWDOWN - 0.1 < slowed <= SLOWDOWN


@pytest.mark.parametrize(
    ("step_seconds", "token_seconds"),
    [
        pytest.param(0.05, 0.008, id="two cores, a small model"),
        pytest.param(0.3, 0.03, id="two cores, a larger one"),
        pytest.param(0.012, 0.00002, id="a GPU"),
    ],
)
def test_noise_does_not_mislead_it(step_seconds: float, token_seconds: float) -> None:
    right = min(MOST, (SLOWDOWN - 1) * step_seconds / token_seconds)
    assert 0.6 * right <= taught(step_seconds, token_seconds, noise=0.1).budget(4) <= 1.5 * right


def test_tokens_that_take_twice_as_long_halve_the_budget() -> None:
    fast, slow = taught(), taught(token_seconds=2 * TOKEN_SECONDS)
    assert abs(fast.budget(4) - 2 * slow.budget(4)) <= 2


def test_a_machine_that_becomes_slower_is_noticed_and_one_that_recovers_too() -> None:
    pace = taught()
    before = pace.budget(4)
    for _ in range(40):
        pace.took(STEP_SECONDS + 10 * TOKEN_SECONDS * 5, answering=4, read=10)
    assert before / 6 < pace.budget(4) < before / 4
    for _ in range(40):
        pace.took(STEP_SECONDS + 10 * TOKEN_SECONDS, answering=4, read=10)
    pace.took(STEP_SECONDS, answering=4, read=0)
    assert abs(pace.budget(4) - before) <= 2


def test_however_slow_reading_is_a_prompt_gets_on() -> None:
    assert taught(token_seconds=1000).budget(4) == LEAST_TOKENS


def test_more_answers_than_were_ever_seen_are_looked_at_alone_first() -> None:
    pace = taught(answering=4)
    assert pace.budget(32) == 0
    for _ in range(50):
        pace.took(4 * STEP_SECONDS, answering=32, read=0)
    assert pace.budget(32) > 3 * pace.budget(4)


@given(
    st.lists(st.floats(0.0001, 1), min_size=1, max_size=20),
    st.floats(1, 10),
    st.floats(0.00001, 0.1),
)
def test_the_longer_answers_take_the_more_is_read_beside_them(steps: list[float], slower: float, token_seconds: float) -> None:
    one, two = PrefillBudget(MOST), PrefillBudget(MOST)
    for seconds in steps:
        one.took(seconds, answering=4, read=0)
        two.took(seconds * slower, answering=4, read=0)
    for pace in (one, two):
        pace.took(100 * token_seconds, answering=0, read=100)
    assert one.budget(4) <= two.budget(4)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 40), st.integers(0, MOST)), max_size=50), st.integers(0, 40))
def test_whatever_it_is_told_the_budget_stays_within_its_limits(steps: list[tuple[float, int, int]], answering: int) -> None:
    pace = PrefillBudget(MOST)
    for seconds, answered, read in steps:
        pace.took(seconds, answering=answered, read=read)
    assert pace.budget(answering) == 0 or LEAST_TOKENS <= pace.budget(answering) <= MOST


@pytest.mark.parametrize(
    ("answering", "reading", "times"),
    [
        pytest.param(4, 1, 1, id="one prompt beside four answers"),
        pytest.param(4, 4, 1, id="as many prompts as answers"),
        pytest.param(4, 12, 3, id="three prompts for each answer"),
        pytest.param(1, 31, 31, id="all but one wait"),
    ],
)
def test_where_more_wait_to_be_read_than_answer_more_is_read(answering: int, reading: int, times: int) -> None:
    pace = taught(answering=answering)
    alone = pace.budget(answering)
    assert alone * times - times < pace.budget(answering, reading) < (alone + 1) * times + 1
