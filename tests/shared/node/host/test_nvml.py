"""Against a library of our own with NVML's signatures, because few machines have the real one."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest

from shared.node.host.nvml import Gpu, NoDriver, Nvml, NvmlRefused

SOURCE = Path(__file__).parent / "fake_nvml.c"


def compiled(source: Path, folder: Path) -> Path:
    library = folder / "libfake.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-o", str(library), str(source)], check=True)
    return library


def loaded(library: Path, monkeypatch: pytest.MonkeyPatch) -> Nvml:
    """NVIDIA's binding loads one library per process; give it another for one test."""
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    # The first one is tried and is not there.
    return Nvml((library.parent / "none.so", library))


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nvml:
    return loaded(compiled(SOURCE, tmp_path), monkeypatch)


def test_a_gpu_reports_all_readings(nvml: Nvml) -> None:
    assert nvml.count() == 3
    assert nvml.read(0) == Gpu(0, usage=0.42, memory_used=2**35, memory_total=2**37, watts=350.5, celsius=66.0)


def test_unsupported_readings_are_omitted(nvml: Nvml) -> None:
    nvml.count()
    assert nvml.read(1) == Gpu(1, memory_used=2**35, memory_total=2**37)


def test_a_lost_gpu_is_reported_with_the_drivers_message(nvml: Nvml) -> None:
    nvml.count()
    with pytest.raises(NvmlRefused, match="GPU is lost"):
        nvml.read(2)


def test_without_the_library_there_is_no_driver(tmp_path: Path) -> None:
    nvml = Nvml((tmp_path / "none.so",))
    with pytest.raises(NoDriver):
        nvml.count()
    with pytest.raises(NoDriver):
        nvml.read(0)


def test_a_library_without_the_needed_functions_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "old.c"
    source.write_text("int nvmlInit(void) { return 0; }\n", encoding="ascii")
    with pytest.raises(NvmlRefused, match="the driver is too old"):
        loaded(compiled(source, tmp_path), monkeypatch).count()


def test_an_impossible_number_of_gpus_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "lying.c"
    source.write_text(SOURCE.read_text(encoding="ascii").replace("*count = 3;", "*count = 4000000000u;"), encoding="ascii")
    with pytest.raises(NvmlRefused, match="it reports 4000000000 GPUs"):
        loaded(compiled(source, tmp_path), monkeypatch).count()


def test_a_library_outside_the_loaders_path_is_found(tmp_path: Path) -> None:
    """As on WSL 2. In a process of its own, because the binding then loads the library by its name."""
    library = compiled(SOURCE, tmp_path)
    program = f"from shared.node.host.nvml import Nvml; print(Nvml(({str(library)!r},)).count())"
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60).stdout == b"3\n"
