import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shared.node.gpu_readings import KEPT_SECONDS, Gpu, Gpus, NoDriver, Nvml
from shared.node.host_metrics import Host
from shared.node.machine import Processors, Space, ThisMachine, TransferredBytes
from shared.telemetry import logs
from shared.telemetry.metrics_registry import Metrics

FIGURES = ("processors", "memory", "disk", "disk_bytes", "network_bytes")


@dataclass
class FakeMachine(ThisMachine):
    """Each reading uses half of the processors, and moves a hundred bytes each way."""

    looks: int = 0
    #: Raised by a figure, by the figure's name.
    broken: dict[str, Exception] = field(default_factory=dict)

    def name(self) -> str:
        return "laptop-1"

    def disk_name(self, folder: Path) -> str:
        return "/"

    def processors(self) -> Processors:
        self._look("processors")
        self.looks += 1
        return Processors("machine", busy=self.looks * 10, possible=self.looks * 20)

    def memory(self) -> Space:
        self._look("memory")
        return Space(used=3, free=5, total=8)

    def disk(self, folder: Path) -> Space:
        self._look("disk")
        return Space(used=30, free=50, total=80)

    def disk_bytes(self) -> dict[str, TransferredBytes]:
        self._look("disk_bytes")
        return {"all": TransferredBytes(inwards=self.looks * 100, outwards=self.looks * 200)}

    def network_bytes(self) -> dict[str, TransferredBytes]:
        self._look("network_bytes")
        return {
            "eth0": TransferredBytes(inwards=self.looks * 300, outwards=0),
            "eth1": TransferredBytes(inwards=0, outwards=self.looks * 400),
        }

    def _look(self, figure: str) -> None:
        if figure in self.broken:
            raise self.broken[figure]


@dataclass
class FakeDriver(Nvml):
    gpus: list[Gpu] = field(default_factory=list)

    def count(self) -> int:
        if not self.gpus:
            raise NoDriver
        return len(self.gpus)

    def read(self, index: int) -> Gpu:
        return self.gpus[index]


@dataclass
class RunningService:
    """A host whose machine, GPUs and clock are fake."""

    machine: FakeMachine = field(default_factory=FakeMachine)
    driver: FakeDriver = field(default_factory=FakeDriver)
    metrics: Metrics = field(default_factory=lambda: Metrics("web"))
    now: float = 0.0

    def __post_init__(self) -> None:
        self.gpus = Gpus(self.driver, self.clock)
        self.host = Host(self.metrics, Path("/"), machine=self.machine, gpus=self.gpus, clock=self.clock)

    def clock(self) -> float:
        return self.now

    def read(self, later: float = 2.0) -> dict[str, float]:
        """Return the machine's series from the metrics text."""
        self.now += later
        self.host.update()
        return shown(self.metrics)


def shown(metrics: Metrics) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(metrics.render()):
        for sample in family.samples:
            if sample.name.startswith(("ai_platform_host_", "ai_platform_gpu_")):
                assert sample.labels.pop("machine")
                sample.labels.pop("disk", None)
                found[sample.name.removeprefix("ai_platform_") + "".join(f" {value}" for value in sample.labels.values())] = sample.value
    return found


def test_every_figure_of_the_machine_is_shown() -> None:
    assert RunningService().read() == {
        "host_cpu_usage_ratio": 0.5,
        "host_memory_used_bytes": 3,
        "host_memory_total_bytes": 8,
        "host_disk_free_bytes": 50,
        "host_disk_total_bytes": 80,
        "host_disk_read_bytes_total": 200,
        "host_disk_written_bytes_total": 400,
        "host_network_received_bytes_total": 600,
        "host_network_sent_bytes_total": 800,
    }


def test_the_machine_is_read_at_most_once_a_second() -> None:
    running_service = RunningService()
    for _ in range(10):
        running_service.read(0.1)
    assert running_service.machine.looks == 2  # at its creation, and once more
    assert running_service.read(1.0)["host_disk_read_bytes_total"] == 300


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("why", [FileNotFoundError("/proc/diskstats"), NotImplementedError("not on this system"), ValueError("?")])
def test_an_unavailable_figure_is_omitted_and_logged_once(figure: str, why: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(logs, "_write", lambda _, event, fields: said.append(event))
    running_service = RunningService(FakeMachine(broken={figure: why}))
    whole, found = set(RunningService().read()), running_service.read()
    assert running_service.read().keys() == found.keys()
    prefix = {
        "processors": "host_cpu",
        "memory": "host_memory",
        "disk": "host_disk_[ft]",
        "disk_bytes": "host_disk_[rw]",
        "network_bytes": "host_network",
    }[figure]
    assert sorted(whole - found.keys()) == sorted(name for name in whole if re.match(prefix, name))
    assert len(said) == 1


@pytest.mark.parametrize(
    ("figure", "series"), [("processors", "host_cpu_usage_ratio"), ("memory", "host_memory_used_bytes"), ("disk", "host_disk_free_bytes")]
)
def test_a_figure_that_becomes_unavailable_is_nan_until_it_returns(figure: str, series: str) -> None:
    running_service = RunningService()
    before = running_service.read()[series]
    running_service.machine.broken[figure] = OSError("gone")
    for _ in range(2):
        assert str(running_service.read()[series]) == "nan"
    running_service.machine.broken.clear()
    running_service.read()
    assert running_service.read()[series] == before


async def test_a_gpu_is_shown_while_it_responds() -> None:
    running_service = RunningService()
    running_service.driver.gpus = [
        Gpu(0, usage=0.9, memory_used=5, memory_total=10, watts=300.5, celsius=60.0),
        Gpu(1, memory_used=1, memory_total=10),
    ]
    assert await running_service.gpus.look()
    assert {name: value for name, value in running_service.read().items() if name.startswith("gpu_")} == {
        "gpu_usage_ratio 0": 0.9,
        "gpu_memory_used_bytes 0": 5,
        "gpu_memory_used_bytes 1": 1,
        "gpu_memory_total_bytes 0": 10,
        "gpu_memory_total_bytes 1": 10,
        "gpu_power_watts 0": 300.5,
        "gpu_temperature_celsius 0": 60,
    }
    del running_service.driver.gpus[1]
    await running_service.gpus.look()
    assert not [name for name in running_service.read() if name.endswith(" 1")]
    running_service.now += KEPT_SECONDS
    assert not [name for name in running_service.read() if name.startswith("gpu_")]


def test_a_node_without_a_gpu_has_no_gpu_metrics() -> None:
    running_service = RunningService()
    running_service.read()
    assert "gpu" not in running_service.metrics.render()


def test_this_machine_reports_plausible_figures(tmp_path: Path) -> None:
    metrics = Metrics("web")
    host = Host(metrics, tmp_path / "not" / "there" / "yet", machine=ThisMachine())
    busy_until = time.thread_time() + 0.03
    while time.thread_time() < busy_until:
        pass
    host.update()
    found = shown(metrics)
    assert 0 < found["host_cpu_usage_ratio"] <= 1
    assert 0 < found["host_memory_used_bytes"] < found["host_memory_total_bytes"]
    assert 0 < found["host_disk_free_bytes"] <= found["host_disk_total_bytes"]
