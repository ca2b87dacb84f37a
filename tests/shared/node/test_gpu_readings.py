"""GPU readings with a fake driver that refuses, hangs and loses GPUs."""

import asyncio
import ctypes
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pynvml
import pytest

from shared.node import gpu_readings
from shared.node.gpu_readings import KEPT_SECONDS, Gpu, Gpus, NoDriver, Nvml, NvmlRefused
from shared.node.lifecycle import background
from shared.telemetry import logs
from tests.testnet import until

SOON = 0.05


@dataclass
class FakeDriver(Nvml):
    gpus: int = 2
    #: Raised by `count`.
    trouble: Exception | None = None
    #: Raised by `read`, by GPU index.
    refused: dict[int, Exception] = field(default_factory=dict)
    #: Calls that hang until ``released`` is set: "count", or the index of a GPU.
    hangs: set[int | str] = field(default_factory=set)
    released: threading.Event = field(default_factory=threading.Event)
    calls: list[int | str] = field(default_factory=list)

    def count(self) -> int:
        self._called("count")
        if self.trouble is not None:
            raise self.trouble
        return self.gpus

    def read(self, index: int) -> Gpu:
        self._called(index)
        if index in self.refused:
            raise self.refused[index]
        return Gpu(index, usage=0.5)

    def _called(self, what: int | str) -> None:
        self.calls.append(what)
        if what in self.hangs:
            assert self.released.wait(20)


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    driver = FakeDriver()
    yield driver
    driver.released.set()


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    lines: list[tuple[str, object]] = []
    monkeypatch.setattr(logs, "_write", lambda _, event, fields: lines.append((event, fields.get("of"))))
    return lines


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def indexes(found: Gpus) -> list[int]:
    return sorted(gpu.index for gpu in found.fresh())


async def test_all_gpus_are_read_in_threads(driver: FakeDriver) -> None:
    found = Gpus(driver)
    assert await found.look()
    assert found.fresh() == [Gpu(0, usage=0.5), Gpu(1, usage=0.5)]


async def test_without_a_driver_nothing_is_shown_or_logged(driver: FakeDriver, log_lines: list[tuple[str, object]]) -> None:
    driver.trouble = NoDriver()
    found = Gpus(driver)
    assert not await found.look()
    assert found.fresh() == []
    assert log_lines == []


async def test_a_failing_driver_is_logged_once_and_retried(driver: FakeDriver, log_lines: list[tuple[str, object]]) -> None:
    driver.trouble = NvmlRefused("Driver Not Loaded")
    found = Gpus(driver)
    for _ in range(3):
        assert not await found.look()
    driver.trouble = None
    assert await found.look()
    assert indexes(found) == [0, 1]
    assert log_lines == [("NVML does not report a GPU", "driver"), ("NVML works again", "driver")]


async def test_a_gpu_that_falls_off_the_bus_disappears_immediately_and_is_logged_once(
    driver: FakeDriver, log_lines: list[tuple[str, object]]
) -> None:
    found = Gpus(driver)
    await found.look()
    driver.refused[1] = NvmlRefused("GPU is lost")
    for _ in range(3):
        await found.look()
        assert indexes(found) == [0]
    driver.refused.clear()
    await found.look()
    assert indexes(found) == [0, 1]
    assert log_lines == [("NVML does not report a GPU", "GPU 1"), ("NVML works again", "GPU 1")]


async def test_a_gpu_that_is_no_longer_listed_disappears(driver: FakeDriver, log_lines: list[tuple[str, object]]) -> None:
    found = Gpus(driver)
    await found.look()
    driver.gpus = 1
    for _ in range(3):
        await found.look()
    assert indexes(found) == [0]
    assert log_lines == [("NVML does not report a GPU", "GPU 1")]


async def test_a_hanging_gpu_disappears_affects_no_other_and_keeps_one_thread(
    driver: FakeDriver, log_lines: list[tuple[str, object]]
) -> None:
    found = Gpus(driver, answer_seconds=SOON)
    await found.look()
    driver.hangs.add(1)
    for _ in range(3):
        await found.look()
        assert indexes(found) == [0]
    assert driver.calls.count(1) == 2
    assert log_lines == [("NVML does not report a GPU", "GPU 1")]
    driver.hangs.clear()
    driver.released.set()
    await until(found._answered["GPU 1"])
    await found.look()
    assert indexes(found) == [0, 1]


async def test_a_hanging_driver_blocks_nobody(driver: FakeDriver, log_lines: list[tuple[str, object]]) -> None:
    found = Gpus(driver, answer_seconds=SOON)
    await found.look()
    driver.hangs.add("count")
    async with asyncio.timeout(30):
        assert await found.look()
        assert await found.look()
    assert found.fresh() == []
    assert driver.calls.count("count") == 2
    assert log_lines == [("NVML does not report a GPU", "driver")]


async def test_outdated_readings_are_not_shown(driver: FakeDriver) -> None:
    clock = Clock()
    found = Gpus(driver, clock)
    await found.look()
    clock.now += KEPT_SECONDS
    assert indexes(found) == [0, 1]
    clock.now += 0.1
    assert found.fresh() == []


async def test_gpus_are_read_repeatedly_until_the_node_stops(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_readings, "EVERY_SECONDS", 0.001)
    async with background() as tasks:
        tasks.create_task(Gpus(driver).run())
        await until(lambda: driver.calls.count(1) > 2)


def test_a_hanging_thread_does_not_warn_after_its_loop_closed(driver: FakeDriver) -> None:
    driver.hangs.add("count")

    async def live_and_die() -> None:
        await Gpus(driver, answer_seconds=SOON).look()

    asyncio.run(live_and_die())
    stuck = next(thread for thread in threading.enumerate() if thread.name == "nvml driver")
    assert stuck.daemon
    driver.released.set()
    # The thread reports to a closed loop; pytest fails a test if a thread of it raises.
    stuck.join(10)
    assert not stuck.is_alive()


SOURCE = Path(__file__).parent / "fake_nvml.c"


def compiled(source: Path, folder: Path) -> Path:
    library = folder / "libfake.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-o", str(library), str(source)], check=True)
    return library


def loaded(library: Path, monkeypatch: pytest.MonkeyPatch) -> Nvml:
    """NVIDIA's binding loads one library per process; give it another for one test."""
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    # The first library does not exist.
    return Nvml((library.parent / "none.so", library))


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nvml:
    return loaded(compiled(SOURCE, tmp_path), monkeypatch)


def test_a_gpu_reports_all_readings(nvml: Nvml) -> None:
    assert nvml.count() == 3
    assert nvml.read(0) == Gpu(
        0, usage=0.42, memory_used=2**35, memory_total=2**37, watts=350.5, celsius=66.0, joules=12000.5, uuid="GPU-1"
    )


def test_unsupported_readings_are_omitted(nvml: Nvml) -> None:
    nvml.count()
    assert nvml.read(1) == Gpu(1, memory_used=2**35, memory_total=2**37, uuid="GPU-2")


def test_a_lost_gpu_is_reported_with_the_drivers_message(nvml: Nvml) -> None:
    nvml.count()
    with pytest.raises(NvmlRefused, match="GPU is lost"):
        nvml.read(2)


def test_without_the_library_there_is_no_driver(tmp_path: Path) -> None:
    nvml = Nvml((tmp_path / "none.so",))
    with pytest.raises(NoDriver):
        nvml.count()
    with pytest.raises(NoDriver):
        nvml.read(0)


def test_a_library_without_the_needed_functions_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "old.c"
    source.write_text("int nvmlInit(void) { return 0; }\n", encoding="ascii")
    with pytest.raises(NvmlRefused, match="the driver is too old"):
        loaded(compiled(source, tmp_path), monkeypatch).count()


def test_an_impossible_number_of_gpus_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "lying.c"
    source.write_text(SOURCE.read_text(encoding="ascii").replace("*count = 3;", "*count = 4000000000u;"), encoding="ascii")
    with pytest.raises(NvmlRefused, match="it reports 4000000000 GPUs"):
        loaded(compiled(source, tmp_path), monkeypatch).count()


def test_a_library_outside_the_loaders_path_is_found(tmp_path: Path) -> None:
    """As on WSL 2. In a separate process, because the binding then loads the library by its name."""
    library = compiled(SOURCE, tmp_path)
    program = f"from shared.node.gpu_readings import Nvml; print(Nvml(({str(library)!r},)).count())"
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60).stdout == b"3\n"
