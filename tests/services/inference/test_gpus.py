import subprocess
import sys
from pathlib import Path

import pytest

from services.inference import gpus
from services.inference.gpus import VULKAN, GpuFacts, GpuPlan, cuda_libraries

LIBRARIES = frozenset({VULKAN, *cuda_libraries(12), *cuda_libraries(13)})
NOT_13 = "CUDA 13 needs a newer driver from NVIDIA (this one supports CUDA 12.4)"
NO_VULKAN = "Vulkan needs libvulkan.so.1: apt-get install libvulkan1"


@pytest.mark.parametrize(
    ("facts", "wanted", "expected"),
    [
        pytest.param(GpuFacts(None, LIBRARIES), "", GpuPlan(""), id="no GPU"),
        pytest.param(GpuFacts("cuda", LIBRARIES, (13, 0)), "", GpuPlan("vulkan"), id="NVIDIA"),
        pytest.param(GpuFacts("rocm", LIBRARIES), "", GpuPlan("vulkan"), id="AMD"),
        pytest.param(GpuFacts("vulkan", LIBRARIES), "", GpuPlan("vulkan"), id="Intel"),
        pytest.param(GpuFacts("vulkan", LIBRARIES), "cpu", GpuPlan(""), id="a GPU that must not be used"),
        pytest.param(GpuFacts("vulkan", frozenset()), "", GpuPlan("", NO_VULKAN), id="no library for Vulkan"),
        pytest.param(
            GpuFacts("cuda", LIBRARIES, (13, 0), has_plug_ins=False),
            "",
            GpuPlan("", "there is no plug-in for this processor: BUILD=1 make worker-cuda"),
            id="NVIDIA on ARM",
        ),
        pytest.param(GpuFacts(None, LIBRARIES), "vulkan", GpuPlan("vulkan"), id="Vulkan without a device file, as on WSL2"),
        pytest.param(GpuFacts("cuda", LIBRARIES, (13, 1)), "cuda", GpuPlan("cuda"), id="CUDA 13"),
        pytest.param(GpuFacts("cuda", LIBRARIES, (12, 4)), "cuda", GpuPlan("cuda12", NOT_13), id="an older driver"),
        pytest.param(
            GpuFacts("cuda", LIBRARIES, (11, 8)),
            "cuda",
            GpuPlan("vulkan", "; ".join(f"CUDA {n} needs a newer driver from NVIDIA (this one supports CUDA 11.8)" for n in (13, 12))),
            id="a driver too old for CUDA 12",
        ),
        pytest.param(
            GpuFacts("cuda", frozenset({VULKAN, *cuda_libraries(12)}), (13, 0)),
            "cuda",
            GpuPlan("cuda12", "CUDA 13 needs libcudart.so.13 and libcublas.so.13; install NVIDIA's CUDA 13 runtime"),
            id="only CUDA 12's runtime",
        ),
        pytest.param(
            GpuFacts("cuda", frozenset()),
            "cuda",
            GpuPlan("", "; ".join([*(f"CUDA {n} needs a newer driver from NVIDIA (there is none)" for n in (13, 12)), NO_VULKAN])),
            id="neither a driver nor Vulkan",
        ),
    ],
)
def test_gpu_gets_the_best_plug_in_that_works_and_a_reason_for_a_lesser_one(facts: GpuFacts, wanted: str, expected: GpuPlan) -> None:
    assert gpus.plan(facts, wanted) == expected


@pytest.mark.parametrize(
    ("files", "platform", "kind"),
    [
        pytest.param([], "linux", None, id="none"),
        pytest.param(["nvidia0", "nvidiactl", "dri/renderD128"], "linux", "cuda", id="NVIDIA"),
        # Of a driver without a GPU.
        pytest.param(["nvidiactl", "nvidia-uvm"], "linux", None, id="NVIDIA's driver only"),
        pytest.param(["kfd", "dri/renderD128"], "linux", "rocm", id="AMD"),
        pytest.param(["dri/renderD128"], "linux", "vulkan", id="Intel"),
        pytest.param([], "darwin", "metal", id="Apple"),
    ],
)
def test_gpu_is_found_by_its_device_files(files: list[str], platform: str, kind: str | None, tmp_path: Path) -> None:
    (tmp_path / "dri").mkdir()
    for name in files:
        (tmp_path / name).touch()
    assert gpus.find_kind(tmp_path, platform) == kind


def test_program_prints_the_plug_in_with_python_alone() -> None:
    """The script that installs a worker runs it."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", gpus.__file__, "cpu"], capture_output=True, text=True, check=True, timeout=60, env={"PATH": ""}
    )
    assert (done.stdout, done.stderr) == ("\n", "")
