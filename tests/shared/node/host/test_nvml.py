"""Against a library of our own with NVML's signatures, because few machines have the real one."""

import subprocess
from pathlib import Path

import pytest

from shared.node.host.nvml import Gpu, NoDriver, Nvml, NvmlRefused

SOURCE = Path(__file__).parent / "fake_nvml.c"


def compiled(source: Path, folder: Path) -> Path:
    library = folder / "libfake.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


@pytest.fixture
def nvml(tmp_path: Path) -> Nvml:
    # The first one is tried and is not there.
    return Nvml((tmp_path / "none.so", compiled(SOURCE, tmp_path)))


def test_a_gpu_tells_all_of_itself(nvml: Nvml) -> None:
    assert nvml.count() == 3
    assert nvml.read(0) == Gpu(0, usage=0.42, memory_used=2**35, memory_total=2**37, watts=350.5, celsius=66.0)


def test_what_a_gpu_does_not_tell_is_left_out(nvml: Nvml) -> None:
    nvml.count()
    assert nvml.read(1) == Gpu(1, memory_used=2**35, memory_total=2**37)


def test_a_gpu_that_is_lost_is_refused_in_the_drivers_words(nvml: Nvml) -> None:
    nvml.count()
    with pytest.raises(NvmlRefused, match="GPU is lost"):
        nvml.read(2)


def test_without_the_library_there_is_no_driver(tmp_path: Path) -> None:
    nvml = Nvml((tmp_path / "none.so",))
    with pytest.raises(NoDriver):
        nvml.count()
    with pytest.raises(NoDriver):
        nvml.read(0)


def test_a_library_without_our_functions_is_too_old(tmp_path: Path) -> None:
    source = tmp_path / "old.c"
    source.write_text("int nvmlInit(void) { return 0; }\n", encoding="ascii")
    with pytest.raises(NvmlRefused, match="nvmlInit_v2"):
        Nvml((compiled(source, tmp_path),)).count()
