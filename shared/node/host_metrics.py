"""Updates a node's metrics about its machine when they are read, at most once a second. GPUs are read by their own task.

With cgroup v2 limits, processors and memory are those of the limits; disk and network are always the machine's. A figure that the system
does not report is left out, or NaN if it was reported before, and logged once. Nodes on one machine all report it, under one name.
"""

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from prometheus_client import Counter

from shared.node.gpu_readings import Gpu, Gpus
from shared.node.machine import UNREADABLE, CounterRate, Space, ThisMachine, TransferredBytes, cpu_share
from shared.telemetry import logs
from shared.telemetry.metrics_registry import LabelledGauge, Metrics

#: An update takes half a millisecond in the event loop, so it must not happen more often.
UPDATE_SECONDS = 1.0

T = TypeVar("T")
_log = logs.get()


class Host:
    """``run`` is a task; ``update`` brings the metrics up to date."""

    def __init__(
        self,
        metrics: Metrics,
        folder: Path,
        *,
        machine: ThisMachine | None = None,
        gpus: Gpus | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``folder`` is on the disk to report, that of the node's files."""
        self._metrics = metrics
        self._folder = folder
        self._machine = machine or ThisMachine()
        self._gpus = gpus or Gpus()
        self._clock = clock
        self._updated_at = -math.inf
        #: Figures that the system does not report, so that each is logged once.
        self._unavailable: set[str] = set()
        #: Of the machine.
        self.name = self._machine.name()
        self._disk_labels = (self.name, self._machine.disk_name(folder))
        self._memory: Space | None = None
        self._space: Space | None = None
        self._disk = (CounterRate(), CounterRate())
        self._network = (CounterRate(), CounterRate())
        self._of_gpus: dict[Callable[[Gpu], float | None], LabelledGauge] = {
            lambda gpu: gpu.usage: LabelledGauge(lambda: metrics.gpu_usage),
            lambda gpu: gpu.memory_used: LabelledGauge(lambda: metrics.gpu_memory_used),
            lambda gpu: gpu.memory_total: LabelledGauge(lambda: metrics.gpu_memory_total),
            lambda gpu: gpu.watts: LabelledGauge(lambda: metrics.gpu_power),
            lambda gpu: gpu.celsius: LabelledGauge(lambda: metrics.gpu_temperature),
        }
        self._processors = self._ask("processors", self._machine.processors)

    async def run(self) -> None:
        await self._gpus.run()

    def fresh_gpus(self) -> list[Gpu]:
        return self._gpus.fresh()

    def update(self) -> None:
        now = self._clock()
        if now - self._updated_at >= UPDATE_SECONDS:
            seconds = now - self._updated_at
            self._updated_at = now
            self._show_processors()
            self._show_space()
            self._show_transferred(seconds)
        gpus = self._gpus.fresh()
        for read, series in self._of_gpus.items():
            series.show({(self.name, str(gpu.index)): value for gpu in gpus if (value := read(gpu)) is not None})

    def _show_processors(self) -> None:
        before, now = self._processors, self._ask("processors", self._machine.processors)
        share = None if before is None or now is None else cpu_share(before, now)
        if share is not None:
            self._metrics.host_cpu.labels(self.name).set(share)
        elif now is None and before is not None:
            self._metrics.host_cpu.labels(self.name).set(math.nan)
        # The system counts in steps of 10 ms. If nothing was counted, the next share covers the longer time.
        if share is not None or before is None or now is None or before.of != now.of:
            self._processors = now

    def _show_space(self) -> None:
        metrics, memory, disk = (
            self._metrics,
            self._ask("memory", self._machine.memory),
            self._ask("disk", partial(self._machine.disk, self._folder)),
        )
        if memory is not None or self._memory is not None:
            metrics.host_memory_used.labels(self.name).set(math.nan if memory is None else memory.used)
            metrics.host_memory_total.labels(self.name).set(math.nan if memory is None else memory.total)
        if disk is not None or self._space is not None:
            metrics.host_disk_free.labels(*self._disk_labels).set(math.nan if disk is None else disk.free)
            metrics.host_disk_total.labels(*self._disk_labels).set(math.nan if disk is None else disk.total)
        self._memory, self._space = memory, disk

    def _show_transferred(self, seconds: float) -> None:
        metrics = self._metrics
        if (disks := self._ask("bytes of the disks", self._machine.disk_bytes)) is not None:
            self._grow((metrics.host_disk_read, metrics.host_disk_written), self._disk, disks, seconds)
        if (network := self._ask("bytes of the network", self._machine.network_bytes)) is not None:
            self._grow((metrics.host_network_received, metrics.host_network_sent), self._network, network, seconds)

    def _grow(
        self,
        counters: tuple[Counter, Counter],
        growths: tuple[CounterRate, CounterRate],
        totals: Mapping[str, TransferredBytes],
        seconds: float,
    ) -> None:
        inwards, outwards = (counter.labels(self.name) for counter in counters)
        inwards.inc(growths[0].take({source: moved.inwards for source, moved in totals.items()}, seconds))
        outwards.inc(growths[1].take({source: moved.outwards for source, moved in totals.items()}, seconds))

    def _ask(self, what: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except UNREADABLE as error:
            if what not in self._unavailable:
                self._unavailable.add(what)
                _log.info("a host metric is unavailable and left out", figure=what, why=str(error))
            return None
