"""Counts the energy of this worker's machine, by how it was measured, and what it costs. ``EnergyMeter`` is pure."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from services.inference.settings import InferenceSettings
from shared.api.metrics import JOULES_PER_KWH
from shared.node.gpu_readings import Gpu
from shared.node.host_metrics import Host
from shared.telemetry.metrics_registry import Metrics

#: Samples of whether a request runs: a month has 2.6 million.
_LOOK_SECONDS = 1.0


class EnergySource(StrEnum):
    #: The energy counter of a GPU.
    COUNTER = "counter"
    #: The power of a GPU, times the time.
    POWER = "power"
    #: NODE_WATTS_IDLE and NODE_WATTS_BUSY.
    WATTS = "watts"


@dataclass(frozen=True, slots=True)
class Energy:
    #: A GPU's UUID, or the machine's name.
    device: str
    source: EnergySource
    joules: float


@dataclass(slots=True)
class EnergyMeter:
    machine: str
    watts_idle: float | None = None
    watts_busy: float | None = None
    _totals: dict[str, float] = field(default_factory=dict)
    _has_gpu: bool = False

    def take(self, gpus: Iterable[Gpu], seconds: float, *, is_busy: bool) -> Iterator[Energy]:
        """Yield the energy since the previous call, ``seconds`` ago. A GPU that doesn't answer for a while isn't replaced by settings: its
        counter goes on."""
        for gpu in gpus:
            name = gpu.uuid or f"{self.machine} {gpu.index}"
            if gpu.joules is not None:
                self._has_gpu = True
                before = self._totals.get(name, gpu.joules)
                self._totals[name] = gpu.joules
                # A counter that fell was restarted by the driver.
                yield Energy(name, EnergySource.COUNTER, gpu.joules - before if gpu.joules >= before else gpu.joules)
            elif gpu.watts is not None:
                self._has_gpu = True
                yield Energy(name, EnergySource.POWER, gpu.watts * seconds)
        watts = self.watts_busy if is_busy and self.watts_busy is not None else self.watts_idle
        if watts is not None and not self._has_gpu:
            yield Energy(self.machine, EnergySource.WATTS, watts * seconds)


async def measure(metrics: Metrics, settings: InferenceSettings, host: Host, is_busy: Callable[[], bool]) -> None:
    """Count until canceled."""
    meter, before = EnergyMeter(host.name, settings.watts_idle, settings.watts_busy), time.monotonic()
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        now = time.monotonic()
        for energy in meter.take(host.fresh_gpus(), now - before, is_busy=is_busy()):
            metrics.energy.labels(energy.device, energy.source.value).inc(energy.joules)
            if settings.kwh_price is not None:
                metrics.energy_cost.labels(energy.device).inc(energy.joules / JOULES_PER_KWH * settings.kwh_price)
        before = now
