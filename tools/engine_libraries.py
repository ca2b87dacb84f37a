"""Build libaimesh_chat and libaimesh_images (stack/servers/engine_libraries.py) from the sdist that the engine's wheel is built from.

    python -m tools.engine_libraries [--background]

does nothing if both in .venv are current. Otherwise it compiles what is missing in the cache (100 files of llama.cpp, once, 4 minutes of
processor time) and our own file. With --background it returns at once, and models that are loaded later use them.
"""

import fcntl
import hashlib
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from services.inference import missing_libraries
from stack.servers import engine_libraries
from stack.servers.engine_libraries import FLAGS, LIBRARIES, LINKER_FLAGS, BuildFailed, EngineLibrary
from tools import setup_steps
from tools.engine import wheel
from tools.setup_steps import VENV

_WAITING = """Now two libraries of llama.cpp are being built in the background (4 minutes). Models that are loaded after it show their
thoughts apart, use tools in their own format and see images: aicli models unload NAME, or make down and make up.
"""


def cache_folder() -> Path:
    """Return the folder of the source and of what is compiled, named by everything that they are made of."""
    facts = "\n".join(
        [*FLAGS, *(word for each in LIBRARIES for word in (*each.flags, *each.sources, *each.kept)), engine_libraries.compiler()]
    )
    name = f"{wheel.engine_version()}-{platform.machine()}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
    return setup_steps.cache_folder().parent / "libraries" / name


def templates_folder() -> Path:
    """Return the folder of the templates in llama.cpp's source; it exists once the libraries were built."""
    return cache_folder() / "source" / "models" / "templates"


def is_current(library: EngineLibrary) -> bool:
    stamp = _stamp(library)
    return (VENV / library.file).exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == _key(library)


def ensure() -> None:
    """Build the libraries in .venv that are not current. Raises SetupFailed and BuildFailed."""
    if missing := [library for library in LIBRARIES if not is_current(library)]:
        build(missing, _engine_folder(), VENV)
        for library in missing:
            _stamp(library).write_text(_key(library), encoding="utf-8")


def build(libraries: Iterable[EngineLibrary], engine: Path, into: Path) -> None:
    """Build libraries for the engine in this folder. Raises SetupFailed and BuildFailed."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        source = folder / "source"
        if not source.is_dir():
            with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as place:
                engine_libraries.unpack(wheel.fetch_sdist(Path(place)), Path(place)).rename(source)
        for library in libraries:
            with setup_steps.progress(f"building {library.file.stem}, {library.purpose}"):
                objects = library.compile(source, folder / library.name)
                library.link(objects, source, engine, into / library.file)


def _stamp(library: EngineLibrary) -> Path:
    """Return the file with the key of the library in .venv."""
    return VENV / f".aimesh-{library.name}"


def _key(library: EngineLibrary) -> str:
    own = b"" if library.binding is None else library.binding.read_bytes()
    # A compiled engine's libraries have other names than prebuilt ones.
    engine = (_engine_folder() / "libllama.so").read_bytes()
    return f"{cache_folder().name}-{hashlib.sha256(own + engine + ' '.join(LINKER_FLAGS).encode()).hexdigest()[:12]}"


def _engine_folder() -> Path:
    return setup_steps.packages_folder() / "llama_cpp" / "lib"


def main() -> int:
    missing = [library for library in LIBRARIES if not is_current(library)]
    if not sys.platform.startswith("linux") or shutil.which(engine_libraries.compiler()) is None:
        if missing:
            print(missing_libraries.describe([library.file.stem for library in missing], can_compile=False, is_checkout=True))
        return 0
    if "--background" in sys.argv[1:]:
        if missing:
            setup_steps.begin("tools.engine_libraries")
            print(_WAITING, end="")
        return 0
    return setup_steps.exit_code(ensure, BuildFailed)


if __name__ == "__main__":
    sys.exit(main())
