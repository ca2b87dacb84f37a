from dataclasses import replace
from pathlib import Path

import pytest

from services.inference import missing_libraries
from stack.servers import engine_libraries as building
from stack.servers.engine_libraries import CHAT, IMAGES, BuildFailed
from tools import engine_libraries, setup_steps


@pytest.fixture
def binding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with llama.cpp's sources as empty files, and libraries that are not built. Returns our own file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(building, "LINKER_FLAGS", ("-shared",))
    own = tmp_path / "binding.cpp"
    own.write_text("int f() { return 1; }")
    monkeypatch.setattr(engine_libraries, "LIBRARIES", (replace(CHAT, binding=own), IMAGES))
    monkeypatch.setattr(engine_libraries, "VENV", tmp_path)
    for library in engine_libraries.LIBRARIES:
        for name in library.sources:
            path = engine_libraries.cache_folder() / "source" / library.folder / name.replace("*", "one")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    # This file decodes images and audio files, which the engine must not do.
    (engine_libraries.cache_folder() / "source" / IMAGES.folder / "mtmd-helper.cpp").write_text("this is not compiled")
    wheel = tmp_path / "packages" / "llama_cpp" / "lib"
    wheel.mkdir(parents=True)
    monkeypatch.setattr(setup_steps, "packages_folder", lambda: tmp_path / "packages")
    for name in ("libllama.so", "libggml.so", "libggml-base.so"):
        building.run(building.compiler(), "-shared", "-o", str(wheel / name), "-x", "c++", "/dev/null")
    return own


def test_only_what_changed_is_built_again(binding: Path, tmp_path: Path) -> None:
    chat, images = engine_libraries.LIBRARIES
    engine_libraries.ensure()
    assert engine_libraries.is_current(chat)
    assert engine_libraries.is_current(images)
    objects = {path: path.stat().st_mtime_ns for path in engine_libraries.cache_folder().glob("*/*.o")}
    assert len(objects) == len(chat.sources) + len(images.sources)
    linked = (tmp_path / images.file).stat().st_mtime_ns
    binding.write_text("int f() { return 2; }")
    assert not engine_libraries.is_current(chat)
    engine_libraries.ensure()
    assert engine_libraries.is_current(chat)
    assert {path: path.stat().st_mtime_ns for path in objects} == objects
    assert (tmp_path / images.file).stat().st_mtime_ns == linked
    (tmp_path / images.file).unlink()
    assert not engine_libraries.is_current(images)


def test_binding_that_does_not_compile_names_the_error_and_leaves_the_old_library(binding: Path, tmp_path: Path) -> None:
    engine_libraries.ensure()
    chat = engine_libraries.LIBRARIES[0]
    before = (tmp_path / chat.file).read_bytes()
    binding.write_text("int f() { return nothing; }")
    with pytest.raises(BuildFailed, match="nothing"):
        engine_libraries.ensure()
    assert (tmp_path / chat.file).read_bytes() == before
    assert not engine_libraries.is_current(chat)


@pytest.mark.usefixtures("binding")
def test_in_the_background_it_returns_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    begun: list[str] = []
    monkeypatch.setattr(setup_steps, "begin", begun.append)
    monkeypatch.setattr(engine_libraries.sys, "argv", ["engine_libraries", "--background"])
    assert engine_libraries.main() == 0
    assert begun == ["tools.engine_libraries"]
    assert "in the background" in capsys.readouterr().out
    engine_libraries.ensure()
    assert engine_libraries.main() == 0
    assert len(begun) == 1
    assert capsys.readouterr().out == ""


def test_libraries_are_linked_again_to_another_engine(binding: Path, tmp_path: Path) -> None:
    engine_libraries.ensure()
    objects = {path: path.stat().st_mtime_ns for path in engine_libraries.cache_folder().glob("*/*.o")}
    # As in a prebuilt wheel, or a compiled one.
    libllama = tmp_path / "packages" / "llama_cpp" / "lib" / "libllama.so"
    building.run(building.compiler(), "-shared", "-Wl,-soname,libllama.so.0", "-o", str(libllama), "-x", "c++", "/dev/null")
    assert [library.name for library in engine_libraries.LIBRARIES if engine_libraries.is_current(library)] == []
    engine_libraries.ensure()
    assert all(map(engine_libraries.is_current, engine_libraries.LIBRARIES))
    assert {path: path.stat().st_mtime_ns for path in objects} == objects


@pytest.mark.usefixtures("binding")
@pytest.mark.parametrize("arguments", [(), ("--background",)])
def test_without_a_compiler_it_says_what_is_missing_and_how_to_get_it(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(engine_libraries.sys, "argv", ["engine_libraries", *arguments])
    with monkeypatch.context() as without:
        without.setenv("PATH", str(tmp_path))
        assert engine_libraries.main() == 0
        assert capsys.readouterr().out == missing_libraries.find(tmp_path) + "\n"
        assert "apt-get install g++, then make up" in missing_libraries.find(tmp_path)
    engine_libraries.ensure()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert engine_libraries.main() == 0
    assert capsys.readouterr().out == ""
