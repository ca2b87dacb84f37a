"""How many replicas a pool needs: single decisions, and what holds for any demand."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as some
from msgspec.structs import replace

from features.autoscaling.rules.advice import ScalingAdvice, ScalingState, advise
from features.autoscaling.rules.demand import PoolDemand
from shared.worker_pools import WorkerPool

POOL = WorkerPool(name="l4", models=("m",), min=1, max=50, start_seconds=100, idle_seconds=300)
#: 7 requests/s need 10 replicas of 1 request/s at 70 %.
DEMAND = PoolDemand(as_of=0, ready=10, rate_30=7, rate_240=7, per_replica=1.0)


def wanted(demand: PoolDemand, pool: WorkerPool = POOL, state: ScalingState | None = None, now: float = 0) -> tuple[int, ScalingState]:
    advice, after = advise(replace(demand, as_of=now), pool, state or ScalingState(), now)
    assert advice is not None
    return advice.wanted, after


def test_rate_and_backlog() -> None:
    assert wanted(DEMAND)[0] == 10
    assert wanted(replace(DEMAND, waiting=250))[0] == 13
    assert wanted(replace(DEMAND, rate_30=14))[0] == 20
    assert wanted(replace(DEMAND, rate_240=14))[0] == 20


def test_reason_is_a_sentence() -> None:
    advice, _ = advise(replace(DEMAND, waiting=250, gpu=0.8), POOL, ScalingState(), 0)
    assert advice == ScalingAdvice(14, "7 requests/s and 250 waiting need 13; GPU over 70 %: 1 more")
    advice, _ = advise(replace(DEMAND, first_text_seconds=5.1), POOL, ScalingState(), 0)
    assert advice == ScalingAdvice(11, "7 requests/s and 0 waiting need 10; average time to first text over 5 s: 1 more")


@pytest.mark.parametrize("old", [None, 30.1])
def test_no_advice_without_fresh_data(old: float | None) -> None:
    state = ScalingState(wanted=7)
    assert advise(None if old is None else DEMAND, POOL, state, old or 0) == (None, state)
    assert advise(DEMAND, POOL, state, 30.0)[0] is not None


@pytest.mark.parametrize(
    ("change", "more"),
    [
        ({"cpu": 0.81}, 1),
        ({"cpu": 0.8}, 0),
        ({"queue": 101}, 1),
        ({"queue": 100}, 0),
        ({"first_text_seconds": 5.1}, 1),
        ({"gpu": 0.71}, 1),
        ({"gpu": 0.7}, 0),
        ({"cpu": 1.0, "queue": 500, "first_text_seconds": 60, "gpu": 1.0}, 4),
    ],
)
def test_each_trigger_adds_one_replica(change: dict[str, float], more: int) -> None:
    demand = replace(DEMAND, **change)  # type: ignore[arg-type]
    number, state = wanted(demand)
    assert number == 10 + more
    # Later looks add no further replica.
    for now in range(15, 300, 15):
        number, state = wanted(replace(demand, ready=10 + more), state=state, now=now)
    assert number == 10 + more


def test_falls_slowly_to_the_highest_wish() -> None:
    _, state = wanted(DEMAND)
    _, state = wanted(replace(DEMAND, rate_30=5, rate_240=5), state=state, now=15)
    low = replace(DEMAND, rate_30=0.1, rate_240=0.1)
    falls = []
    for now in range(30, 700, 15):
        number, state = wanted(low, state=state, now=now)
        falls.append((now, number))
    changes = [after for before, after in pairwise([(0, 10), *falls]) if before[1] != after[1]]
    # The wanted number 10 counts until 300 s, and 8 counts until 315 s.
    assert changes == [(300, 8), (315, 6), (330, 5), (345, 4), (360, 3), (375, 2), (390, 1)]


def test_unknown_speed_uses_the_slots() -> None:
    unknown = PoolDemand(as_of=0, ready=2, rate_30=1, rate_240=1, slots=8, slots_used=8, waiting=6)
    assert wanted(unknown)[0] == 5
    assert wanted(PoolDemand(as_of=0, waiting=6), replace(POOL, min=0))[0] == 1


def test_last_known_speed_is_remembered() -> None:
    _, state = wanted(DEMAND)
    assert wanted(replace(DEMAND, per_replica=None, rate_30=14), state=state, now=15)[0] == 20


def test_pool_without_requests_falls_to_zero() -> None:
    pool = replace(POOL, min=0)
    _, state = wanted(replace(DEMAND, ready=1, rate_30=0.1, rate_240=0.1), pool)
    _, state = wanted(PoolDemand(as_of=0, ready=1, slots=4, slots_used=1), pool, state, 301)
    assert wanted(PoolDemand(as_of=0, ready=1, slots=4), pool, state, 600)[0] == 1
    assert wanted(PoolDemand(as_of=0, ready=1, slots=4), pool, state, 602)[0] == 0


def test_step_and_budget() -> None:
    assert wanted(replace(DEMAND, rate_30=30), replace(POOL, max_step=3))[0] == 13
    pool = replace(POOL, price_per_hour=1.0, budget_per_day=20)
    state = ScalingState()
    for now in range(0, 7201, 15):
        number, state = wanted(DEMAND, pool, state, now)
    assert (state.spent, number) == (pytest.approx(20), 8)
    for now in range(7215, 7500, 15):
        number, state = wanted(DEMAND, pool, state, now)
    assert number == 1
    assert wanted(DEMAND, pool, state, 86_400)[0] == 10


def test_machine_that_never_becomes_ready_is_given_up() -> None:
    demand = replace(DEMAND, ready=9)
    numbers, state = [], ScalingState()
    for now in range(0, 600, 15):
        advice, state = advise(replace(demand, as_of=now), POOL, state, now)
        assert advice is not None
        numbers.append((now, advice.wanted))
        assert ("did not become ready within 200 s" in advice.reason) == (225 <= now < 425)
    assert {number for now, number in numbers if now < 225} == {10}
    assert {number for now, number in numbers if 225 <= now < 425} == {9}
    # Then scaling tries again.
    assert {number for now, number in numbers if now >= 435} == {10}


def test_machines_that_become_ready_one_by_one_are_not_given_up() -> None:
    state = ScalingState()
    for now in range(0, 1500, 15):
        number, state = wanted(replace(DEMAND, ready=now // 150), state=state, now=now)
        assert number == 10


def turns_of(numbers: list[tuple[float, int]]) -> list[float]:
    signs = [(now, (after > before) - (after < before)) for (_, before), (now, after) in pairwise(numbers) if after != before]
    return [now for (_, old), (now, new) in pairwise(signs) if old != new]


@given(
    demands=some.lists(
        some.tuples(
            some.floats(1, 45),
            some.floats(0, 60),
            some.integers(0, 500),
            some.integers(0, 30),
            some.sampled_from([None, 0.2, 1.0]),
            some.booleans(),
        ),
        min_size=30,
        max_size=120,
    ),
    bounds=some.tuples(some.integers(0, 5), some.integers(0, 20)),
    idle=some.sampled_from([1, 30, 300]),
    budget=some.sampled_from([None, 1.0]),
)
def test_bounds_and_turns_hold_for_any_demand(
    demands: list[tuple[float, float, int, int, float | None, bool]], bounds: tuple[int, int], idle: int, budget: float | None
) -> None:
    low, more = bounds
    pool = WorkerPool(
        name="p",
        models=("m",),
        min=low,
        max=max(1, low + more),
        idle_seconds=idle,
        start_seconds=5,
        price_per_hour=1,
        budget_per_day=budget,
    )
    state, now, numbers = ScalingState(), 0.0, []
    for seconds, rate, waiting, ready, share, is_stale in demands:
        now += seconds
        demand = PoolDemand(
            as_of=now - 60 * is_stale, ready=ready, rate_30=rate, rate_240=rate, waiting=waiting, per_replica=share, gpu=share, slots=ready
        )
        before = state
        advice, state = advise(demand, pool, state, now)
        if advice is None:
            assert (is_stale, state) == (True, before)
            continue
        assert pool.min <= advice.wanted <= pool.max
        numbers.append((now, advice.wanted))
    assert all(after >= before - max(1, before // 4) for (_, before), (_, after) in pairwise(numbers))
    turns = turns_of(numbers)
    assert all(sum(at <= other < at + 600 for other in turns) <= 4 for at in turns), turns


def test_workers_that_were_there_first_stay_for_the_idle_time() -> None:
    quiet, state, numbers = PoolDemand(0, ready=4, slots=16), ScalingState(), []
    pool = WorkerPool(name="l4", models=("m",), min=0, max=9, idle_seconds=60)
    for now in range(0, 121, 15):
        advice, state = advise(replace(quiet, as_of=now), pool, state, now)
        assert advice is not None
        numbers.append(advice.wanted)
    assert numbers[:4] == [4, 4, 4, 4], "nothing is known about the time before"
    assert numbers[-1] < 4
