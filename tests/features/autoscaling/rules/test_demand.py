"""The demand for one pool, from snapshots of the mesh."""

import pytest
from msgspec.structs import replace

from features.autoscaling.rules.demand import ModelReading, ScalingSnapshot, WorkerReading, read_demand
from shared.worker_pools import WorkerPool

POOL = WorkerPool(name="l4", models=("m",), max=5)
WORKER = WorkerReading("a", ("m",), {"gpu": "l4"}, ready=("m",), slots=4, slots_used=2, tokens_per_second=50)


def test_nothing_without_a_snapshot() -> None:
    assert read_demand([], POOL) is None


def test_rates_of_both_windows() -> None:
    # 10 requests/s, and 2 requests/s before the last 30 s.
    counts = [(t, 2 * min(t, 270) + 10 * max(0, t - 270)) for t in range(0, 301, 15)]
    demand = read_demand([ScalingSnapshot(t, models={"m": ModelReading(n), "other": ModelReading(9 * n)}) for t, n in counts], POOL)
    assert demand is not None
    assert (demand.rate_30, demand.rate_240) == (10, (2 * 210 + 300) / 240)


def test_restarted_counter_is_no_negative_rate() -> None:
    demand = read_demand([ScalingSnapshot(t, models={"m": ModelReading(n)}) for t, n in ((0, 500), (15, 530), (30, 0))], POOL)
    assert demand is not None
    assert demand.rate_30 == 1


def test_jitter_of_the_snapshots_changes_no_rate() -> None:
    at = [0.0, 14.9, 30.1, 45.0, 59.9, 65.0]
    demand = read_demand([ScalingSnapshot(t, models={"m": ModelReading(round(100 * t))}) for t in at], POOL)
    assert demand is not None
    assert demand.rate_30 == pytest.approx(100)
    assert demand.rate_240 == pytest.approx(100), "also before 240 s are known"


def test_requests_of_the_pool_wait() -> None:
    models = {"m": ModelReading(waiting=2, oldest_seconds=10), "x": ModelReading(waiting=1, oldest_seconds=90)}
    demand = read_demand([ScalingSnapshot(100, models=models)], POOL)
    assert demand is not None
    assert (demand.waiting, demand.oldest_seconds) == (2, 10)


def test_worker_that_loads_a_model_is_no_capacity() -> None:
    loading = replace(WORKER, node="b", ready=(), slots_used=0)
    demand = read_demand([ScalingSnapshot(0, (WORKER, loading, replace(WORKER, node="c", models=("x",), ready=("x",))))], POOL)
    assert demand is not None
    assert (demand.ready, demand.starting, demand.slots, demand.slots_used, demand.tokens_per_second) == (1, 1, 4, 2, 50)


def test_worker_that_answers_for_another_model_is_no_capacity() -> None:
    demand = read_demand([ScalingSnapshot(0, (replace(WORKER, models=("m", "x"), ready=("x",)),))], POOL)
    assert demand is not None
    assert (demand.ready, demand.starting) == (0, 1)


def test_pool_of_labels_has_the_models_of_its_workers() -> None:
    pool = WorkerPool(name="l4", labels={"gpu": "l4"}, max=5)
    workers = (WORKER, replace(WORKER, node="b", labels={"gpu": "t4"}, models=("x",)))
    demand = read_demand([ScalingSnapshot(0, workers, {"m": ModelReading(waiting=1), "x": ModelReading(waiting=1)})], pool)
    assert demand is not None
    assert (demand.ready, demand.waiting) == (1, 1)


@pytest.mark.parametrize("used", [1, 2, 4])
def test_speed_of_a_replica_does_not_depend_on_its_load(used: int) -> None:
    # An answer takes 8 s, so 4 slots answer 0.5 requests/s.
    snapshots = [ScalingSnapshot(t, (replace(WORKER, slots_used=used, completed=used * t // 8),)) for t in range(0, 305, 8)]
    demand = read_demand(snapshots, POOL)
    assert demand is not None
    assert demand.per_replica == pytest.approx(0.5)


def test_speed_of_a_replica_is_unknown_after_few_answers() -> None:
    demand = read_demand([ScalingSnapshot(t, (replace(WORKER, completed=t),)) for t in (0, 19)], POOL)
    assert demand is not None
    assert demand.per_replica is None


def test_engine_on_the_cpu_reports_its_load_only_when_its_slots_are_full() -> None:
    engine = replace(WORKER, cpu=0.99, on_cpu=True)
    for workers, cpu in (((engine,), None), ((replace(engine, slots_used=4),), 0.99), ((replace(engine, on_cpu=False),), 0.99)):
        demand = read_demand([ScalingSnapshot(0, workers)], POOL)
        assert demand is not None
        assert demand.cpu == cpu


def test_means_of_five_minutes() -> None:
    models = [ModelReading(answered=n, first_text_seconds=8.0 * n, refused=5 * n, waiting=10) for n in range(40)]
    snapshots = [ScalingSnapshot(15 * n, (replace(WORKER, gpu=0.5 if n % 2 else 0.7),), {"m": model}) for n, model in enumerate(models)]
    demand = read_demand(snapshots, POOL)
    assert demand is not None
    assert demand.first_text_seconds == pytest.approx(8)
    assert demand.gpu == pytest.approx(0.6, abs=0.01)
    # 10 requests wait, and in the last minute 5 were refused every 15 s.
    assert demand.queue == pytest.approx(10 + 20)
