"""Reads NVIDIA GPUs through NVML, the management library that comes with the driver, by NVIDIA's own binding (`pynvml`).

Only this module knows the binding. A call takes up to 50 ms, and never returns if a driver hangs: call it from threads only.
NVML is safe to use from several threads.
"""

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

#: Where the dynamic loader finds it, and where WSL 2 has it.
LIBRARIES = ("libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1")
#: More than a machine can hold: a driver that reports more is broken.
MAX_GPUS = 256

T = TypeVar("T")


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


class NoDriver(Exception):
    """This machine has no NVML, and so no usable NVIDIA GPU. Callers of Nvml catch it."""


class NvmlRefused(Exception):
    """NVML failed; the message is NVML's. Callers of Nvml catch it."""


class Nvml:
    """This process's use of NVML. It stays loaded until the process ends, because starting a driver takes seconds."""

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
            except (binding.NVMLError_NotSupported, binding.NVMLError_NoPermission):
                return None

        try:
            device = binding.nvmlDeviceGetHandleByIndex(index)
            load = reported(lambda: binding.nvmlDeviceGetUtilizationRates(device))
            memory = reported(lambda: binding.nvmlDeviceGetMemoryInfo(device))
            milliwatts = reported(lambda: binding.nvmlDeviceGetPowerUsage(device))
            celsius = reported(lambda: binding.nvmlDeviceGetTemperature(device, binding.NVML_TEMPERATURE_GPU))
        except binding.NVMLError as error:
            raise NvmlRefused(str(error)) from error
        return Gpu(
            index,
            usage=None if load is None else load.gpu / 100,
            memory_used=None if memory is None else memory.used,
            memory_total=None if memory is None else memory.total,
            watts=None if milliwatts is None else milliwatts / 1000,
            celsius=None if celsius is None else float(celsius),
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
