import base64
import hashlib
import importlib.util
import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from tools.engine import wheel
from tools.setup_steps import SetupFailed


def _library(own: bytes, needed: bytes = b"libggml-base.so", glibc: bytes = b"GLIBC_2.34") -> bytes:
    """Something like an ELF file for x86-64, with a table of strings."""
    return b"\x7fELF".ljust(18, b"\0") + b"\x3e\0" + b"\0".join([b"", own, needed, b"GLIBC_2.4", glibc, b""])


LIBRARIES = {
    "libggml-base.so": _library(b"libggml-base.so"),
    "libggml.v0.5.0.so": _library(b"libggml.v0.5.0.so"),
    "libllama.v0.5.0.so": _library(b"libllama.v0.5.0.so", b"libggml.v0.5.0.so"),
    "libggml-cpu-haswell.so": _library(b"libggml-cpu-haswell.so", glibc=b"GLIBC_2.29"),
    "libggml-cpu-sapphirerapids.so": _library(b"libggml-cpu-sapphirerapids.so"),
    "libllama-common.so": _library(b"libllama-common.so"),
}


def _archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, body in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    return path


def _package(folder: Path, libraries: dict[str, bytes]) -> Path:
    return _archive(folder / "package.tgz", {f"package/bins/linux-x64/{name}": body for name, body in libraries.items()})


def _sdist(folder: Path, declaring: str) -> Path:
    files = {
        "PKG-INFO": b"Metadata-Version: 2.2\nName: llama_cpp_python\n",
        "LICENSE.md": b"MIT",
        "llama_cpp/_ctypes_extensions.py": declaring.encode(),
        "llama_cpp/llama_cpp.py": b"",
        "vendor/llama.cpp/LICENSE": b"MIT, too",
        "vendor/llama.cpp/src/llama.cpp": b"int main() {}",
    }
    return _archive(folder / "sdist.tar.gz", {f"llama_cpp_python-0/{name}": body for name, body in files.items()})


def _made(folder: Path) -> Path:
    folder.mkdir()
    # In llama-cpp-python it is in a function of a function.
    outer = "from typing import Any\n\ndef declare(lib, name):\n        if name:\n            if True:\n"
    declaring = f"{outer}{wheel.DECLARED}                return func\n"
    sdist = _sdist(folder, declaring)
    return wheel.make_wheel(sdist, wheel.read_libraries(_package(folder, LIBRARIES)), folder, *wheel.npm_build())


def test_wheel_has_the_python_of_the_sdist_and_each_library_once(tmp_path: Path) -> None:
    made = _made(tmp_path / "a")
    # The newest symbol decides, by number and not by letters.
    assert made.name == f"llama_cpp_python-{wheel.engine_version()}-py3-none-manylinux_2_34_x86_64.whl"
    with zipfile.ZipFile(made) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    libraries = {name.rpartition("/")[2]: body for name, body in files.items() if name.startswith("llama_cpp/lib/lib")}
    assert sorted(libraries) == ["libggml-base.so", "libggml-cpu-haswell.so", "libggml.so", "libllama.so"]
    # A name becomes shorter, and nothing moves.
    assert libraries["libllama.so"] == LIBRARIES["libllama.v0.5.0.so"].replace(b".v0.5.0.so", b".so\0\0\0\0\0\0\0")
    info = f"llama_cpp_python-{wheel.engine_version()}.dist-info"
    assert {name for name in files if name.startswith(info)} == {
        f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE.md", "licenses/llama.cpp/LICENSE")
    }
    assert not [name for name in files if "vendor" in name]
    recorded = {}
    for line in files[f"{info}/RECORD"].decode().splitlines():
        name, digest, _ = line.split(",")
        recorded[name] = digest
    assert recorded.keys() == files.keys()
    digest = base64.urlsafe_b64encode(hashlib.sha256(libraries["libllama.so"]).digest()).rstrip(b"=").decode()
    assert recorded["llama_cpp/lib/libllama.so"] == f"sha256={digest}"
    build = json.loads(files["llama_cpp/lib/aimesh_build.json"])
    assert build["numeric_groups"]["zen4"] == build["numeric_groups"]["icelake"] == "avx512"
    assert "sse42" not in build["numeric_groups"]


def test_same_inputs_give_the_same_wheel(tmp_path: Path) -> None:
    assert _made(tmp_path / "a").read_bytes() == _made(tmp_path / "b").read_bytes()


def test_function_that_the_libraries_lack_raises_by_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(_made(tmp_path / "a")) as archive:
        (tmp_path / "patched.py").write_bytes(archive.read("llama_cpp/_ctypes_extensions.py"))
    spec = importlib.util.spec_from_file_location("patched", tmp_path / "patched.py")
    assert spec is not None
    assert spec.loader is not None
    patched = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(patched)
    declared = patched.declare(object(), "llama_new")
    with pytest.raises(NotImplementedError, match=r"this build of llama.cpp has no llama_new"):
        declared()
    assert patched.declare("", "upper")() == ""


def test_changed_sdist_is_refused_instead_of_left_unpatched(tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match="adapt DECLARED"):
        wheel.make_wheel(_sdist(tmp_path, "func = lib[name]\n"), LIBRARIES, tmp_path, "", {})


def test_plug_in_adds_one_library_to_the_folder_of_the_engine(tmp_path: Path) -> None:
    package = _package(tmp_path, {**LIBRARIES, "libggml-cuda.so": _library(b"libggml-cuda.so", b"libcuda.so.1")})
    # llama.cpp looks for libggml-cuda.so, for whatever CUDA it is.
    for name in ("cuda", "cuda12"):
        with zipfile.ZipFile(wheel.make_plug_in(name, wheel.read_libraries(package), tmp_path)) as archive:
            assert [each for each in archive.namelist() if ".dist-info" not in each] == ["llama_cpp/lib/libggml-cuda.so"]
            (metadata,) = (archive.read(each).decode() for each in archive.namelist() if each.endswith("METADATA"))
        assert f"Name: aimesh-engine-{name}\n" in metadata
        assert f"Requires-Dist: llama-cpp-python=={wheel.engine_version()}" in metadata


def test_package_with_another_hash_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "package.tgz"
    archive.write_bytes(b"libraries")
    digest = base64.b64encode(hashlib.sha512(b"libraries").digest()).decode()
    wheel.check(archive, f"sha512-{digest}")
    archive.write_bytes(b"librarie")
    with pytest.raises(SetupFailed, match=r"package.tgz has the hash sha512-.* of tools/engine/package-lock.json"):
        wheel.check(archive, f"sha512-{digest}")


def test_wheel_is_made_once_and_again_for_other_inputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = wheel.wheel_folder("linux-x64-vulkan")
    folder.mkdir(parents=True)
    (folder / "kept.whl").touch()
    assert wheel.ensure("x86_64", "vulkan") == folder / "kept.whl"
    monkeypatch.setattr(wheel, "NPM", tmp_path)
    (tmp_path / "package-lock.json").touch()
    assert wheel.wheel_folder("linux-x64-vulkan") != folder


def test_machine_without_prebuilt_libraries_is_told_to_compile() -> None:
    with pytest.raises(SetupFailed, match="no prebuilt engine for riscv64; compile it: BUILD=1"):
        wheel.ensure("riscv64")


def test_engine_has_its_own_lock() -> None:
    engine, others = wheel.LOCK.read_text(), (wheel.LOCKS / "engine-needs.lock").read_text()
    assert engine.count("==") == 1
    assert "--hash=sha256:" in engine
    assert "numpy==" in others
    assert "diskcache==" in others
    assert "llama-cpp-python==" not in others


@pytest.mark.parametrize("package", [*wheel.MACHINES.values(), *wheel.PLUG_INS.values()])
def test_every_package_has_its_hash_in_the_lock(package: str) -> None:
    version, integrity = wheel.locked(package)
    # One version of llama.cpp, because the libraries of several packages are used together.
    assert version == wheel.locked("linux-x64")[0]
    assert integrity.startswith("sha512-")
