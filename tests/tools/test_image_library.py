from pathlib import Path

import pytest

from tools import chat_library, image_library, setup


def test_it_is_built_once_and_again_when_it_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With empty files as llama.cpp's sources."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(image_library, "LIBRARY", tmp_path / "lib.so")
    monkeypatch.setattr(image_library, "STAMP", tmp_path / "stamp")
    monkeypatch.setattr(chat_library, "LINKER_FLAGS", ("-shared",))
    wheel = tmp_path / "packages" / "llama_cpp" / "lib"
    sources = image_library.cache_folder() / "source" / image_library.FOLDER
    for folder in (wheel, sources / "models"):
        folder.mkdir(parents=True)
    for name in ("mtmd.cpp", "mtmd-image.cpp", "mtmd-audio.cpp", "clip.cpp", "models/one.cpp"):
        (sources / name).touch()
    # Decodes files, which the engine must not.
    (sources / "mtmd-helper.cpp").write_text("this is not compiled")
    monkeypatch.setattr(setup, "packages_folder", lambda: tmp_path / "packages")
    for name in ("libllama.so", "libggml.so", "libggml-base.so"):
        chat_library._run(chat_library.compiler(), "-shared", "-o", str(wheel / name), "-x", "c++", "/dev/null")
    assert not image_library.is_current()
    image_library.ensure()
    assert image_library.is_current()
    objects = {path: path.stat().st_mtime_ns for path in image_library.cache_folder().glob("*.o")}
    assert len(objects) == 5
    image_library.LIBRARY.unlink()
    assert not image_library.is_current()
    image_library.ensure()
    assert {path: path.stat().st_mtime_ns for path in objects} == objects
