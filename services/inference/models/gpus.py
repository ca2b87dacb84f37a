"""Which GPUs this machine has, which of them llama.cpp can use, and what to do about the others."""

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
#: A driver that was not used for a while takes some seconds to start.
PROBE_SECONDS = 30.0
#: What a kind of GPU leaves in the system -> the engine that is built for it.
_TRACES = (("nvidia*[0-9]", "cuda"), ("kfd", "rocm"), ("dri/renderD*", "vulkan"))
_MAKERS = {"cuda": "an NVIDIA GPU", "rocm": "an AMD GPU", "vulkan": "a GPU", "metal": "a GPU"}


def flavour(devices: Path = Path("/dev"), platform: str = sys.platform) -> str | None:
    """The engine that this machine's GPU wants, as `make worker-…` calls it; None where no GPU is to be seen."""
    if platform == "darwin":
        return "metal"
    return next((name for pattern, name in _TRACES if any(devices.glob(pattern))), None)


async def probe(environment: Mapping[str, str]) -> FoundDevices | None:
    """What llama.cpp finds, asked in a process of its own; None where that does not answer."""
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
    """In sentences: what there is, and what will be used. Pure."""
    if found is not None and found.devices:
        for device in found.devices:
            yield f"{device.name}: {device.description}, {_gib(device.free_bytes)} of {_gib(device.total_bytes)} GiB free"
        return
    cores = os.cpu_count() or 1
    yield f"no GPU is used: {threads} of {cores} processor threads"
    if wanted is not None and found is not None and found.built_for_gpu:
        yield f"{_MAKERS[wanted]} is here and llama.cpp was built for one, but cannot use it: is its driver installed?"
    elif wanted is not None:
        yield f"{_MAKERS[wanted]} is here, but llama-cpp-python was built without it: make worker-{wanted}, then start the worker again"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f}"
