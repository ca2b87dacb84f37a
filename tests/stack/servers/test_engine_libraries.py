"""Building llama.cpp's libraries for an installed engine, with a compiler that only records its arguments."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from services.inference import missing_libraries
from services.inference.chat import library
from stack.servers import engine_libraries
from stack.servers.engine_libraries import CHAT, IMAGES, LIBRARIES

COMPILER = """#!/bin/sh
echo "$@" >>"$ASKED"
while [ $# -gt 1 ]; do [ "$1" = -o ] && echo built >"$2"; shift; done
"""


def sources() -> list[str]:
    return [f"{library.folder}/{name.replace('*', 'one')}" for library in LIBRARIES for name in library.sources]


def sdist(path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name in (*sources(), "tools/server.cpp", "models/templates/a.jinja"):
            archive.addfile(tarfile.TarInfo(f"llama_cpp_python-0.1/vendor/llama.cpp/{name}"), io.BytesIO())


def build(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    given = ("--source", f"{folder}/engine.tar.gz", "--engine", "/engine", "--into", f"{folder}/venv", *more)
    environment = {**os.environ, "CXX": f"{folder}/c++", "ASKED": f"{folder}/asked"}
    command = (sys.executable, str(engine_libraries.__file__), *given)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60, cwd="/")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "c++").write_text(COMPILER)
    (tmp_path / "c++").chmod(0o700)
    return tmp_path


def test_libraries_are_built_where_the_worker_loads_them(folder: Path) -> None:
    sdist(folder / "engine.tar.gz")
    done = build(folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.relative_to(folder / "venv") for path in folder.glob("venv/**/*.*")} == {CHAT.file, IMAGES.file}
    assert (Path(sys.prefix) / CHAT.file, Path(sys.prefix) / IMAGES.file) == (library.PATH, missing_libraries.IMAGES)
    asked = (folder / "asked").read_text().splitlines()
    compiled = [word.partition("/llama.cpp/")[2] for line in asked for word in line.split() if word.endswith(".cpp")]
    assert sorted(compiled) == sorted(["", *sources()]), "and our own file"
    chat, images_line = (line for line in asked if "-lllama" in line)
    assert "-L/engine" in chat
    assert "-L/engine" in images_line
    assert (chat.count(".o "), images_line.count(".o ")) == (len(CHAT.sources) + 1, len(IMAGES.sources)), "every object"


def test_source_that_lacks_a_file_is_refused_and_leaves_no_library(folder: Path) -> None:
    (folder / "engine.tar.gz").write_bytes(b"no archive")
    done = build(folder)
    assert done.returncode == 1
    assert "not a gzip file" in done.stderr
    sdist(folder / "engine.tar.gz")
    (folder / "c++").write_text("#!/bin/sh\necho it is wrong >&2; exit 1")
    done = build(folder)
    assert (done.returncode, "it is wrong" in done.stderr, list(folder.glob("venv/**/*.so"))) == (1, True, [])


@pytest.mark.usefixtures("old_tarfile")
def test_the_source_is_unpacked_by_a_python_without_filters(tmp_path: Path) -> None:
    sdist(tmp_path / "engine.tar.gz")
    assert (engine_libraries.unpack(tmp_path / "engine.tar.gz", tmp_path / "to") / "common" / "chat.cpp").exists()


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="Python before 3.11.4 has no filters")
def test_the_source_is_not_unpacked_outside_its_folder(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "engine.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("llama_cpp_python-0.1/vendor/llama.cpp/common/../../../../../outside"), io.BytesIO())
    with pytest.raises(tarfile.OutsideDestinationError, match="outside"):
        engine_libraries.unpack(tmp_path / "engine.tar.gz", tmp_path / "to")
