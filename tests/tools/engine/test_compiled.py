import platform
import shutil
import sys
from pathlib import Path

import pytest

from tools import setup_steps
from tools.engine import compiled, wheel


def test_another_build_has_another_cache_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    plain = compiled.build_key("cpu")
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=on")
    assert compiled.build_key("cpu") != plain
    assert compiled.build_key("vulkan") != plain
    assert plain.startswith(wheel.engine_version())


def test_portable_build_has_the_same_cache_key_on_every_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    def keys(cmake_args: str) -> set[str]:
        monkeypatch.setenv("CMAKE_ARGS", cmake_args)
        found = set()
        for flag in ("-mno-amx-tile", ""):
            monkeypatch.setattr(compiled, "compiler_flags", lambda flag=flag: flag)
            found.add(compiled.build_key("cpu"))
        return found

    assert len(keys("-DGGML_NATIVE=OFF")) == 1
    assert len(keys("-DGGML_NATIVE=ON")) == 2
    assert keys("-DGGML_NATIVE=OFF").isdisjoint(keys("-DGGML_NATIVE=off -DGGML_CUDA=on"))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        pytest.param("fpu avx512f amx_bf16 amx_tile amx_int8", "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16", id="a processor with AMX"),
        pytest.param("fpu avx512f", "", id="one without"),
    ],
)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="other compilers do not know AMX")
def test_engine_is_built_without_amx_tiles(flags: str, expected: str, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"model name\t: X\nflags\t\t: {flags}\n")
    assert compiled.compiler_flags(cpuinfo) == expected
    assert compiled.compiler_flags(tmp_path / "none, as on macOS") == ""


def test_compiler_flags_of_the_user_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFLAGS", "-pipe")
    monkeypatch.setattr(compiled, "compiler_flags", lambda: "-mno-amx-tile")
    environment = compiled.build_environment()
    assert (environment["CFLAGS"], environment["CXXFLAGS"]) == ("-pipe -mno-amx-tile", "-mno-amx-tile")


def test_gpu_without_its_compiler_is_reported_with_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(setup_steps.SetupFailed, match=r"nvcc is missing.\n  install NVIDIA's CUDA toolkit"):
        compiled.ensure("cuda")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of engines; returns the folder for this machine's engine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(setup_steps, "LOG", tmp_path / "setup.log")
    return compiled.wheel_folder("cpu")


def _built_by(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    """Let a shell script, which gets pip's words, stand for pip."""
    (tmp_path / "python").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(compiled, "make_tools", lambda place: tmp_path / "python")


def test_engine_is_compiled_once(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    record = 'while [ "$1" != -w ]; do shift; done; mkdir "$2"; echo "$CMAKE_ARGS" > "$2/engine.whl"'
    _built_by(monkeypatch, tmp_path, record)
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_BLAS=on")
    folder = compiled.wheel_folder("cpu")
    assert compiled.ensure("cpu") == folder / "engine.whl"
    assert [path.name for path in folder.iterdir()] == ["engine.whl"]
    assert (folder / "engine.whl").read_text().startswith("-DGGML_BLAS=on -DLLAVA_BUILD=OFF")
    _built_by(monkeypatch, tmp_path, "exit 1")
    assert compiled.ensure("cpu") == folder / "engine.whl"


def test_failed_build_shows_the_end_of_its_log(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    _built_by(monkeypatch, tmp_path, "echo no room on the disk; exit 3")
    with pytest.raises(setup_steps.SetupFailed, match=r"on 2 cores failed \(exit status 3\)(.|\n)*no room on the disk"):
        compiled.ensure("cpu")
    assert list(folder.iterdir()) == []


def test_build_tools_come_from_their_lock() -> None:
    names = (setup_steps.LOCKS / "engine-build.lock").read_text()
    assert [name for name in ("cmake", "ninja", "scikit-build-core") if f"{name}==" not in names] == []
    assert sys.version_info >= (3, 11)
