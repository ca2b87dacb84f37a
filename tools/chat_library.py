"""Build libaimesh_chat: llama.cpp's knowledge of chat templates, from the sdist that the engine's wheel is built from.

    python -m tools.chat_library [--background]

does nothing if the library in .venv is current. Else it compiles what is missing in the cache (36 files of llama.cpp, 2 minutes of
processor time, once) and our own file. With --background it returns at once, and models that are loaded later use the library. The cache
also keeps the templates of the sdist, for tests.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools import setup, setup_steps
from tools.setup_steps import ROOT, VENV, SetupFailed

BINDING = ROOT / "services" / "inference" / "chat" / "aimesh_chat.cpp"
#: Where services/inference/chat/library.py loads it from.
LIBRARY = VENV / "lib" / "libaimesh_chat.so"
#: The key of the library in .venv.
STAMP = VENV / ".aimesh-chat"
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
EXPORTS = "{ global: aimesh_chat_*; local: *; };\n"
NICE = ("nice", "-n", "5")
_WAITING = """Now llama.cpp's library of chat templates is being built in the background (2 minutes). Models that are loaded after it show
their thoughts apart and use tools in their own format: aicli models unload NAME, or make down and make up.
"""


def cache_folder() -> Path:
    """Return the folder of llama.cpp's part, named by everything that it is made of."""
    facts = "\n".join([*FLAGS, *SOURCES, *FOLDERS, compiler()])
    name = f"{setup.engine_version()}-{platform.machine()}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
    return setup.cache_folder().parent / "chat" / name


def templates_folder() -> Path:
    """Return the folder of the templates in llama.cpp's source; it exists once the library was built."""
    return cache_folder() / "source" / "models" / "templates"


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def key() -> str:
    own = hashlib.sha256(BINDING.read_bytes() + " ".join(LINKER_FLAGS).encode()).hexdigest()[:12]
    return f"{cache_folder().name}-{own}"


def is_current() -> bool:
    return LIBRARY.exists() and STAMP.exists() and STAMP.read_text(encoding="utf-8") == key()


def ensure() -> None:
    """Build the library in .venv if it is not current. Raises SetupFailed."""
    if is_current():
        return
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        source = folder / "source"
        if not source.is_dir():
            with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as place:
                _, fetched = fetch_engine_source(Path(place), KEPT)
                fetched.rename(source)
        common = source / "common"
        headers = [source / each for each in ("common", "vendor", "include", "ggml/include")]
        with setup_steps.progress("building libaimesh_chat, llama.cpp's library of chat templates"):
            wanted = [common / name for name in SOURCES] + sorted(path for each in FOLDERS for path in (common / each).glob("*.cpp"))
            objects = compile_all(wanted, common, folder, FLAGS, headers)
            own = folder / f"{key()}.o"
            _compile_one(BINDING, own, FLAGS, headers)
            link([*objects, own], folder, EXPORTS, LIBRARY)
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
    with tarfile.open(sdist) as archive:
        members = [member for member in archive if member.name.partition("/vendor/llama.cpp/")[2].startswith(kept)]
        archive.extractall(place, members, filter="data")
    (source,) = place.glob("llama_cpp_python-*/vendor/llama.cpp")
    return tools, source


def compile_all(files: Sequence[Path], base: Path, folder: Path, flags: Sequence[str], headers: Sequence[Path]) -> list[Path]:
    """Compile what has no object file in ``folder`` yet, one file per processor at a time."""
    objects = {path: folder / f"{path.relative_to(base).as_posix().replace('/', '_')}.o" for path in files}
    missing = [path for path in files if not objects[path].exists()]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        list(threads.map(lambda path: _compile_one(path, objects[path], flags, headers), missing))
    return list(objects.values())


def _compile_one(path: Path, target: Path, flags: Sequence[str], headers: Sequence[Path]) -> None:
    # An object file appears whole or not at all.
    new = target.with_suffix(".new")
    _run(*NICE, compiler(), *flags, *(f"-I{each}" for each in headers), "-c", str(path), "-o", str(new))
    new.replace(target)


def link(objects: Sequence[Path], folder: Path, exports: str, library: Path) -> None:
    """Link a library against those of the engine's wheel."""
    listed, new = folder / "exports", library.with_suffix(".new")
    listed.write_text(exports, encoding="utf-8")
    wheel = setup.packages_folder() / "llama_cpp" / "lib"
    words = (*map(str, objects), f"-L{wheel}", "-lllama", "-lggml", "-lggml-base", f"-Wl,--version-script={listed}")
    _run(*NICE, compiler(), *LINKER_FLAGS, "-o", str(new), *words)
    new.replace(library)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own commands
    if done.returncode != 0:
        raise SetupFailed(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")


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
    except (SetupFailed, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def main() -> int:
    return run("tools.chat_library", is_current, ensure, _WAITING)


if __name__ == "__main__":
    sys.exit(main())
