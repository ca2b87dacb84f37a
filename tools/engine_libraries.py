"""Build libaimesh_chat and libaimesh_images (stack/servers/engine_libraries.py) from the sdist that the engine's wheel is built from.

    python -m tools.engine_libraries [--background]

does nothing if both in .venv are current. Otherwise it compiles what is missing in the cache (100 files of llama.cpp, once, 4 minutes of
processor time) and our own file. With --background it returns at once, and models that are loaded later use them. `ensure_wheel` makes the
wheel that a mesh gives to its workers, which never compile.
"""

from __future__ import annotations

import fcntl
import hashlib
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.inference import missing_libraries
from stack.servers import engine_libraries
from stack.servers.engine_libraries import CHAT, CHAT_WITHOUT_FIT, FLAGS, IMAGES, LINKER_FLAGS, BuildFailed, EngineLibrary
from tools import setup_steps
from tools.engine import wheel, zig
from tools.setup_steps import VENV

#: With g++.
LIBRARIES = (CHAT, IMAGES)
#: With zig.
PORTABLE = (CHAT_WITHOUT_FIT, IMAGES)
_WAITING = """Now two libraries of llama.cpp are being built in the background (4 minutes). Models that are loaded after it show their
thoughts apart, use tools in their own format and see images: aicli models unload NAME, or make down and make up.
"""


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A compiler, the kind of machine that it builds for, and what it builds."""

    machine: str
    libraries: tuple[EngineLibrary, ...]
    #: Instead of g++.
    is_zig: bool

    @classmethod
    def gnu(cls) -> Toolchain:
        return cls(platform.machine(), LIBRARIES, is_zig=False)

    @classmethod
    def zig(cls, machine: str) -> Toolchain:
        return cls(machine, PORTABLE, is_zig=True)

    @classmethod
    def find(cls) -> Toolchain | None:
        """Return that for this machine: g++ if it is here, because its libraries can also divide a model between GPUs and processor."""
        if not sys.platform.startswith("linux"):
            return None
        if shutil.which(engine_libraries.compiler()) is not None:
            return cls.gnu()
        return cls.zig(platform.machine()) if platform.machine() in zig.TARGETS else None

    @property
    def folder(self) -> Path:
        """The folder of the source and of what is compiled, named by everything that they are made of."""
        used = zig.describe(self.machine) if self.is_zig else engine_libraries.compiler()
        facts = "\n".join([*FLAGS, *(word for each in self.libraries for word in (*each.flags, *each.sources, *each.kept)), used])
        name = f"{wheel.engine_version()}-{self.machine}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
        return setup_steps.cache_folder().parent / "libraries" / name

    def key(self, library: EngineLibrary, libllama: bytes) -> str:
        """Return a name of all that a library is made of."""
        own = b"" if library.binding is None else library.binding.read_bytes()
        # A compiled engine's libraries have other names than prebuilt ones.
        return f"{self.folder.name}-{hashlib.sha256(own + libllama + ' '.join(LINKER_FLAGS).encode()).hexdigest()[:12]}"

    def build(self, libraries: Iterable[EngineLibrary], engine: Path, into: Path) -> None:
        """Build libraries for the engine in this folder. Raises SetupFailed and BuildFailed."""
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            source = folder / "source"
            if not source.is_dir():
                with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as place:
                    engine_libraries.unpack(wheel.fetch_sdist(Path(place)), Path(place)).rename(source)
            with self._compiler() as compiler:
                for library in libraries:
                    with setup_steps.progress(f"building {library.file.stem} for {self.machine}, {library.purpose}"):
                        objects = library.compile(source, folder / library.name, compiler)
                        library.link(objects, source, engine, into / library.file, compiler)

    @contextmanager
    def _compiler(self) -> Iterator[tuple[str, ...]]:
        if not self.is_zig:
            yield (engine_libraries.compiler(),)
            return
        with zig.installed(self.machine) as command:
            yield command


def templates_folder() -> Path:
    """Return the folder of the templates in llama.cpp's source; it exists once the libraries were built."""
    return (Toolchain.find() or Toolchain.gnu()).folder / "source" / "models" / "templates"


def find_stale(toolchain: Toolchain) -> list[EngineLibrary]:
    """Return the libraries in .venv that are missing, or made of something else."""
    return [library for library in toolchain.libraries if not _is_current(library, toolchain)]


def ensure(toolchain: Toolchain) -> None:
    """Build the libraries in .venv that are not current. Raises SetupFailed and BuildFailed."""
    if stale := find_stale(toolchain):
        toolchain.build(stale, _engine_folder(), VENV)
        for library in stale:
            _stamp(library).write_text(toolchain.key(library, _libllama()), encoding="utf-8")


def ensure_wheel(machine: str) -> Path:
    """Return the wheel of the libraries for this kind of machine, from the cache or built now. Raises SetupFailed and BuildFailed.

    Always zig's: what g++ builds needs libraries of C and C++ that are as new as this machine's.
    """
    toolchain = Toolchain.zig(machine)
    engine = wheel.read_libraries_of_wheel(wheel.ensure(machine))
    keys = "\n".join(toolchain.key(library, engine["libllama.so"]) for library in toolchain.libraries)
    folder = toolchain.folder / f"wheel-{hashlib.sha256(keys.encode()).hexdigest()[:12]}"
    if found := next(folder.glob("*.whl"), None):
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as place:
        made = make_wheel(engine, Path(place), toolchain)
        return made.replace(folder / made.name)


def make_wheel(engine: Mapping[str, bytes], into: Path, toolchain: Toolchain) -> Path:
    """Build the libraries for these of the engine, and make their wheel. Raises SetupFailed and BuildFailed."""
    info = f"{wheel.ENGINE_LIBRARIES.replace('-', '_')}-{wheel.engine_version()}"
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for library, body in engine.items():
            (place / library).write_bytes(body)
        toolchain.build(toolchain.libraries, place, place)
        # pip puts them into the virtual environment's folder lib.
        files = {f"{info}.data/data/{each.file}": (place / each.file).read_bytes() for each in toolchain.libraries}
    facts = f"Metadata-Version: 2.1\nName: {wheel.ENGINE_LIBRARIES}\nVersion: {wheel.engine_version()}\nLicense: MIT AND Apache-2.0\n"
    files[f"{info}.dist-info/METADATA"] = f"{facts}Requires-Dist: {wheel.ENGINE}=={wheel.engine_version()}\n".encode()
    return wheel.write(files, f"{info}.dist-info", into)


def _is_current(library: EngineLibrary, toolchain: Toolchain) -> bool:
    stamp = _stamp(library)
    is_there = (VENV / library.file).exists() and stamp.exists()
    return is_there and stamp.read_text(encoding="utf-8") == toolchain.key(library, _libllama())


def _stamp(library: EngineLibrary) -> Path:
    """Return the file with the key of the library in .venv."""
    return VENV / f".aimesh-{library.name}"


def _libllama() -> bytes:
    return (_engine_folder() / "libllama.so").read_bytes()


def _engine_folder() -> Path:
    return setup_steps.packages_folder() / "llama_cpp" / "lib"


def main() -> int:
    toolchain = Toolchain.find()
    if toolchain is None:
        if missing := missing_libraries.find(VENV):
            print(missing)
        return 0
    if "--background" in sys.argv[1:]:
        if find_stale(toolchain):
            setup_steps.begin("tools.engine_libraries")
            print(_WAITING, end="")
        return 0
    return setup_steps.exit_code(lambda: ensure(toolchain), BuildFailed)


if __name__ == "__main__":
    sys.exit(main())
