"""The energy of workers, from the history."""

from datetime import timedelta

import pytest

from services.metrics.history import energy, query_plan
from services.metrics.history.history_store import HistoryStore
from shared.api.metrics import GetHistory, HistoryGrouping, NodeEnergy
from tests.services.metrics.history.looked_at import BEGIN, KEEPS, Mesh


async def found(mesh: Mesh, store: HistoryStore) -> tuple[NodeEnergy, ...]:
    await mesh.keeper.keep(store)
    wanted = GetHistory(energy.NAMES, BEGIN, BEGIN + timedelta(days=31), 24 * 3600)
    question = query_plan.read(wanted, mesh.now + timedelta(minutes=1), KEEPS)
    return energy.sum_up((await store.lines(question, (HistoryGrouping.NODE,), 1000)).points)


async def test_energy_is_summed_by_node(store: HistoryStore) -> None:
    mesh = Mesh()
    await mesh.look()
    for _ in range(20):
        mesh.workers["a"].energy.labels("rig", "watts").inc(1000)
        mesh.workers["a"].energy_cost.labels("rig").inc(0.25)
        mesh.workers["b"].energy.labels("GPU-1", "counter").inc(500)
        mesh.workers["b"].energy.labels("GPU-2", "counter").inc(500)
        mesh.workers["b"].energy.labels("GPU-3", "power").inc(1)
        await mesh.look(seconds=3600)
    assert await found(mesh, store) == (
        NodeEnergy("a", 20_000, 5.0, ("watts",)),
        NodeEnergy("b", 20_020, None, ("counter", "power")),
    )


async def test_a_gpu_and_a_machine_of_two_workers_are_counted_once(store: HistoryStore) -> None:
    mesh = Mesh()
    await mesh.look()
    for step in range(4):
        for number, worker in enumerate(mesh.workers.values()):
            worker.energy.labels("GPU-1", "counter").inc(100 + number)
            worker.energy_cost.labels("GPU-1").inc(1 + number)
            worker.energy.labels("rig", "watts").inc(10 * (1 + number))
        await mesh.look(seconds=24 * 3600 if step else 15)
    total = await found(mesh, store)
    assert sum(each.joules for each in total) == pytest.approx(4 * 101 + 4 * 20)
    assert [(each.node, each.cost) for each in total] == [("b", 8.0)]
