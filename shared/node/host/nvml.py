"""NVIDIA's management library, NVML: the seven of its functions that we ask, by their C signatures in NVIDIA's API reference.

Only this file knows them. The library comes with the driver and is loaded where it is there. Every call may take 50 ms, and
all the time of the world when a driver is broken: call it from threads alone. NVML itself is safe to call from several.
"""

import ctypes
import threading
from dataclasses import dataclass
from pathlib import Path

#: Where the dynamic loader finds it, and where WSL 2 keeps it.
LIBRARIES = ("libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1")

_FUNCTIONS = (
    "nvmlInit_v2", "nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetTemperature",
)  # fmt: skip
_SUCCESS = 0
_NOT_SUPPORTED = 3
_NO_PERMISSION = 4
#: The sensor on the chip, the one that every GPU has.
_ON_CHIP = 0


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a GPU said of itself. None for what this kind does not tell, such as a share of a GPU that is cut up by MIG."""

    #: As `nvidia-smi` counts, whatever CUDA_VISIBLE_DEVICES says.
    index: int
    usage: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    watts: float | None = None
    celsius: float | None = None


class NoDriver(Exception):
    """There is no NVML on this machine, as on every one without an NVIDIA GPU. For whoever asks for GPUs."""


class NvmlRefused(Exception):
    """NVML did not do it, in its own words. For whoever asks for GPUs."""


class _Utilization(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class Nvml:
    """One process's use of NVML; it stays loaded until the process ends, because starting a driver takes seconds."""

    def __init__(self, libraries: tuple[str | Path, ...] = LIBRARIES) -> None:
        self._libraries = libraries
        self._library: ctypes.CDLL | None = None
        self._loading = threading.Lock()

    def count(self) -> int:
        """How many GPUs there are. Starts NVML the first time. Raises NoDriver and Refused; a later call tries again."""
        with self._loading:
            library = self._library or self._load()
            self._library = library
        found = ctypes.c_uint()
        self._check(library, library.nvmlDeviceGetCount_v2(ctypes.byref(found)))
        return found.value

    def read(self, index: int) -> Gpu:
        """One GPU as it is now. Raises NoDriver before ``count`` has been called, and Refused, such as for one that fell off the bus."""
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
        """Whether this GPU says this of itself. Raises Refused where the GPU does not answer at all."""
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
