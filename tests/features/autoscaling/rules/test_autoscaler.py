"""Decisions about several pools."""

from features.autoscaling.rules.autoscaler import Autoscaler, describe
from features.autoscaling.rules.demand import ModelReading, ScalingSnapshot, WorkerReading
from shared.worker_pools import WorkerPool

POOL = WorkerPool(name="l4", models=("m",), min=0, max=5, start_seconds=100, idle_seconds=30, price_per_hour=2)


def worker(node: str, used: int = 0, *, ready: bool = True) -> WorkerReading:
    return WorkerReading(node, ("m",), {}, ready=("m",) if ready else (), slots=4, slots_used=used)


def scaler(*snapshots: ScalingSnapshot) -> Autoscaler:
    found = Autoscaler()
    for snapshot in snapshots:
        found.add(snapshot)
    return found


def test_few_snapshots_are_kept() -> None:
    found = scaler(*(ScalingSnapshot(float(at)) for at in range(0, 1001, 5)))
    ats = [one.at for one in found.snapshots]
    assert len(ats) <= 24
    assert ats[-1] == 1000
    assert ats[0] <= 700, "five minutes are covered"


def test_a_pool_without_ready_workers_does_not_wait_for_its_time() -> None:
    found = scaler(ScalingSnapshot(0))
    assert found.decide([POOL], 0)
    found.add(ScalingSnapshot(5, models={"m": ModelReading(waiting=1)}))
    assert found.decide([POOL], 5)
    assert found.decisions["l4"].scaling.wanted == 1
    busy = scaler(ScalingSnapshot(0, (worker("a", 4),)))
    busy.decide([POOL], 0)
    busy.add(ScalingSnapshot(5, (worker("a", 4),), {"m": ModelReading(waiting=9)}))
    assert not busy.decide([POOL], 5)
    busy.add(ScalingSnapshot(15, (worker("a", 4),), {"m": ModelReading(waiting=9)}))
    assert busy.decide([POOL], 15)


def test_old_data_is_no_decision() -> None:
    found = scaler(ScalingSnapshot(0, (worker("a"),)))
    assert not found.decide([POOL], 31)
    assert found.decisions == {}
    (shown,) = describe([POOL], found.decisions, 31)
    assert (shown.fresh, shown.as_of, shown.reason) == (False, None, "no data yet")


def test_decision_says_what_it_costs_and_what_is_denied() -> None:
    found = scaler(ScalingSnapshot(0, (worker("a", 4), worker("b", 4, ready=False)), {"m": ModelReading(waiting=50)}))
    found.decide([POOL], 0)
    (shown,) = describe([POOL], found.decisions, 1)
    assert (shown.ready, shown.starting, shown.wanted, shown.cost_per_hour, shown.fresh) == (1, 1, 5, 4, True)
    assert shown.denied > 0
    assert shown.reason.endswith("max is 5")


def test_idle_workers_are_drained_first() -> None:
    workers, found = (worker("busy", 3), worker("idle"), worker("loads", ready=False), worker("less", 1)), scaler()
    for step in range(20):
        found.add(ScalingSnapshot(15.0 * step, workers))
        found.decide([POOL], 15.0 * step)
    wanted = found.decisions["l4"].scaling.wanted
    assert wanted < 4
    assert found.drain(POOL) == ("loads", "idle", "less", "busy")[: 4 - wanted]


def test_removed_pool_is_forgotten() -> None:
    found = scaler(ScalingSnapshot(0, (worker("a"),)))
    found.decide([POOL], 0)
    found.decide([], 0)
    assert found.decisions == {}
