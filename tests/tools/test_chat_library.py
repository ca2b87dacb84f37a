from pathlib import Path

import pytest

from tools import chat_library, setup
from tools.setup_steps import SetupFailed


@pytest.fixture
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache with llama.cpp's sources as empty files, and a library that is not built."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(chat_library, "LIBRARY", tmp_path / "lib.so")
    monkeypatch.setattr(chat_library, "STAMP", tmp_path / "stamp")
    monkeypatch.setattr(chat_library, "LINKER_FLAGS", ("-shared",))
    monkeypatch.setattr(chat_library, "BINDING", tmp_path / "binding.cpp")
    (tmp_path / "binding.cpp").write_text("int f() { return 1; }")
    for name in (*chat_library.SOURCES, "parsers/one.cpp", "jinja/one.cpp"):
        path = chat_library.cache_folder() / "source" / "common" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    wheel = tmp_path / "packages" / "llama_cpp" / "lib"
    wheel.mkdir(parents=True)
    monkeypatch.setattr(setup, "packages_folder", lambda: tmp_path / "packages")
    for name in ("libllama.so", "libggml.so", "libggml-base.so"):
        chat_library._run(chat_library.compiler(), "-shared", "-o", str(wheel / name), "-x", "c++", "/dev/null")


@pytest.mark.usefixtures("_elsewhere")
def test_only_what_changed_is_built_again() -> None:
    chat_library.ensure()
    assert chat_library.is_current()
    objects = {path: path.stat().st_mtime_ns for path in chat_library.cache_folder().glob("*.o")}
    assert len(objects) == len(chat_library.SOURCES) + 3
    chat_library.BINDING.write_text("int f() { return 2; }")
    assert not chat_library.is_current()
    chat_library.ensure()
    assert chat_library.is_current()
    assert {path: path.stat().st_mtime_ns for path in objects} == objects
    chat_library.LIBRARY.unlink()
    assert not chat_library.is_current()


@pytest.mark.usefixtures("_elsewhere")
def test_binding_that_does_not_compile_names_the_error_and_leaves_the_old_library() -> None:
    chat_library.ensure()
    before = chat_library.LIBRARY.read_bytes()
    chat_library.BINDING.write_text("int f() { return nothing; }")
    with pytest.raises(SetupFailed, match="nothing"):
        chat_library.ensure()
    assert chat_library.LIBRARY.read_bytes() == before
    assert not chat_library.is_current()


@pytest.mark.usefixtures("_elsewhere")
def test_in_the_background_it_returns_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    begun: list[tuple[str, ...]] = []
    monkeypatch.setattr(chat_library, "_begin", lambda *command: begun.append(command))
    monkeypatch.setattr(chat_library.sys, "argv", ["chat_library", "--background"])
    assert chat_library.main() == 0
    assert [command[1:] for command in begun] == [("-m", "tools.chat_library")]
    assert "in the background" in capsys.readouterr().out
    chat_library.ensure()
    assert chat_library.main() == 0
    assert len(begun) == 1
    assert capsys.readouterr().out == ""
