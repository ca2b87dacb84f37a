"""Build libaimesh_chat, llama.cpp's knowledge of chat templates, for the engine that is installed.

    python -m stack.chat_library [--source SDIST] [--binding FILE] [--engine FOLDER] [--into FOLDER]

takes 2 minutes of processor time and needs g++, on Linux. Run it after `pip install aimesh-server llama-cpp-python`, in the same virtual
environment: without the library, thoughts stay in the text, and tools use a form that models don't know. Images contain it, and
`make up` builds it in a checkout (tools/chat_library.py). It needs only Python's own modules, because images are built with it.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ENGINE = "llama-cpp-python"
#: Where services/inference/chat/library.py loads it from: below the virtual environment.
LIBRARY = Path("lib") / "libaimesh_chat.so"
BINDING = Path(__file__).resolve().parents[1] / "services" / "inference" / "chat" / "aimesh_chat.cpp"
#: Of llama.cpp's folder "common": what chat.cpp needs, and nothing that downloads, samples or reads a command line.
SOURCES = (
    *("chat.cpp", "chat-auto-parser-generator.cpp", "chat-auto-parser-helpers.cpp", "chat-diff-analyzer.cpp", "chat-peg-parser.cpp"),
    *("peg-parser.cpp", "json.cpp", "json-schema.cpp", "json-schema-to-grammar.cpp", "common.cpp", "unicode.cpp", "trie.cpp", "log.cpp"),
    "fit.cpp",
)
FOLDERS = ("parsers", "jinja")
#: Parts of the sdist that are kept, below vendor/llama.cpp.
KEPT = ("common/", "include/", "src/llama-ext.h", "ggml/include/", "vendor/nlohmann/", "models/templates/")
FLAGS = ("-O2", "-DNDEBUG", "-std=gnu++17", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections")
#: Most of common.cpp is dropped, with its need for the sampler. Nothing is exported but our own functions.
LINKER_FLAGS = ("-shared", "-s", "-Wl,--gc-sections", "-Wl,-z,defs", "-Wl,--as-needed")
_EXPORTS = "{ global: aimesh_chat_*; local: *; };\n"
_NICE = ("nice", "-n", "5")


class BuildFailed(Exception):
    """A command failed; the message has its output."""


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def unpack(sdist: Path, into: Path, kept: tuple[str, ...] = KEPT) -> Path:
    """Unpack these parts of llama.cpp. Return its folder."""
    with tarfile.open(sdist) as archive:
        members = [member for member in archive if member.name.partition("/vendor/llama.cpp/")[2].startswith(kept)]
        archive.extractall(into, members, filter="data")
    (source,) = into.glob("llama_cpp_python-*/vendor/llama.cpp")
    return source


def compile_sources(source: Path, folder: Path) -> list[Path]:
    """Compile what has no object file in the folder yet. Raises BuildFailed."""
    common = source / "common"
    wanted = [common / name for name in SOURCES] + sorted(path for each in FOLDERS for path in (common / each).glob("*.cpp"))
    return compile_all(wanted, common, folder, FLAGS, _headers(source))


def compile_all(files: Sequence[Path], base: Path, folder: Path, flags: Sequence[str], headers: Sequence[Path]) -> list[Path]:
    """Compile what has no object file in the folder yet, one file per processor at a time. Raises BuildFailed."""
    objects = {path: folder / f"{path.relative_to(base).as_posix().replace('/', '_')}.o" for path in files}
    missing = [path for path in files if not objects[path].exists()]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        list(threads.map(lambda path: _compile(path, objects[path], flags, headers), missing))
    return list(objects.values())


def link(binding: Path, objects: Sequence[Path], source: Path, engine: Path, target: Path) -> None:
    """Compile our own file, and link all to the engine's libraries. Raises BuildFailed."""
    with tempfile.TemporaryDirectory() as place:
        own = Path(place) / "own.o"
        _compile(binding, own, FLAGS, _headers(source))
        link_all([*objects, own], _EXPORTS, engine, target)


def link_all(objects: Sequence[Path], exports: str, engine: Path, target: Path) -> None:
    """Link a library to the engine's libraries. Raises BuildFailed."""
    with tempfile.TemporaryDirectory() as place:
        listed, new = Path(place) / "exports", target.with_suffix(".new")
        listed.write_text(exports, encoding="utf-8")
        target.parent.mkdir(parents=True, exist_ok=True)
        libraries = (f"-L{engine}", "-lllama", "-lggml", "-lggml-base", f"-Wl,--version-script={listed}")
        _run(*_NICE, compiler(), *LINKER_FLAGS, "-o", str(new), *map(str, objects), *libraries)
    new.replace(target)


def _headers(source: Path) -> list[Path]:
    return [source / each for each in ("common", "vendor", "include", "ggml/include")]


def _compile(path: Path, target: Path, flags: Sequence[str], headers: Sequence[Path]) -> None:
    # An object file appears whole or not at all.
    new = target.with_suffix(".new")
    _run(*_NICE, compiler(), *flags, *(f"-I{each}" for each in headers), "-c", str(path), "-o", str(new))
    new.replace(target)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own commands
    except OSError as error:
        raise BuildFailed(f"{command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        raise BuildFailed(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")


def _fetched(place: Path) -> Path:
    """Fetch the source of the engine that is installed."""
    try:
        version = importlib.metadata.version(ENGINE)
    except importlib.metadata.PackageNotFoundError:
        raise BuildFailed(f"{ENGINE} is not installed here; install it first") from None
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ENGINE, "--dest", str(place))
    _run(*pip, f"{ENGINE}=={version}")
    (sdist,) = place.glob("*.tar.gz")
    return sdist


def _engine_folder() -> Path:
    package = importlib.util.find_spec("llama_cpp")
    if package is None or package.origin is None:
        raise BuildFailed(f"{ENGINE} is not installed here; install it first")
    return Path(package.origin).parent / "lib"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="the engine's sdist; without it, pip fetches it")
    parser.add_argument("--binding", type=Path, default=BINDING, help="aimesh_chat.cpp")
    parser.add_argument("--engine", type=Path, help="the folder of libllama.so")
    parser.add_argument("--into", type=Path, default=Path(sys.prefix), help="the virtual environment")
    given = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as place:
            source = unpack(given.source or _fetched(Path(place)), Path(place))
            objects = compile_sources(source, Path(place))
            link(given.binding, objects, source, given.engine or _engine_folder(), given.into / LIBRARY)
    except (BuildFailed, OSError, tarfile.TarError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
