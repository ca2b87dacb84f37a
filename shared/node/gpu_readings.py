"""Reads the NVIDIA GPUs of this machine every few seconds in threads, so that a hanging driver blocks nothing."""

import asyncio
import ctypes
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from shared.telemetry import logs

EVERY_SECONDS = 5.0
#: Without NVML or GPUs that rarely changes, and looking costs only a failed open of a file.
EVERY_SECONDS_WITHOUT = 60.0
#: An idle driver takes some seconds to start. Together with EVERY_SECONDS this is less than KEPT_SECONDS, so that one hanging GPU does
#: not hide the others.
ANSWER_SECONDS = 8.0
KEPT_SECONDS = 15.0
#: Where the dynamic loader finds NVML, and where WSL 2 has it.
LIBRARIES = ("libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1")
#: More than a machine can hold: a driver that reports more is broken.
MAX_GPUS = 256

T = TypeVar("T")
_log = logs.get()


@dataclass(frozen=True, slots=True)
class Gpu:
    """The readings of one GPU. None if the GPU doesn't report a figure, as for a MIG slice."""

    #: The index that `nvidia-smi` shows, regardless of CUDA_VISIBLE_DEVICES.
    index: int
    usage: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    watts: float | None = None
    celsius: float | None = None
    #: Used since the driver was started.
    joules: float | None = None
    #: The same in every container.
    uuid: str | None = None


class NoDriver(Exception):
    """This machine has no NVML, and so no usable NVIDIA GPU. Callers of Nvml catch it."""


class NvmlRefused(Exception):
    """NVML failed; the message is NVML's. Callers of Nvml catch it."""


class Nvml:
    """NVML, the management library that comes with the driver, by NVIDIA's own binding (`pynvml`).

    It stays loaded until the process ends, because starting a driver takes seconds. A call takes up to 50 ms, and never returns if a driver
    hangs: call it from threads only. It is safe to use from several threads.
    """

    def __init__(self, libraries: tuple[str | Path, ...] = LIBRARIES) -> None:
        self._libraries = libraries
        self._binding: ModuleType | None = None
        self._loading = threading.Lock()

    def count(self) -> int:
        """Return the number of GPUs; the first call starts NVML. Raises NoDriver and NvmlRefused; a later call tries again."""
        with self._loading:
            binding = self._binding or _start(self._libraries)
            self._binding = binding
        try:
            count: int = binding.nvmlDeviceGetCount()
        except binding.NVMLError as error:
            raise NvmlRefused(str(error)) from error
        if count > MAX_GPUS:
            raise NvmlRefused(f"it reports {count} GPUs, more than {MAX_GPUS}")
        return count

    def read(self, index: int) -> Gpu:
        """Read one GPU. Raises NoDriver before ``count`` has succeeded, and NvmlRefused, for example for a GPU that fell off the bus."""
        binding = self._binding
        if binding is None:
            raise NoDriver

        def reported(read: Callable[[], T]) -> T | None:
            try:
                return read()
            except (binding.NVMLError_NotSupported, binding.NVMLError_NoPermission, binding.NVMLError_FunctionNotFound):
                return None

        try:
            device = binding.nvmlDeviceGetHandleByIndex(index)
            load = reported(lambda: binding.nvmlDeviceGetUtilizationRates(device))
            memory = reported(lambda: binding.nvmlDeviceGetMemoryInfo(device))
            milliwatts = reported(lambda: binding.nvmlDeviceGetPowerUsage(device))
            celsius = reported(lambda: binding.nvmlDeviceGetTemperature(device, binding.NVML_TEMPERATURE_GPU))
            millijoules = reported(lambda: binding.nvmlDeviceGetTotalEnergyConsumption(device))
            uuid = reported(lambda: binding.nvmlDeviceGetUUID(device))
        except binding.NVMLError as error:
            raise NvmlRefused(str(error)) from error
        return Gpu(
            index,
            usage=None if load is None else load.gpu / 100,
            memory_used=None if memory is None else memory.used,
            memory_total=None if memory is None else memory.total,
            watts=None if milliwatts is None else milliwatts / 1000,
            celsius=None if celsius is None else float(celsius),
            joules=None if millijoules is None else millijoules / 1000,
            uuid=uuid,
        )


def _start(libraries: tuple[str | Path, ...]) -> ModuleType:
    """Load NVML from the first place that has it. The binding, which looks in one place only, then finds it by its name."""
    if not any(_loads(library) for library in libraries):
        raise NoDriver
    import pynvml  # noqa: PLC0415 - takes 40 ms and 5 MB, so only machines with a driver import it

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_FunctionNotFound as error:
        raise NvmlRefused("the driver is too old: it lacks a function of NVML") from error
    except pynvml.NVMLError as error:
        raise NvmlRefused(str(error)) from error
    binding: ModuleType = pynvml
    return binding


def _loads(library: str | Path) -> bool:
    try:
        ctypes.CDLL(str(library))
    except OSError:
        return False
    return True


class Gpus:
    """Owns the threads that query the driver: at most one for the list and one per GPU."""

    def __init__(
        self, driver: Nvml | None = None, clock: Callable[[], float] = time.monotonic, answer_seconds: float = ANSWER_SECONDS
    ) -> None:
        self._driver = driver or Nvml()
        self._clock = clock
        self._answer_seconds = answer_seconds
        self._answered: dict[str, Callable[[], bool]] = {}
        self._read: dict[int, tuple[Gpu, float]] = {}
        #: What does not answer, and why, so that it is logged only once.
        self._failing: dict[str, str] = {}

    async def run(self) -> None:
        """Ends by cancellation. A hanging thread does not delay the end of the process."""
        while True:
            has_driver = await self.look()
            await asyncio.sleep(EVERY_SECONDS if has_driver else EVERY_SECONDS_WITHOUT)

    def fresh(self) -> list[Gpu]:
        """Return the last readings of the GPUs that answered recently."""
        now = self._clock()
        return [gpu for gpu, read_at in self._read.values() if now - read_at <= KEPT_SECONDS]

    async def look(self) -> bool:
        """Query all GPUs once. Returns whether there are any, and so whether to query again soon."""
        count = await self._ask("driver", self._driver.count)
        if isinstance(count, NoDriver):
            return False
        if isinstance(count, NvmlRefused):
            self._log_failure("driver", str(count))
            self._read.clear()
            return bool(self._answered.keys() - {"driver"})
        self._log_recovery("driver")
        indexes = {*range(count), *self._read}
        await asyncio.gather(*(self._read_gpu(index, listed=index < count) for index in indexes))
        return bool(indexes)

    async def _read_gpu(self, index: int, listed: bool) -> None:
        began = self._clock()
        found = await self._ask(f"GPU {index}", lambda: self._driver.read(index)) if listed else NvmlRefused("it is no longer listed")
        if isinstance(found, Gpu):
            self._read[index] = (found, began)
            self._log_recovery(f"GPU {index}")
        else:
            self._read.pop(index, None)
            self._log_failure(f"GPU {index}", str(found) or "there is no driver")

    async def _ask(self, what: str, work: Callable[[], T]) -> T | NoDriver | NvmlRefused:
        """Return the answer, or why there is none. A query that is still open is not repeated."""
        if (answered := self._answered.get(what)) is not None and not answered():
            return NvmlRefused("it does not answer")
        answer: asyncio.Future[T | NoDriver | NvmlRefused] = asyncio.get_running_loop().create_future()
        self._answered[what] = answer.done
        # Not a pool: its threads would be joined when the process ends, and a thread that hangs in the driver would prevent that.
        threading.Thread(target=_answer, args=(answer, work), name=f"nvml {what}", daemon=True).start()
        # Not wait_for, which would cancel the future that the thread still has to resolve.
        done, _ = await asyncio.wait({answer}, timeout=self._answer_seconds)
        return answer.result() if done else NvmlRefused(f"it did not answer within {self._answer_seconds:g} s")

    def _log_failure(self, what: str, why: str) -> None:
        if what not in self._failing:
            _log.warning("NVML does not report a GPU", of=what, why=why, do="see `nvidia-smi` and the kernel's log")
        self._failing[what] = why

    def _log_recovery(self, what: str) -> None:
        if self._failing.pop(what, None) is not None:
            _log.info("NVML works again", of=what)


def _answer(answer: "asyncio.Future[T | NoDriver | NvmlRefused]", work: Callable[[], T]) -> None:
    """Runs in the thread."""
    outcome: T | NoDriver | NvmlRefused
    try:
        outcome = work()
    except (NoDriver, NvmlRefused) as error:
        outcome = error
    try:
        answer.get_loop().call_soon_threadsafe(_settle, answer, outcome)
    except RuntimeError:
        pass  # the loop has ended


def _settle(answer: asyncio.Future[T], outcome: T) -> None:
    if not answer.done():
        answer.set_result(outcome)
