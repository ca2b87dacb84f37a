"""Finds the GPUs of this machine and those that llama.cpp can use, and explains what to do about the others."""

import asyncio
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from services.inference.engine.devices import FoundDevices
from shared.telemetry import logs

log = logs.get()

PROGRAM = (sys.executable, "-P", "-m", "services.inference.engine.devices")
#: An idle driver takes some seconds to start.
PROBE_SECONDS = 30.0
_DEVICE_FILES = (("nvidia*[0-9]", "cuda"), ("kfd", "rocm"), ("dri/renderD*", "vulkan"))
_MAKERS = {"cuda": "an NVIDIA GPU", "rocm": "an AMD GPU", "vulkan": "a GPU", "metal": "a GPU"}


def flavour(devices: Path = Path("/dev"), platform: str = sys.platform) -> str | None:
    """Return the engine for this machine's GPU, as in `make worker-…`; None without a GPU."""
    if platform == "darwin":
        return "metal"
    return next((name for pattern, name in _DEVICE_FILES if any(devices.glob(pattern))), None)


async def probe(environment: Mapping[str, str]) -> FoundDevices | None:
    """Run llama.cpp's device search in a separate process; None if it fails."""
    process = await asyncio.create_subprocess_exec(
        *PROGRAM, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env=dict(environment)
    )
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            answer, _ = await process.communicate()
        return msgspec.json.decode(answer, type=FoundDevices)
    except (TimeoutError, msgspec.MsgspecError) as error:
        log.warning("gpu_probe_failed", reason=str(error) or "no answer in time")
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def describe(found: FoundDevices | None, wanted: str | None, threads: int) -> Iterator[str]:
    """Say in sentences which devices will be used, and how to use the others. Pure."""
    if found is not None and found.devices:
        for device in found.devices:
            yield f"{device.name}: {device.description}, {_gib(device.free_bytes)} of {_gib(device.total_bytes)} GiB free"
        return
    cores = os.cpu_count() or 1
    yield f"no GPU is used: {threads} of {cores} processor threads"
    if wanted is not None and found is not None and found.built_for_gpu:
        yield f"this machine has {_MAKERS[wanted]}, but llama.cpp cannot use it: is its driver installed?"
    elif wanted is not None:
        yield (
            f"this machine has {_MAKERS[wanted]}, but llama-cpp-python was built without support for it: "
            f"run `make worker-{wanted}`, then restart the worker"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
