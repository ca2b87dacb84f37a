import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from services.inference import missing_libraries
from stack.servers import engine_libraries as building
from stack.servers.engine_libraries import CHAT, CHAT_WITHOUT_FIT, IMAGES, BuildFailed, EngineLibrary
from tools import engine_libraries, setup_steps
from tools.engine import zig
from tools.engine_libraries import Toolchain


@pytest.fixture
def binding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with llama.cpp's sources as empty files, and libraries that are not built. Returns our own file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(building, "LINKER_FLAGS", ("-shared",))
    own = tmp_path / "binding.cpp"
    own.write_text("int f() { return 1; }")
    monkeypatch.setattr(engine_libraries, "LIBRARIES", (replace(CHAT, binding=own), IMAGES))
    monkeypatch.setattr(engine_libraries, "PORTABLE", (replace(CHAT_WITHOUT_FIT, binding=own), IMAGES))
    monkeypatch.setattr(engine_libraries, "VENV", tmp_path)
    for toolchain in (Toolchain.gnu(), Toolchain.zig("x86_64"), Toolchain.zig("aarch64")):
        for library in toolchain.libraries:
            for name in library.sources:
                path = toolchain.folder / "source" / library.folder / name.replace("*", "one")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        # This file decodes images and audio files, which the engine must not do.
        (toolchain.folder / "source" / IMAGES.folder / "mtmd-helper.cpp").write_text("this is not compiled")
    wheel = tmp_path / "packages" / "llama_cpp" / "lib"
    wheel.mkdir(parents=True)
    monkeypatch.setattr(setup_steps, "packages_folder", lambda: tmp_path / "packages")
    for name in ("libllama.so", "libggml.so", "libggml-base.so"):
        building.run(building.compiler(), "-shared", "-o", str(wheel / name), "-x", "c++", "/dev/null")
    return own


def is_current(library: EngineLibrary) -> bool:
    return library not in engine_libraries.find_stale(Toolchain.gnu())


def test_only_what_changed_is_built_again(binding: Path, tmp_path: Path) -> None:
    chat, images = engine_libraries.LIBRARIES
    engine_libraries.ensure(Toolchain.gnu())
    assert is_current(chat)
    assert is_current(images)
    objects = {path: path.stat().st_mtime_ns for path in Toolchain.gnu().folder.glob("*/*.o")}
    assert len(objects) == len(chat.sources) + len(images.sources)
    linked = (tmp_path / images.file).stat().st_mtime_ns
    binding.write_text("int f() { return 2; }")
    assert not is_current(chat)
    engine_libraries.ensure(Toolchain.gnu())
    assert is_current(chat)
    assert {path: path.stat().st_mtime_ns for path in objects} == objects
    assert (tmp_path / images.file).stat().st_mtime_ns == linked
    (tmp_path / images.file).unlink()
    assert not is_current(images)


def test_binding_that_does_not_compile_names_the_error_and_leaves_the_old_library(binding: Path, tmp_path: Path) -> None:
    engine_libraries.ensure(Toolchain.gnu())
    chat = engine_libraries.LIBRARIES[0]
    before = (tmp_path / chat.file).read_bytes()
    binding.write_text("int f() { return nothing; }")
    with pytest.raises(BuildFailed, match="nothing"):
        engine_libraries.ensure(Toolchain.gnu())
    assert (tmp_path / chat.file).read_bytes() == before
    assert not is_current(chat)


@pytest.mark.usefixtures("binding")
def test_in_the_background_it_returns_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    begun: list[str] = []
    monkeypatch.setattr(setup_steps, "begin", begun.append)
    monkeypatch.setattr(engine_libraries.sys, "argv", ["engine_libraries", "--background"])
    assert engine_libraries.main() == 0
    assert begun == ["tools.engine_libraries"]
    assert "in the background" in capsys.readouterr().out
    engine_libraries.ensure(Toolchain.gnu())
    assert engine_libraries.main() == 0
    assert len(begun) == 1
    assert capsys.readouterr().out == ""


def test_libraries_are_linked_again_to_another_engine(binding: Path, tmp_path: Path) -> None:
    engine_libraries.ensure(Toolchain.gnu())
    objects = {path: path.stat().st_mtime_ns for path in Toolchain.gnu().folder.glob("*/*.o")}
    # As in a prebuilt wheel, or a compiled one.
    libllama = tmp_path / "packages" / "llama_cpp" / "lib" / "libllama.so"
    building.run(building.compiler(), "-shared", "-Wl,-soname,libllama.so.0", "-o", str(libllama), "-x", "c++", "/dev/null")
    assert not any(map(is_current, engine_libraries.LIBRARIES))
    engine_libraries.ensure(Toolchain.gnu())
    assert all(map(is_current, engine_libraries.LIBRARIES))
    assert {path: path.stat().st_mtime_ns for path in objects} == objects


@pytest.mark.usefixtures("binding")
def test_a_machine_without_a_compiler_builds_them_with_zig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """README used to send people to `apt-get install g++`."""
    used: list[tuple[str, ...]] = []

    @contextmanager
    def installed(machine: str) -> Iterator[tuple[str, ...]]:
        command = (shutil.which("g++") or "", f"-DTARGET={machine}")
        used.append(command)
        yield command

    monkeypatch.setattr(zig, "installed", installed)
    assert Toolchain.find() == Toolchain.gnu()
    monkeypatch.setenv("CXX", "no-compiler")
    monkeypatch.setattr(engine_libraries.sys, "argv", ["engine_libraries"])
    assert engine_libraries.main() == 0
    assert [word for _, word in used] == [f"-DTARGET={platform.machine()}"]
    assert (tmp_path / CHAT.file).exists()
    assert engine_libraries.main() == 0
    assert len(used) == 1


@pytest.mark.usefixtures("binding")
@pytest.mark.parametrize("arguments", [(), ("--background",)])
def test_where_nothing_can_build_them_it_says_what_is_missing(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(engine_libraries.sys, "argv", ["engine_libraries", *arguments])
    monkeypatch.setattr(engine_libraries.sys, "platform", "darwin")
    assert engine_libraries.main() == 0
    assert capsys.readouterr().out == missing_libraries.find(tmp_path) + "\n"
    for library in engine_libraries.LIBRARIES:
        (tmp_path / library.file).parent.mkdir(exist_ok=True)
        (tmp_path / library.file).touch()
    assert engine_libraries.main() == 0
    assert capsys.readouterr().out == ""


def test_zig_builds_all_but_what_passes_objects_of_c_plus_plus_to_the_engine() -> None:
    assert set(CHAT.sources) - set(CHAT_WITHOUT_FIT.sources) == {"fit.cpp"}
    assert "-DAIMESH_WITHOUT_FIT" in CHAT_WITHOUT_FIT.flags
    folders = {Toolchain.zig(machine).folder for machine in zig.TARGETS} | {Toolchain.gnu().folder}
    assert len(folders) == len(zig.TARGETS) + 1, "no compiler uses what another has compiled"
