"""The engine's wheels of a release, from a compiled wheel of stand-ins."""

import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from services.inference import missing_libraries
from stack.servers.engine_libraries import EngineLibrary
from tools import engine_libraries
from tools.engine import released, wheel
from tools.engine_libraries import Toolchain

#: Its C library and its processor, as `wheel.write` reads them.
_BODY = b"\x7fELF".ljust(18, b"\0") + b"\x3e\0GLIBC_2.35\0"
COMPILED = (
    *("llama_cpp/lib/libllama.so", "lib/libllama.so", "llama_cpp/lib/libggml.so", "llama_cpp/lib/libggml-base.so"),
    *("bin/libggml-cpu-haswell.so", "bin/libggml-cpu-sapphirerapids.so"),
)


@pytest.fixture
def libraries(tmp_path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(tmp_path / "compiled.whl", "w") as archive:
        for name in (*COMPILED, "llama_cpp/__init__.py", "lib/cmake/ggml.cmake"):
            archive.writestr(name, _BODY + name.rpartition("/")[2].encode())
    return wheel.read_libraries_of_wheel(tmp_path / "compiled.whl")


def test_the_engine_has_each_library_of_the_compiled_one_but_not_that_for_amx(
    libraries: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    monkeypatch.setattr(wheel, "fetch_sdist", _sdist)
    with zipfile.ZipFile(released.make_engine(libraries, made)) as archive:
        names = {Path(name).name for name in archive.namelist() if name.startswith("llama_cpp/lib/lib")}
        build = json.loads(archive.read("llama_cpp/lib/aimesh_build.json"))
    assert names == {"libllama.so", "libggml.so", "libggml-base.so", "libggml-cpu-haswell.so"}
    # Nobody has proved that other variants compute the same.
    assert (build["build"] == wheel.npm_build()[0], build["numeric_groups"]) == (False, {})


def test_pip_puts_the_libraries_where_a_worker_loads_them_from(
    libraries: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(_toolchain: Toolchain, wanted: tuple[EngineLibrary, ...], engine: Path, into: Path) -> None:
        assert (engine / "libllama.so").read_bytes() == libraries["libllama.so"]
        for each in wanted:
            (into / each.file).parent.mkdir(exist_ok=True)
            (into / each.file).write_bytes(_BODY)

    monkeypatch.setattr(Toolchain, "build", build)
    made = engine_libraries.make_wheel(libraries, tmp_path, Toolchain.gnu())
    assert made.name.endswith("-py3-none-manylinux_2_35_x86_64.whl")
    with zipfile.ZipFile(made) as archive:
        installed = {Path(name.partition(".data/data/")[2]) for name in archive.namelist() if ".data/data/" in name}
    assert installed == {missing_libraries.path(name, Path()) for name in missing_libraries.WITHOUT}


def _sdist(place: Path) -> Path:
    file, sdist = place / "_ctypes_extensions.py", place / "sdist.tar.gz"
    file.write_text(wheel.DECLARED, encoding="utf-8")
    with tarfile.open(sdist, "w:gz") as archive:
        archive.add(file, "llama_cpp_python-0/llama_cpp/_ctypes_extensions.py")
    return sdist
