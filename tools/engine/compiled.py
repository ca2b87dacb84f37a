"""Compile llama-cpp-python's wheel once, for this machine's processor and GPU: BUILD=1, and machines that have no prebuilt engine."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tools import setup_steps
from tools.engine import wheel
from tools.setup_steps import LOCKS, ROOT, SetupFailed

#: GCC drops writes to a tile configuration before the processor loads it, and the first answer ends in a segmentation fault
#: (llama.cpp #26954, docs/decisions/0011). On processors with such instructions, the engine is built without them.
WITHOUT_AMX = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")
#: Build only what is loaded. CMake reads the file when the project begins.
LEFT_OUT = ROOT / "tools" / "engine.cmake"
ONLY_THE_ENGINE = ("-DLLAVA_BUILD=OFF", shlex.quote(f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={LEFT_OUT}"))


@dataclass(frozen=True)
class Flavour:
    """The engine for one kind of device."""

    cmake_args: str
    #: A compiler that the build needs, and how to get it; empty if it needs none.
    program: str = ""
    how: str = ""


FLAVOURS = {
    "cpu": Flavour(""),
    "cuda": Flavour("-DGGML_CUDA=on", "nvcc", "install NVIDIA's CUDA toolkit and put its bin folder on the PATH"),
    "rocm": Flavour("-DGGML_HIP=on", "hipcc", "install AMD's ROCm and put its bin folder on the PATH"),
    "metal": Flavour("-DGGML_METAL=on", "xcrun", "xcode-select --install"),
    "vulkan": Flavour("-DGGML_VULKAN=on", "glslc", "apt-get install libvulkan-dev glslc"),
}


def cmake_args(flavour: str) -> str:
    """Return the user's CMAKE_ARGS, or those of the flavour."""
    return os.environ.get("CMAKE_ARGS") or FLAVOURS[flavour].cmake_args


@functools.cache
def compiler_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the flags that llama.cpp's build passes to the C and C++ compilers, in addition to its own."""
    if not cpuinfo.exists() or "amx_tile" not in cpuinfo.read_text(encoding="utf-8").split():
        return ""
    # A compiler that does not know these flags does not use such instructions.
    known = setup_steps.works("cc", *WITHOUT_AMX, "-fsyntax-only", "-x", "c", os.devnull)
    return " ".join(WITHOUT_AMX) if known else ""


def build_environment() -> dict[str, str]:
    """Return the environment of every build of llama.cpp: the wheel, and its own programs for the benches."""
    flags = {name: f"{os.environ.get(name, '')} {compiler_flags()}".strip() for name in ("CFLAGS", "CXXFLAGS")}
    return {**os.environ, **flags}


def build_key(flavour: str) -> str:
    """Name one build by its version, flags and processor. By default, llama.cpp compiles for the processor it is built on."""
    is_portable = "-DGGML_NATIVE=OFF" in cmake_args(flavour).upper().split()
    processor, flags = ("any", "") if is_portable else (processor_name(), compiler_flags())
    facts = "\n".join([processor, cmake_args(flavour), flags, os.environ.get("FORCE_CMAKE", "")])
    return f"{wheel.engine_version()}-{platform.machine()}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def wheel_folder(flavour: str) -> Path:
    """Return the folder of wheels that this machine builds, named by the build and by what is left out of it."""
    return setup_steps.cache_folder() / f"{build_key(flavour)}-{hashlib.sha256(LEFT_OUT.read_bytes()).hexdigest()[:8]}"


def processor_name() -> str:
    """Return the processor's name and all its instruction sets."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    # "flags" on x86, "Features" on ARM.
    wanted = ("flags", "Features", "model name")
    return "\n".join(sorted({line for line in cpuinfo.read_text(encoding="utf-8").splitlines() if line.startswith(wanted)}))


def ensure(flavour: str) -> Path:
    """Return the wheel, from the cache or compiled now. Raises SetupFailed if a compiler is missing or the build fails."""
    wanted, folder = FLAVOURS[flavour], wheel_folder(flavour)
    if found := next(folder.glob("*.whl"), None):
        return found
    if wanted.program and shutil.which(wanted.program) is None:
        raise SetupFailed(f"The engine cannot be built for {flavour} here: {wanted.program} is missing.\n  {wanted.how}")
    folder.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the rename stays within one file system. Compilers that are being stopped may still write to it.
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder, ignore_cleanup_errors=True) as temporary:
        build = Path(temporary)
        python = make_tools(build)
        environment = {
            **build_environment(),
            "CMAKE_ARGS": " ".join((cmake_args(flavour), *ONLY_THE_ENGINE)),
            "PATH": f"{python.parent}:{os.environ['PATH']}",
        }
        # No cache: pip identifies a wheel by its version, not by its build flags.
        words = ("wheel", "--verbose", "--no-cache-dir", "--no-build-isolation", *wheel.FROM_SDIST)
        setup_steps.run(
            f"compiling {wheel.ENGINE} {wheel.engine_version()}, about 5 minutes on 2 cores",
            *(str(python), "-m", "pip", *words, "-w", str(build / "out")),
            environment=environment,
        )
        built = next((build / "out").glob("*.whl"))
        return built.replace(folder / built.name)


def make_tools(place: Path) -> Path:
    """Install CMake and Ninja of the lock. Return the Python beside them."""
    python = place / "tools" / "bin" / "python"
    setup_steps.run("preparing the build tools of llama.cpp", sys.executable, "-m", "venv", str(place / "tools"))
    # From hashes as well: pip's isolated builds would fetch the newest ones.
    lock = ("--require-hashes", "-r", str(LOCKS / "engine-build.lock"))
    setup_steps.run("installing its build tools", str(python), "-m", "pip", "--disable-pip-version-check", "install", *lock)
    return python
