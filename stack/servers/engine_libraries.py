"""Build the libraries of llama.cpp that llama-cpp-python lacks, for the engine that is installed.

    python -m stack.servers.engine_libraries [--source SDIST] [--engine FOLDER] [--into FOLDER]

takes 4 minutes of processor time and needs g++, on Linux. Install the wheel aimesh-server and llama-cpp-python first, in the same
virtual environment. What a worker does without them: services/inference/missing_libraries.py. In a checkout, `make up` builds them. Only
Python's own modules are imported, because container images are built with it.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

ENGINE = "llama-cpp-python"
FLAGS = (
    *("-O2", "-DNDEBUG", "-std=gnu++17", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections"),
    # ARM has one instruction for a product and a sum. Compilers differ in where they use it, and so would the pixels of an image.
    "-ffp-contract=off",
)
#: What isn't used is dropped, with its need for other libraries.
LINKER_FLAGS = ("-shared", "-s", "-Wl,--gc-sections", "-Wl,-z,defs", "-Wl,--as-needed")
_NICE = ("nice", "-n", "5")


class BuildFailed(Exception):
    """A command failed; the message has its output."""


@dataclass(frozen=True, slots=True)
class EngineLibrary:
    """How a library is built. Its paths are below llama.cpp's folder. ``compiler`` is the beginning of a command line."""

    name: str
    purpose: str
    folder: str
    #: Patterns below ``folder``.
    sources: tuple[str, ...]
    headers: tuple[str, ...]
    #: Needed besides these folders.
    kept: tuple[str, ...]
    flags: tuple[str, ...]
    #: The beginning of the functions that it exports.
    prefix: str
    #: Our own file.
    binding: Path | None = None

    @property
    def file(self) -> Path:
        """Where the worker loads it from: below the virtual environment."""
        return Path("lib") / f"libaimesh_{self.name}.so"

    def compile(self, source: Path, objects: Path, compiler: tuple[str, ...]) -> list[Path]:
        """Compile what has no file in ``objects`` yet, one file per processor at a time. Raises BuildFailed."""
        base = source / self.folder
        objects.mkdir(exist_ok=True)
        files = [path for pattern in self.sources for path in sorted(base.glob(pattern))]
        compiled = {path: objects / f"{path.relative_to(base).as_posix().replace('/', '_')}.o" for path in files}
        missing = [path for path in files if not compiled[path].exists()]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            list(threads.map(lambda path: self._compile(path, compiled[path], source, compiler), missing))
        return list(compiled.values())

    def link(self, objects: Iterable[Path], source: Path, engine: Path, target: Path, compiler: tuple[str, ...]) -> None:
        """Compile our own file, and link all to the engine's libraries. Raises BuildFailed."""
        with tempfile.TemporaryDirectory() as place:
            own, exports, new = Path(place) / "own.o", Path(place) / "exports", target.with_suffix(".new")
            if self.binding is not None:
                self._compile(self.binding, own, source, compiler)
                objects = [*objects, own]
            exports.write_text(f"{{ global: {self.prefix}*; local: *; }};\n", encoding="utf-8")
            target.parent.mkdir(parents=True, exist_ok=True)
            libraries = (f"-L{engine}", "-lllama", "-lggml", "-lggml-base", f"-Wl,--version-script={exports}")
            run(*_NICE, *compiler, *LINKER_FLAGS, "-o", str(new), *map(str, objects), *libraries)
        new.replace(target)

    def _compile(self, path: Path, target: Path, source: Path, compiler: tuple[str, ...]) -> None:
        # An object file appears whole or not at all.
        new = target.with_suffix(".new")
        headers = (f"-I{source / folder}" for folder in self.headers)
        run(*_NICE, *compiler, *FLAGS, *self.flags, *headers, "-c", str(path), "-o", str(new))
        new.replace(target)


CHAT = EngineLibrary(
    name="chat",
    purpose="llama.cpp's library of chat templates",
    folder="common",
    # What chat.cpp needs, and nothing that downloads, samples or reads a command line.
    sources=(
        *("chat.cpp", "chat-auto-parser-generator.cpp", "chat-auto-parser-helpers.cpp", "chat-diff-analyzer.cpp", "chat-peg-parser.cpp"),
        *(
            "peg-parser.cpp",
            "json.cpp",
            "json-schema.cpp",
            "json-schema-to-grammar.cpp",
            "common.cpp",
            "unicode.cpp",
            "trie.cpp",
            "log.cpp",
        ),
        *("fit.cpp", "parsers/*.cpp", "jinja/*.cpp"),
    ),
    headers=("common", "vendor", "include", "ggml/include"),
    kept=("src/llama-ext.h", "models/templates/"),
    flags=(),
    prefix="aimesh_chat_",
    binding=Path(__file__).resolve().parents[2] / "services" / "inference" / "chat" / "aimesh_chat.cpp",
)
IMAGES = EngineLibrary(
    name="images",
    purpose="llama.cpp's library for images",
    folder="tools/mtmd",
    # Without the part that decodes files: the chat process decodes them.
    sources=("mtmd.cpp", "mtmd-image.cpp", "mtmd-audio.cpp", "clip.cpp", "models/*.cpp"),
    headers=("tools/mtmd", "include", "ggml/include"),
    kept=(),
    flags=("-DLLAMA_SHARED", "-DLLAMA_BUILD"),
    prefix="mtmd_",
)
LIBRARIES = (CHAT, IMAGES)
#: For a compiler with another C++ library than libllama, to which `fit` passes objects.
CHAT_WITHOUT_FIT = replace(CHAT, sources=tuple(name for name in CHAT.sources if name != "fit.cpp"), flags=("-DAIMESH_WITHOUT_FIT",))


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def unpack(sdist: Path, into: Path, kept: tuple[str, ...] = ()) -> Path:
    """Unpack these parts of llama.cpp, or those that the libraries need. Return its folder."""
    kept = kept or tuple(part for library in LIBRARIES for part in (library.folder, *library.headers, *library.kept))
    with tarfile.open(sdist) as archive:
        members = [member for member in archive if member.name.partition("/vendor/llama.cpp/")[2].startswith(kept)]
        # Python before 3.11.4, such as Debian 12's, has no filters.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(into, members)  # noqa: S202 - it has a filter where there are any
    (source,) = into.glob("llama_cpp_python-*/vendor/llama.cpp")
    return source


def run(*command: str) -> None:
    """Raises BuildFailed."""
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
    run(*pip, f"{ENGINE}=={version}")
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
    parser.add_argument("--engine", type=Path, help="the folder of libllama.so")
    parser.add_argument("--into", type=Path, default=Path(sys.prefix), help="the virtual environment")
    given = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as place:
            source = unpack(given.source or _fetched(Path(place)), Path(place))
            for library in LIBRARIES:
                objects = library.compile(source, Path(place) / library.name, (compiler(),))
                library.link(objects, source, given.engine or _engine_folder(), given.into / library.file, (compiler(),))
    except (BuildFailed, OSError, tarfile.TarError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
