import subprocess
import sys

import msgspec
import pytest

from services.inference.engine import devices
from services.inference.engine.devices import Device, FoundDevices
from services.inference.gpus import VULKAN, GpuFacts

GPU = Device("Vulkan0", "llvmpipe", 4 * 2**30, 3 * 2**30)
WITH_VULKAN = frozenset({VULKAN})


@pytest.mark.parametrize(
    ("found", "facts", "expected"),
    [
        pytest.param(None, GpuFacts(None, frozenset()), "", id="no GPU"),
        pytest.param(FoundDevices((GPU,), ("vulkan",)), GpuFacts("rocm", WITH_VULKAN), "", id="a GPU that is used"),
        pytest.param(
            FoundDevices((), ("vulkan",)),
            GpuFacts("cuda", WITH_VULKAN),
            "the NVIDIA GPU is not used: llama.cpp finds no driver for it; install one, then restart the worker",
            id="a plug-in without a device",
        ),
        pytest.param(
            FoundDevices((), ("vulkan",)),
            GpuFacts("rocm", frozenset()),
            "the AMD GPU is not used: Vulkan needs libvulkan.so.1: apt-get install libvulkan1, then run `make up`",
            id="a plug-in without its library",
        ),
        pytest.param(
            FoundDevices((), ("cuda",)),
            GpuFacts("cuda", frozenset()),
            "the NVIDIA GPU is not used: llama.cpp finds no driver for it; install one, then restart the worker",
            id="compiled for CUDA",
        ),
        pytest.param(
            FoundDevices((), ()),
            GpuFacts("vulkan", WITH_VULKAN),
            "the GPU is not used: the engine lacks support for it; run `make worker-vulkan`, then restart the worker",
            id="no plug-in",
        ),
        pytest.param(
            None,
            GpuFacts("metal", frozenset()),
            "the GPU is not used: the engine lacks support for it; run `make worker-metal`, then restart the worker",
            id="a search that failed",
        ),
    ],
)
def test_unused_gpu_has_a_reason_and_a_remedy(found: FoundDevices | None, facts: GpuFacts, expected: str) -> None:
    assert devices.why_unused(found, facts) == expected
    said = list(devices.describe(found, facts, 2))
    assert said[1:] == ([expected] if expected else [])


def test_used_gpu_is_described_with_its_memory() -> None:
    said = list(devices.describe(FoundDevices((GPU,), ("vulkan",)), GpuFacts("vulkan", WITH_VULKAN), 2))
    assert said == ["Vulkan0: llvmpipe, 3.0 of 4.0 GiB free"]


def test_search_loads_the_backends_and_prints_only_its_answer() -> None:
    done = subprocess.run(devices.PROGRAM, capture_output=True, check=True, timeout=60)
    assert msgspec.json.decode(done.stdout, type=FoundDevices).plug_ins == devices.find().plug_ins


def test_import_loads_no_backend() -> None:
    """Otherwise a GPU's driver would start in every process."""
    script = (
        "import sys, services.inference.engine.engine_process, services.inference.models.requantize, services.inference.chat.fit;"
        "sys.exit(any('libggml-cpu-' in line or 'libggml-vulkan' in line for line in open('/proc/self/maps')))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
