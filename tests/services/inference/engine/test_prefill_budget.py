import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine.scheduler import FIRST_TOKENS, MIN_TOKENS, QUIET_EVERY, SLOWDOWN, SLOWDOWN_PER_PROMPT, PrefillBudget

MAX = 2048
STEP_SECONDS = 0.02
TOKEN_SECONDS = 0.001


def trained(
    step_seconds: float = STEP_SECONDS, token_seconds: float = TOKEN_SECONDS, *, answering: int = 4, most: int = MAX, noise: float = 0
) -> PrefillBudget:
    """Return a budget that has been in use for a while on a machine of this speed."""
    pace, chance = PrefillBudget(most), random.Random(1)
    for step in range(200):
        read = 0 if step % 4 == 0 else pace.budget(answering)
        seconds = (step_seconds + read * token_seconds) * (1 + chance.uniform(-noise, noise))
        pace.record_step(seconds, answering=answering, read=read)
    return pace


@pytest.mark.parametrize("answering", [1, 2, 32])
def test_first_steps_read_a_few_tokens(answering: int) -> None:
    pace = PrefillBudget(MAX)
    assert pace.budget(answering) == FIRST_TOKENS
    pace.record_step(STEP_SECONDS, answering=answering, read=0)
    assert pace.budget(answering) == FIRST_TOKENS


@pytest.mark.parametrize("read", [0, 40])
def test_steps_that_something_else_slowed_change_no_known_times(read: int) -> None:
    pace = trained()
    before = pace.budget(4)
    for _ in range(20):
        pace.record_step(5 * STEP_SECONDS, answering=4, read=read, is_usual=False)
    assert pace.budget(4) == before
    # They still count as steps between measurements, and as the measurement itself.
    for _ in range(QUIET_EVERY):
        pace.record_step(STEP_SECONDS, answering=4, read=1, is_usual=False)
    assert pace.budget(4) == 0
    pace.record_step(5 * STEP_SECONDS, answering=4, read=0, is_usual=False)
    assert pace.budget(4) == before


def test_answers_that_never_were_alone_are_measured_too() -> None:
    pace = PrefillBudget(MAX)
    for _ in range(QUIET_EVERY):
        assert pace.budget(4) == FIRST_TOKENS
        pace.record_step(STEP_SECONDS, answering=4, read=FIRST_TOKENS)
    assert pace.budget(4) == 0


def test_after_many_reading_steps_one_step_reads_nothing() -> None:
    pace = trained()
    budgets = []
    for _ in range(2 * QUIET_EVERY + 2):
        budgets.append(pace.budget(4))
        pace.record_step(STEP_SECONDS + budgets[-1] * TOKEN_SECONDS, answering=4, read=budgets[-1])
    assert 2 <= budgets.count(0) <= 3


def test_without_answers_a_step_reads_as_much_as_it_can() -> None:
    assert PrefillBudget(MAX).budget(0) == trained(answering=4).budget(0) == MAX


def test_budget_never_exceeds_the_batch() -> None:
    assert PrefillBudget(8).budget(1) == 8
    assert trained(step_seconds=10, most=300).budget(4) == 300


def gaps(pace: PrefillBudget, steps: int, *, noise: float, token_seconds: float = TOKEN_SECONDS, growth: float = 0.0) -> list[float]:
    """Return the times of steps while a prompt is read, as multiples of a quiet step. Reading slows the answers by ``growth``."""
    chance, times = random.Random(2), []
    for step in range(steps):
        read = pace.budget(4)
        alone = STEP_SECONDS * (1 + growth * step / steps)
        times.append((alone + read * token_seconds * (1 + step / steps)) * (1 + abs(chance.gauss(0, noise))))
        pace.record_step(times[-1], answering=4, read=read)
    return [seconds / STEP_SECONDS for seconds in times]


@pytest.mark.parametrize("growth", [0.0, 0.6])
def test_nearly_all_of_the_allowed_slowdown_is_used_on_a_quiet_machine(growth: float) -> None:
    found = sorted(gaps(trained(), 300, noise=0, growth=growth))
    assert found[len(found) // 2] > 0.85 * SLOWDOWN
    assert found[int(0.99 * len(found))] <= 1.05 * SLOWDOWN


def test_prompt_that_slows_answers_beyond_the_limit_is_still_read() -> None:
    pace = trained()
    gaps(pace, 2000, noise=0, growth=20)
    assert pace.budget(4) > 30


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.5])
def test_one_step_in_a_hundred_may_exceed_the_allowed_slowdown_on_a_noisy_machine(noise: float) -> None:
    pace = trained()
    gaps(pace, 300, noise=noise)
    found = sorted(gaps(pace, 1000, noise=noise))
    assert found[int(0.99 * len(found))] <= 1.1 * SLOWDOWN * (1 + noise)
    assert found[len(found) // 2] > 0.65 * SLOWDOWN


@pytest.mark.parametrize(
    ("step_seconds", "token_seconds"),
    [
        pytest.param(0.05, 0.008, id="two cores, a small model"),
        pytest.param(0.3, 0.03, id="two cores, a larger one"),
        pytest.param(0.012, 0.00002, id="a GPU"),
    ],
)
def test_noise_does_not_mislead_the_budget(step_seconds: float, token_seconds: float) -> None:
    right = min(MAX, (0.8 * SLOWDOWN - 1) * step_seconds / token_seconds)
    assert 0.6 * right <= trained(step_seconds, token_seconds, noise=0.1).budget(4) <= 1.5 * right


def test_pieces_become_long_again_although_each_has_a_fixed_cost() -> None:
    pace, planned = PrefillBudget(MAX), list[int]()
    for step in range(400):
        read = pace.budget(4)
        piece_seconds = (3 if step < 200 else 1.5) * STEP_SECONDS
        pace.record_step(STEP_SECONDS + (piece_seconds + read * TOKEN_SECONDS if read else 0), answering=4, read=read)
        planned += [read] if read else []
    assert planned[150] == MIN_TOKENS
    assert planned[-1] > 3 * MIN_TOKENS


def test_doubling_the_time_per_token_halves_the_budget() -> None:
    fast, slow = trained(), trained(token_seconds=2 * TOKEN_SECONDS)
    assert abs(fast.budget(4) - 2 * slow.budget(4)) <= 2


def test_slowdown_and_recovery_of_the_machine_are_noticed() -> None:
    pace = trained()
    before = pace.budget(4)
    for _ in range(40):
        pace.record_step(STEP_SECONDS + 10 * TOKEN_SECONDS * 5, answering=4, read=10)
    assert before / 6 < pace.budget(4) < before / 4
    for _ in range(40):
        pace.record_step(STEP_SECONDS + 10 * TOKEN_SECONDS, answering=4, read=10)
    pace.record_step(STEP_SECONDS, answering=4, read=0)
    assert abs(pace.budget(4) - before) <= 2


def test_a_step_that_the_arrival_of_a_prompt_slows_is_not_the_limit() -> None:
    usual, slowed = trained(), trained()
    slowed.record_step(8 * STEP_SECONDS, answering=4, read=0)
    assert slowed.budget(4) == usual.budget(4)
    assert max(gaps(slowed, 300, noise=0)) <= 1.05 * SLOWDOWN


def test_steps_measured_beside_a_long_prompt_are_not_quiet_ones() -> None:
    pace = trained()
    gaps(pace, 60 * QUIET_EVERY, noise=0, growth=1)
    assert max(gaps(pace, 100, noise=0)) <= 1.1 * SLOWDOWN


def test_steps_of_a_gpu_may_always_take_a_time_that_nobody_notices() -> None:
    pace = PrefillBudget(MAX, 0.1)
    # The first step loads the GPU's programs.
    pace.record_step(0.8, answering=0, read=20)
    pace.record_step(0.03, answering=0, read=200)
    for _ in range(3):
        pace.record_step(0.005, answering=1, read=0)
    assert 400 < pace.budget(1) <= (0.1 - 0.005) / (0.03 / 200) + 1
    for _ in range(10):
        pace.record_step(0.06, answering=16, read=0)
    assert pace.budget(16) > 1.5 * pace.budget(1), "slower answers still allow more"


def test_prompt_makes_progress_however_slow_reading_is() -> None:
    assert trained(token_seconds=1000).budget(4) == MIN_TOKENS


def test_new_number_of_answers_is_measured_alone_first() -> None:
    pace = trained(answering=4)
    assert pace.budget(32) == 0
    for _ in range(50):
        pace.record_step(4 * STEP_SECONDS, answering=32, read=0)
    assert pace.budget(32) > 3 * pace.budget(4)


@given(
    st.lists(st.floats(0.0001, 1), min_size=1, max_size=20),
    st.floats(1, 10),
    st.floats(0.00001, 0.1),
)
def test_slower_answers_allow_more_reading(steps: list[float], slower: float, token_seconds: float) -> None:
    one, two = PrefillBudget(MAX), PrefillBudget(MAX)
    for seconds in steps:
        one.record_step(seconds, answering=4, read=0)
        two.record_step(seconds * slower, answering=4, read=0)
    for pace in (one, two):
        pace.record_step(100 * token_seconds, answering=0, read=100)
    assert one.budget(4) <= two.budget(4)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 40), st.integers(0, MAX)), max_size=50), st.integers(0, 40))
def test_budget_stays_within_its_limits(steps: list[tuple[float, int, int]], answering: int) -> None:
    pace = PrefillBudget(MAX)
    for seconds, answered, read in steps:
        pace.record_step(seconds, answering=answered, read=read)
    assert pace.budget(answering) == 0 or MIN_TOKENS <= pace.budget(answering) <= MAX


@pytest.mark.parametrize(
    ("answering", "reading", "slowdown"),
    [
        pytest.param(4, 1, SLOWDOWN, id="one prompt beside four answers"),
        pytest.param(4, 8, SLOWDOWN, id="two prompts for each answer"),
        pytest.param(4, 12, 3 * SLOWDOWN_PER_PROMPT, id="three prompts for each answer"),
        pytest.param(1, 31, 31 * SLOWDOWN_PER_PROMPT, id="all but one wait"),
    ],
)
def test_many_more_waiting_prompts_than_answers_raise_the_budget(answering: int, reading: int, slowdown: float) -> None:
    pace = trained(answering=answering)
    planned = pace.budget(answering, reading) * TOKEN_SECONDS + STEP_SECONDS
    assert 0.8 * slowdown * STEP_SECONDS < planned <= slowdown * STEP_SECONDS
