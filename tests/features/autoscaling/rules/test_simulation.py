"""The simulated day: its load, its queue, and what autoscaling achieves."""

import pytest

from features.autoscaling.rules import simulation
from features.autoscaling.rules.demand import PoolDemand
from features.autoscaling.rules.simulation import DAY_SECONDS, SPEED, PoolSimulation

#: A whole day takes seconds to simulate.
HOURS_SECONDS = 4 * 3600


def test_load_has_the_mean_the_peak_and_the_losses() -> None:
    rates, losses = simulation.make_load(6_000, seed=1, burst=1.0)
    assert len(rates) == DAY_SECONDS
    assert sum(rates) / DAY_SECONDS == pytest.approx(10)
    assert max(rates) / min(rates) == pytest.approx(2.9)
    assert len(losses) == 4


def test_burst_multiplies_a_few_minutes() -> None:
    (plain, _), (burst, _) = (simulation.make_load(6_000, seed=1, burst=factor) for factor in (1.0, 10.0))
    more = [after / before for before, after in zip(plain, burst, strict=True) if after != before]
    assert 300 <= len(more) <= 900
    assert set(map(round, more)) == {10}


def fixed(number: int) -> simulation.Scaler:
    return lambda _demand: number


def test_enough_workers_answer_at_once_and_cost_their_hours() -> None:
    load = ([10.0] * HOURS_SECONDS, {3600})
    day = PoolSimulation(load, fixed(30), 60).run()
    # The next look orders the lost worker's replacement.
    assert day.gpu_hours == pytest.approx(4 * 30, abs=0.2)
    assert (day.p95_wait_seconds, day.refused, day.direction_changes) == (0, 0, 0)


def test_same_seed_gives_the_same_day() -> None:
    def simulate(seed: int) -> simulation.SimulatedDay:
        rates, losses = simulation.make_load(1_000, seed)
        pool = simulation.make_pool(60)
        return PoolSimulation((rates[:HOURS_SECONDS], losses), simulation.advised(pool), 60, seed=seed).run()

    assert simulate(1) == simulate(1) != simulate(2)


def test_queue_is_bounded_and_the_rest_is_refused() -> None:
    # 10 workers answer 5 of 10 requests/s.
    day = PoolSimulation(([10.0] * HOURS_SECONDS, set()), fixed(10), 60, queue_most=100).run()
    assert day.max_waiting == 100
    assert day.refused == pytest.approx((10 - 10 * SPEED) * HOURS_SECONDS, rel=0.02)
    assert day.p95_wait_seconds == pytest.approx(100 / (10 * SPEED), abs=8)


def test_scaler_sees_the_measured_speed_and_rates() -> None:
    seen: list[PoolDemand] = []

    def look(demand: PoolDemand) -> int:
        seen.append(demand)
        return 40

    PoolSimulation(([10.0] * HOURS_SECONDS, set()), look, 60).run()
    later = seen[100:]
    assert sum(one.per_replica or 0 for one in later) / len(later) == pytest.approx(SPEED, rel=0.02)
    assert sum(one.rate_30 for one in later) / len(later) == pytest.approx(10, rel=0.02)
    assert sum(one.rate_240 for one in later) / len(later) == pytest.approx(10, rel=0.02)


def test_direction_changes_are_counted_within_ten_minutes() -> None:
    assert simulation.most_turns([1, 2, 2, 3, 3]) == 0
    assert simulation.most_turns([1, 2, 1, 2, 2, 1]) == 3
    assert simulation.most_turns([1, 2, *[1] * 40, 2, *[1] * 40]) == 2


def test_oracle_pays_for_the_start() -> None:
    # 7 requests/s need 20 workers for an hour, ordered 5 minutes in advance.
    rates = [0.35] * 36_000 + [7.0] * 3600 + [0.35] * (DAY_SECONDS - 39_600)
    assert simulation.oracle_hours((rates, set()), 300) == pytest.approx(24 + 19 * (1 + 300 / 3600))


def test_advice_meets_its_targets_on_a_day() -> None:
    days = simulation.compare(10_000, 150)
    oracle, advice, gpu, _ = days.values()
    assert advice.p95_wait_seconds <= 5
    assert advice.gpu_hours <= 1.25 * oracle.gpu_hours
    assert advice.gpu_hours <= 0.75 * gpu.gpu_hours
    assert advice.direction_changes <= 4
