"""Snapshots of the mesh, from what its nodes announce and measure."""

from features.autoscaling.rules.demand import ModelReading
from features.autoscaling.rules.snapshot_reader import SnapshotReader
from services.metrics.history.samples import Labels, Sample
from shared.types import NodeId
from tests.features.autoscaling.metrics.fake_mesh import worker


def labels(**pairs: str) -> Labels:
    return tuple(sorted(pairs.items()))


A, B = NodeId("UA"), NodeId("UB")


def counted(arrived: float, refused: float = 0) -> list[Sample]:
    name = "ai_platform_model_requests_total"
    return [Sample(name, labels(model="m", result="arrived"), arrived), Sample(name, labels(model="m", result="refused"), refused)]


def queue(waiting: float, oldest: float) -> list[Sample]:
    of_m = labels(model="m")
    return [Sample("ai_platform_queue_depth", of_m, waiting), Sample("ai_platform_oldest_wait_seconds", of_m, oldest)]


def test_queues_of_all_gateways_are_added_up() -> None:
    found = SnapshotReader().take(5, {A: queue(2, 9), B: queue(3, 4)}, [], [])
    assert found.models == {"m": ModelReading(waiting=5, oldest_seconds=9)}


def test_old_counts_of_a_gateway_that_comes_later_are_no_arrivals() -> None:
    readings = SnapshotReader()
    readings.take(0, {A: counted(1_000_000)}, [], [])
    assert readings.take(5, {A: counted(1_000_010), B: counted(2_000_000)}, [], []).models["m"].arrived == 10
    # B is unreachable for a while, and A restarts.
    readings.take(10, {A: counted(3)}, [], [])
    found = readings.take(15, {A: counted(4), B: counted(2_000_020)}, [], [])
    assert found.models["m"].arrived == 10 + 3 + 1 + 20


def test_first_request_for_a_model_arrives() -> None:
    readings = SnapshotReader()
    readings.take(0, {A: []}, [], [])
    assert readings.take(5, {A: counted(1)}, [], []).models["m"].arrived == 1


def test_refused_requests_have_arrived_too() -> None:
    readings = SnapshotReader()
    readings.take(0, {A: []}, [], [])
    found = readings.take(5, {A: counted(2, refused=3)}, [], []).models["m"]
    assert (found.arrived, found.refused) == (5, 3)


def test_lent_and_stopping_machines_are_left_out() -> None:
    workers = [worker("UA"), worker("UB", owner="alice"), worker("UC", draining=True)]
    assert [one.node for one in SnapshotReader().take(0, {}, workers, []).workers] == ["UA"]


def test_worker_with_its_measures() -> None:
    name = "gen_ai_server_request_duration_seconds_count"
    measured = [
        Sample(name, labels(node="UA", gen_ai_request_model="m"), 7),
        Sample(name, labels(node="UA", gen_ai_request_model="m", error_type="timeout"), 5),
        Sample(name, labels(node="UOTHER", gen_ai_request_model="m"), 100),
        Sample("ai_platform_gpu_usage_ratio", labels(node="UA", gpu="0"), 0.5),
        Sample("ai_platform_gpu_usage_ratio", labels(node="UA", gpu="1"), 1.0),
    ]
    found = SnapshotReader().take(0, {}, [worker("UA", running=3), worker("UB", ready=False), worker("UC", not_ready="paused")], measured)
    first, loading, paused = found.workers
    assert (first.ready, first.slots, first.slots_used, first.completed, first.gpu, first.on_cpu) == (("m",), 4, 3, 7, 0.75, False)
    assert (loading.ready, loading.on_cpu, paused.ready) == ((), True, ())
