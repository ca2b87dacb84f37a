"""Finds this machine's GPUs by their device files, and decides which plug-in of llama.cpp they get. It starts no driver.

``python -m services.inference.gpus [cuda|vulkan|cpu]`` prints the plug-in, or an empty line, and to stderr why it isn't a better one. Only
Python's own modules are imported, because set-up runs it before there are others.
"""

import ctypes
import platform
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: Below /dev -> the kind of GPU, as in `make worker-…`.
_DEVICE_FILES = (("nvidia*[0-9]", "cuda"), ("kfd", "rocm"), ("dri/renderD*", "vulkan"))
NAMES = {"cuda": "the NVIDIA GPU", "rocm": "the AMD GPU", "vulkan": "the GPU", "metal": "the GPU"}
VULKAN = "libvulkan.so.1"
#: Plug-in -> its version of CUDA, the newest first.
CUDA = {"cuda": 13, "cuda12": 12}


def cuda_libraries(version: int) -> tuple[str, str]:
    return f"libcudart.so.{version}", f"libcublas.so.{version}"


@dataclass(frozen=True)
class GpuFacts:
    """What a plan needs to know of a machine."""

    #: A key of NAMES; None without a GPU.
    kind: "str | None"
    #: Those of Vulkan and CUDA that the loader finds.
    libraries: "frozenset[str]"
    #: The newest version of CUDA that the driver supports, such as 12.4; (0, 0) without a driver.
    cuda: "tuple[int, int]" = (0, 0)
    #: Whether there are plug-ins for this kind of processor.
    has_plug_ins: bool = True


@dataclass(frozen=True)
class GpuPlan:
    #: The plug-in; empty for none.
    plug_in: str
    #: Why it isn't the best or the wanted one, and how to get that; empty if it is.
    why: str = ""


def plan(facts: GpuFacts, wanted: str = "") -> GpuPlan:
    """Choose the plug-in: Vulkan for every GPU; CUDA if it is wanted and this machine can use it. Pure."""
    if wanted == "cpu" or (facts.kind is None and not wanted):
        return GpuPlan("")
    if not facts.has_plug_ins:
        return GpuPlan("", f"there is no plug-in for this processor: BUILD=1 make worker-{facts.kind or wanted}")
    reasons = []
    for plug_in, version in CUDA.items() if wanted == "cuda" else ():
        missing = [name for name in cuda_libraries(version) if name not in facts.libraries]
        if facts.cuda < (version, 0):
            has = "this one supports CUDA {}.{}".format(*facts.cuda) if facts.cuda[0] else "there is none"
            reasons.append(f"CUDA {version} needs a newer driver from NVIDIA ({has})")
        elif missing:
            reasons.append(f"CUDA {version} needs {' and '.join(missing)}; install NVIDIA's CUDA {version} runtime")
        else:
            return GpuPlan(plug_in, "; ".join(reasons))
    if VULKAN in facts.libraries:
        return GpuPlan("vulkan", "; ".join(reasons))
    reasons.append(f"Vulkan needs {VULKAN}: apt-get install libvulkan1")
    return GpuPlan("", "; ".join(reasons))


def find_kind(devices: Path = Path("/dev"), system: str = sys.platform) -> "str | None":
    """Return the kind of this machine's GPU; None without one."""
    if system == "darwin":
        return "metal"
    return next((name for pattern, name in _DEVICE_FILES if any(devices.glob(pattern))), None)


def look() -> GpuFacts:
    """Look at this machine. Loading these libraries starts no driver."""
    kind = find_kind()
    names: Iterable[str] = (VULKAN, *(name for version in CUDA.values() for name in cuda_libraries(version))) if kind else ()
    return GpuFacts(
        kind, frozenset(filter(_is_found, names)), _cuda_version() if kind == "cuda" else (0, 0), platform.machine() == "x86_64"
    )


def _is_found(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _cuda_version() -> "tuple[int, int]":
    version = ctypes.c_int(0)
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value // 1000, version.value % 1000 // 10


if __name__ == "__main__":
    found = plan(look(), "".join(sys.argv[1:2]))
    print(found.plug_in)
    sys.stderr.write(f"{found.why}\n" if found.why else "")
