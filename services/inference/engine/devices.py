"""Finds the GPUs of this machine and those that llama.cpp can use, and explains what to do about the others.

``python -m services.inference.engine.devices`` prints those of llama.cpp as JSON. It is a separate program, because the worker must not
load a GPU driver.
"""

import asyncio
import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from services.inference import child_process, gpus, numerics
from services.inference.gpus import GpuFacts
from shared.telemetry import logs

#: GPU and integrated GPU in ggml_backend_dev_type.
_GPU_TYPES = frozenset({1, 2})
PROGRAM = (sys.executable, "-P", "-m", "services.inference.engine.devices")
#: An idle driver takes some seconds to start.
PROBE_SECONDS = 30.0
#: Stays free on each GPU, for the driver and fragmentation.
MARGIN_BYTES = 512 * 2**20
#: The libraries of ggml that aren't for GPUs: libggml-base, libggml-cpu-haswell and so on.
_FOR_PROCESSORS = frozenset({"base", "cpu", "blas"})

log = logs.get()


class Device(msgspec.Struct, frozen=True):
    """A GPU that llama.cpp can use."""

    name: str
    description: str
    total_bytes: int
    free_bytes: int


class EngineBuild(msgspec.Struct, frozen=True):
    build: str
    #: Of variants for processors, those that compute the same bits as others, with the name of their group.
    numeric_groups: dict[str, str] = {}

    @property
    def is_prebuilt(self) -> bool:
        return bool(self.numeric_groups)


class FoundDevices(msgspec.Struct, frozen=True):
    devices: tuple[Device, ...]
    #: Kinds of GPU that llama.cpp has a library for, such as vulkan.
    plug_ins: tuple[str, ...] = ()


Answer = TypeVar("Answer")


def find() -> FoundDevices:
    """Search for devices. It starts GPU drivers, so only call it in a separate process."""
    import llama_cpp.llama_cpp as native  # noqa: PLC0415 - importers of the types above don't need these libraries

    native.llama_backend_init()
    load_backends()
    library, registry = _libraries()
    registry.ggml_backend_dev_count.restype = ctypes.c_size_t
    registry.ggml_backend_dev_get.restype = ctypes.c_void_p
    registry.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    for name in ("ggml_backend_dev_name", "ggml_backend_dev_description"):
        getattr(library, name).restype = ctypes.c_char_p
        getattr(library, name).argtypes = [ctypes.c_void_p]
    library.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    library.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)]
    all_devices = [registry.ggml_backend_dev_get(number) for number in range(registry.ggml_backend_dev_count())]
    found = tuple(_device(library, device) for device in all_devices if library.ggml_backend_dev_type(device) in _GPU_TYPES)
    return FoundDevices(found, plug_ins())


def plug_ins() -> tuple[str, ...]:
    """Return the kinds of GPU that llama.cpp has a library for, without loading one."""
    return tuple(sorted({path.name.partition(".")[0].split("-")[1] for path in _folder().glob("libggml-*")} - _FOR_PROCESSORS))


def load_backends() -> None:
    """Load llama.cpp's plug-ins, for the processor and for GPUs. A compiled engine has none and contains its backends. Safe to call twice.

    It starts GPU drivers and writes to llama.cpp's log, so the processes that need it call it, and no module at its import.
    """
    _, registry = _libraries()
    registry.ggml_backend_reg_count.restype = ctypes.c_size_t
    if not registry.ggml_backend_reg_count():
        registry.ggml_backend_load_all_from_path(os.fsencode(_folder()))


def engine_build() -> EngineBuild:
    """Return what tools/engine/wheel.py wrote beside prebuilt libraries, or the version and commit of compiled ones."""
    library, _ = _libraries()
    if (file := Path(library._name).with_name(numerics.BUILD_FILE)).exists():
        return msgspec.json.decode(file.read_bytes(), type=EngineBuild)
    library.ggml_version.restype = library.ggml_commit.restype = ctypes.c_char_p
    return EngineBuild(b" ".join((library.ggml_version(), library.ggml_commit())).decode())


def buffer_type(device: str) -> int | None:
    """Return ggml's kind of buffer on a device, such as CPU or CUDA0; None if there is no such device."""
    library, registry = _libraries()
    registry.ggml_backend_dev_by_name.restype = library.ggml_backend_dev_buffer_type.restype = ctypes.c_void_p
    found = registry.ggml_backend_dev_by_name(device.encode())
    kind: int | None = library.ggml_backend_dev_buffer_type(ctypes.c_void_p(found)) if found else None
    return kind


def _libraries() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    library, registry = (ctypes.CDLL(str(next(_folder().glob(name)))) for name in ("libggml-base.*", "libggml.*"))
    return library, registry


def _folder() -> Path:
    # Not imported, because that loads llama.cpp.
    package = importlib.util.find_spec("llama_cpp")
    return Path((package and package.origin) or os.devnull).parent / "lib"


def _device(library: ctypes.CDLL, device: int) -> Device:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    library.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    name, description = (
        call(device).decode("utf-8", "replace") for call in (library.ggml_backend_dev_name, library.ggml_backend_dev_description)
    )
    return Device(name, description, total.value, free.value)


async def probe() -> FoundDevices | None:
    """Run llama.cpp's device search in a separate process; None if it fails."""
    return await ask(PROGRAM, FoundDevices, seconds=PROBE_SECONDS)


async def ask(program: tuple[str, ...], kind: type[Answer], *, seconds: float, question: bytes = b"") -> Answer | None:
    """Run a program that may start a GPU's driver; return its answer, or None if it fails."""
    pipe = asyncio.subprocess.PIPE
    process: asyncio.subprocess.Process | None = None
    try:
        process = await asyncio.create_subprocess_exec(
            *program, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL, env=child_process.inherited(), start_new_session=True
        )
        async with asyncio.timeout(seconds):
            answer, _ = await process.communicate(question)
        return msgspec.json.decode(answer, type=kind)
    except (TimeoutError, OSError, msgspec.MsgspecError) as error:
        log.warning("gpu_probe_failed", program=program[-1], reason=str(error) or "no answer in time")
        return None
    finally:
        if process is not None:
            child_process.kill(process)
            await process.wait()


def describe(found: FoundDevices | None, facts: GpuFacts, threads: int) -> Iterator[str]:
    """Say in sentences which devices will be used, and how to use the others. Pure."""
    if found is not None and found.devices:
        for device in found.devices:
            yield f"{device.name}: {device.description}, {_gib(device.free_bytes)} of {_gib(device.total_bytes)} GiB free"
        return
    cores = os.cpu_count() or 1
    yield f"no GPU is used: {threads} of {cores} processor threads"
    if why := why_unused(found, facts):
        yield why


def why_unused(found: FoundDevices | None, facts: GpuFacts) -> str:
    """Return why this machine's GPU is not used and how to use it; empty if it is, or if there is none. Pure."""
    if facts.kind is None or (found is not None and found.devices):
        return ""
    plan = gpus.plan(facts)
    if found is not None and found.plug_ins and (found.plug_ins != ("vulkan",) or gpus.VULKAN in facts.libraries):
        why = "llama.cpp finds no driver for it; install one, then restart the worker"
    elif facts.kind == "metal" or plan.plug_in:
        why = f"the engine lacks support for it; run `make worker-{plan.plug_in or facts.kind}`, then restart the worker"
    else:
        why = f"{plan.why}, then run `make up`"
    return f"{gpus.NAMES[facts.kind]} is not used: {why}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"


def main() -> None:
    sys.stdout.buffer.write(msgspec.json.encode(find()))


if __name__ == "__main__":
    main()
