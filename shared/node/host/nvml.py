"""Calls NVIDIA's management library NVML through ctypes: the seven functions that we need, with their C signatures.

The library comes with the driver and is loaded if present. A call may take 50 ms, or hang if the driver is broken, so call it only from
threads. NVML is thread-safe.
"""

import ctypes
import threading
from dataclasses import dataclass
from pathlib import Path

#: For the dynamic loader, and in WSL 2.
LIBRARIES = ("libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1")

_FUNCTIONS = (
    "nvmlInit_v2", "nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetTemperature",
)  # fmt: skip
_SUCCESS = 0
_NOT_SUPPORTED = 3
_NO_PERMISSION = 4
_ON_CHIP = 0


@dataclass(frozen=True, slots=True)
class Gpu:
    """The state of a GPU. None for figures that it does not report, such as those of a MIG slice."""

    #: As in `nvidia-smi`, regardless of CUDA_VISIBLE_DEVICES.
    index: int
    usage: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    watts: float | None = None
    celsius: float | None = None


class NoDriver(Exception):
    """This machine has no NVML, and so no NVIDIA GPU."""


class NvmlRefused(Exception):
    """NVML refused a call; the message is NVML's."""


class _Utilization(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class Nvml:
    """Uses NVML in one process. It stays loaded, because starting a driver takes seconds."""

    def __init__(self, libraries: tuple[str | Path, ...] = LIBRARIES) -> None:
        self._libraries = libraries
        self._library: ctypes.CDLL | None = None
        self._loading = threading.Lock()

    def count(self) -> int:
        """Return the number of GPUs. Loads NVML on the first call. Raises NoDriver and NvmlRefused; a later call tries again."""
        with self._loading:
            library = self._library or self._load()
            self._library = library
        found = ctypes.c_uint()
        self._check(library, library.nvmlDeviceGetCount_v2(ctypes.byref(found)))
        return found.value

    def read(self, index: int) -> Gpu:
        """Read one GPU. Raises NoDriver before the first ``count``, and NvmlRefused, for example for a GPU that fell off the bus."""
        library = self._library
        if library is None:
            raise NoDriver
        device = ctypes.c_void_p()
        self._check(library, library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)))
        load, memory = _Utilization(), _Memory()
        milliwatts, celsius = ctypes.c_uint(), ctypes.c_uint()
        has_load = self._tells(library, library.nvmlDeviceGetUtilizationRates(device, ctypes.byref(load)))
        has_memory = self._tells(library, library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)))
        has_power = self._tells(library, library.nvmlDeviceGetPowerUsage(device, ctypes.byref(milliwatts)))
        has_heat = self._tells(library, library.nvmlDeviceGetTemperature(device, ctypes.c_uint(_ON_CHIP), ctypes.byref(celsius)))
        return Gpu(
            index,
            usage=load.gpu / 100 if has_load else None,
            memory_used=memory.used if has_memory else None,
            memory_total=memory.total if has_memory else None,
            watts=milliwatts.value / 1000 if has_power else None,
            celsius=float(celsius.value) if has_heat else None,
        )

    def _load(self) -> ctypes.CDLL:
        library = _first(self._libraries)
        try:
            for name in _FUNCTIONS:
                getattr(library, name).restype = ctypes.c_int
            library.nvmlErrorString.restype = ctypes.c_char_p
        except AttributeError as error:
            raise NvmlRefused(f"the driver is too old: {error}") from None
        self._check(library, library.nvmlInit_v2())
        return library

    def _tells(self, library: ctypes.CDLL, code: int) -> bool:
        """Return whether this GPU reports this figure. Raises NvmlRefused if the GPU does not answer at all."""
        if code in (_NOT_SUPPORTED, _NO_PERMISSION):
            return False
        self._check(library, code)
        return True

    def _check(self, library: ctypes.CDLL, code: int) -> None:
        if code != _SUCCESS:
            words: bytes = library.nvmlErrorString(ctypes.c_int(code))
            raise NvmlRefused(words.decode(errors="replace"))


def _first(libraries: tuple[str | Path, ...]) -> ctypes.CDLL:
    for name in libraries:
        try:
            return ctypes.CDLL(str(name))
        except OSError:
            continue
    raise NoDriver
