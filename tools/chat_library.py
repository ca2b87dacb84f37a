"""Build libaimesh_chat (stack/chat_library.py) from the sdist that the engine's wheel is built from.

    python -m tools.chat_library [--background]

does nothing if the library in .venv is current. Else it compiles what is missing in the cache (36 files of llama.cpp, 2 minutes of
processor time, once) and our own file. With --background it returns at once, and models that are loaded later use the library. The cache
also keeps the templates of the sdist, for tests.
"""

import fcntl
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from stack import chat_library
from stack.chat_library import BINDING, BuildFailed, compiler
from tools import setup, setup_steps
from tools.setup_steps import VENV, SetupFailed

LIBRARY = VENV / chat_library.LIBRARY
#: The key of the library in .venv.
STAMP = VENV / ".aimesh-chat"
_WAITING = """Now llama.cpp's library of chat templates is being built in the background (2 minutes). Models that are loaded after it show
their thoughts apart and use tools in their own format: aicli models unload NAME, or make down and make up.
"""


def cache_folder() -> Path:
    """Return the folder of llama.cpp's part, named by everything that it is made of."""
    facts = "\n".join([*chat_library.FLAGS, *chat_library.SOURCES, *chat_library.FOLDERS, compiler()])
    name = f"{setup.engine_version()}-{platform.machine()}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
    return setup.cache_folder().parent / "chat" / name


def templates_folder() -> Path:
    """Return the folder of the templates in llama.cpp's source; it exists once the library was built."""
    return cache_folder() / "source" / "models" / "templates"


def key() -> str:
    own = hashlib.sha256(BINDING.read_bytes() + " ".join(chat_library.LINKER_FLAGS).encode()).hexdigest()[:12]
    return f"{cache_folder().name}-{own}"


def is_current() -> bool:
    return LIBRARY.exists() and STAMP.exists() and STAMP.read_text(encoding="utf-8") == key()


def ensure() -> None:
    """Build the library in .venv if it is not current. Raises SetupFailed and BuildFailed."""
    if is_current():
        return
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        source = folder / "source"
        if not source.is_dir():
            with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as place:
                _, fetched = fetch_engine_source(Path(place), chat_library.KEPT)
                fetched.rename(source)
        with setup_steps.progress("building libaimesh_chat, llama.cpp's library of chat templates"):
            objects = chat_library.compile_sources(source, folder)
            chat_library.link(BINDING, objects, source, setup.packages_folder() / "llama_cpp" / "lib", LIBRARY)
    STAMP.write_text(key(), encoding="utf-8")


def fetch_engine_source(place: Path, kept: tuple[str, ...] = ("",)) -> tuple[Path, Path]:
    """Fetch the engine's sdist. Return the programs of its build tools, and the folder of llama.cpp with the kept parts."""
    tools, download = place / "tools" / "bin", place / "sdist"
    setup_steps.run("preparing the source of llama.cpp", sys.executable, "-m", "venv", str(tools.parent))
    pip = (str(tools / "python"), "-m", "pip", "--disable-pip-version-check")
    setup_steps.run("installing its build tools", *pip, "install", "--require-hashes", "-r", str(setup.LOCKS / "engine-build.lock"))
    # pip asks the sdist for its metadata, which needs the build tools of the lock.
    fetch = (*pip, "download", "--no-build-isolation", "--no-deps", "--no-binary", setup.ENGINE, "--require-hashes", "-d", str(download))
    setup_steps.run(f"fetching the source of {setup.ENGINE} {setup.engine_version()}", *fetch, "-r", str(setup.only(setup.ENGINE, place)))
    (sdist,) = download.glob("*.tar.gz")
    return tools, chat_library.unpack(sdist, place, kept)


def _begin(*command: str) -> None:
    quiet = subprocess.DEVNULL
    subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)  # noqa: S603 - our own command


def run(module: str, is_built: Callable[[], bool], build: Callable[[], None], waiting: str) -> int:
    """Build a library, or begin to in the background."""
    if not sys.platform.startswith("linux") or shutil.which(compiler()) is None:
        # With a wheel of the engine, a machine may have no compiler. Then it does without the library.
        return 0
    if "--background" in sys.argv[1:]:
        if not is_built():
            _begin(sys.executable, "-m", module)
            print(waiting, end="")
        return 0
    try:
        build()
    except (SetupFailed, BuildFailed, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def main() -> int:
    return run("tools.chat_library", is_current, ensure, _WAITING)


if __name__ == "__main__":
    sys.exit(main())
