"""How the energy of a worker's machine is measured."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from services.inference import energy
from services.inference.energy import Energy, EnergyMeter, EnergySource
from services.inference.settings import InferenceSettings
from shared.node.gpu_readings import Gpu
from shared.node.host_metrics import Host
from shared.telemetry.metrics_registry import Metrics
from tests.testnet import MESH, until

COUNTING, POWER = Gpu(0, watts=300, joules=1000, uuid="GPU-1"), Gpu(1, watts=50, uuid="GPU-2")


def joules(meter: EnergyMeter, *gpus: Gpu, seconds: float = 2, is_busy: bool = False) -> list[Energy]:
    return list(meter.take(gpus, seconds, is_busy=is_busy))


def test_a_gpus_own_counter_is_preferred_to_its_power() -> None:
    meter = EnergyMeter("rig")
    assert joules(meter, COUNTING, POWER) == [Energy("GPU-1", EnergySource.COUNTER, 0), Energy("GPU-2", EnergySource.POWER, 100)]
    (counted,) = joules(meter, Gpu(0, joules=1700, uuid="GPU-1"))
    assert counted == Energy("GPU-1", EnergySource.COUNTER, 700)


def test_energy_is_counted_on_after_a_gpu_was_silent_and_after_its_driver_restarted() -> None:
    meter = EnergyMeter("rig", 100)
    joules(meter, COUNTING)
    assert joules(meter) == [], "the settings don't count in addition"
    assert joules(meter, Gpu(0, joules=1800, uuid="GPU-1"))[0].joules == 800
    assert joules(meter, Gpu(0, joules=30, uuid="GPU-1"))[0].joules == 30


@pytest.mark.parametrize(
    ("idle", "busy", "expected"), [(40, 200, [80, 400]), (40, None, [80, 80]), (None, 200, [400]), (None, None, []), (0, 10, [0, 20])]
)
def test_a_machine_without_such_a_gpu_uses_the_watts_of_its_settings(
    idle: float | None, busy: float | None, expected: Sequence[float]
) -> None:
    meter = EnergyMeter("rig", idle, busy)
    silent = Gpu(0, usage=0.5)
    found = [*joules(meter, silent), *joules(meter, silent, is_busy=True)]
    assert [each.joules for each in found] == expected
    assert {(each.device, each.source) for each in found} <= {("rig", EnergySource.WATTS)}


async def test_a_worker_counts_its_energy_and_what_it_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_LOOK_SECONDS", 0.001)
    metrics, settings = Metrics("inference"), InferenceSettings(mesh=MESH, node_key_file=Path("none"), watts_idle=3_600_000, kwh_price=0.5)
    task = asyncio.create_task(energy.measure(metrics, settings, Host(metrics, Path("/")), lambda: False))
    await until(lambda: 'source="watts"}' in metrics.render())
    task.cancel()
    counted = {
        line.split("{")[0]: float(line.split()[-1]) for line in metrics.render().splitlines() if line.startswith("ai_platform_energy")
    }
    assert counted["ai_platform_energy_cost_total"] == pytest.approx(counted["ai_platform_energy_joules_total"] / 3_600_000 * 0.5)
