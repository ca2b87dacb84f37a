"""Build or install the engine's rivals for this machine, in ~/.cache/aimesh/rivals.

    python -m bench.rivals

builds `llama-server` and `llama-batched-bench` (about 10 minutes on 2 cores, once), installs `llama_cpp.server`, and prints where they are.

Both programs come from the llama.cpp source in the sdist of llama-cpp-python that requirements/engine.lock names, so they use the same code
as the engine. Only the locked packages are downloaded.
"""

import hashlib
import os
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tools import setup

#: What `llama_cpp.server` needs in addition to the engine's wheel.
SERVER_LOCK = setup.LOCKS / "rivals.lock"
PROGRAMS = ("llama-server", "llama-batched-bench")
#: The wheel is a release build of shared libraries with llama.cpp's defaults: this machine's instructions (GGML_NATIVE) and OpenMP.
#: Its CMakeLists.txt sets nothing else on Linux, so nothing else is set here either. CMAKE_ARGS, which selects a GPU, applies to both:
#: scikit-build-core reads it, but CMake itself does not.
AS_THE_WHEEL = ("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON")
#: Without these, the build downloads a web page from npm or a model hub, and needs OpenSSL for downloads that we do not make.
NOTHING_FETCHED = ("-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_OPENSSL=OFF")
ONLY_WHAT_IS_ASKED = ("-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF")
#: The programs find the libraries beside them, wherever the folder is moved.
MOVABLE = ("-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON", "-DCMAKE_INSTALL_RPATH=$ORIGIN")


@dataclass(frozen=True, slots=True)
class Rivals:
    """llama.cpp's own programs."""

    server: Path
    batched_bench: Path


def folder() -> Path:
    """Return this machine's folder, named like its wheel by version, machine, processor and build flags."""
    return setup.cache_folder().parent / "rivals" / setup.build_key()


def ensure() -> Rivals:
    """Return llama.cpp's programs, from the cache or built now. Raises SetupFailed. The folder appears whole or not at all."""
    programs = folder() / "bin"
    if not programs.is_dir():
        with _workplace() as place:
            tools = _build_tools(place)
            built = _build(_source(place, tools), place, tools)
            # If another process was faster, use its build.
            if not programs.is_dir():
                built.rename(programs)
    return Rivals(*(programs / name for name in PROGRAMS))


def ensure_python_server() -> Path:
    """Return a Python that can run `-m llama_cpp.server`, with the same wheel as our engine. Raises SetupFailed."""
    if not SERVER_LOCK.exists():
        raise setup.SetupFailed(f"{SERVER_LOCK} is missing: it pins what llama_cpp.server needs")
    environment = folder() / "python"
    python = environment / "bin" / "python"
    stamp, digest = environment / "lock", hashlib.sha256(SERVER_LOCK.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != digest:
        folder().mkdir(parents=True, exist_ok=True)
        wheel = setup.ensure_engine_wheel()
        # Created in its final place, because its scripts contain the path of their Python.
        setup.run("making a virtual environment for llama_cpp.server", sys.executable, "-m", "venv", "--clear", str(environment))
        pip = (str(python), "-m", "pip", "--disable-pip-version-check", "install")
        setup.run("installing what llama_cpp.server needs", *pip, "--require-hashes", "-r", str(SERVER_LOCK))
        with tempfile.TemporaryDirectory() as temporary:
            setup.run("installing what llama-cpp-python needs", *pip, "--require-hashes", "-r", str(setup.others(Path(temporary))))
        setup.run("installing llama-cpp-python", *pip, "--no-deps", str(wheel))
        stamp.write_text(digest, encoding="utf-8")
    return python


def _workplace() -> tempfile.TemporaryDirectory[str]:
    folder().mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the rename stays within one file system.
    return tempfile.TemporaryDirectory(prefix=".building-", dir=folder())


def _build_tools(place: str) -> Path:
    """Install CMake and Ninja in the versions that build the wheel."""
    tools = Path(place) / "tools"
    setup.run("preparing the build of the rivals", sys.executable, "-m", "venv", str(tools))
    pip = (str(tools / "bin" / "python"), "-m", "pip", "--disable-pip-version-check")
    setup.run("installing its build tools", *pip, "install", "--require-hashes", "-r", str(setup.LOCKS / "engine-build.lock"))
    return tools / "bin"


def _source(place: str, tools: Path) -> Path:
    """Return llama.cpp's source, from the sdist that the lock pins by hash."""
    download = Path(place) / "sdist"
    download.mkdir()
    # pip asks the sdist for its metadata, which needs the build tools of the lock.
    pip = (str(tools / "python"), "-m", "pip", "--disable-pip-version-check", "download", "--no-build-isolation")
    lock = setup.only(setup.ENGINE, Path(place))
    what = f"fetching the source of {setup.ENGINE} {setup.engine_version()}"
    setup.run(what, *pip, "--no-deps", "--no-binary", setup.ENGINE, "--require-hashes", "-d", str(download), "-r", str(lock))
    (sdist,) = download.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(place, filter="data")
    (source,) = Path(place).glob("llama_cpp_python-*/vendor/llama.cpp")
    return source


def _build(source: Path, place: str, tools: Path) -> Path:
    target = Path(place) / "build"
    environment = {**setup.build_environment(), "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    options = (*AS_THE_WHEEL, *NOTHING_FETCHED, *ONLY_WHAT_IS_ASKED, *MOVABLE, *os.environ.get("CMAKE_ARGS", "").split())
    cmake = str(tools / "cmake")
    setup.run("configuring the rivals", cmake, "-S", str(source), "-B", str(target), "-G", "Ninja", *options, environment=environment)
    jobs = str(len(os.sched_getaffinity(0)))
    what = f"building {' and '.join(PROGRAMS)}: this happens once and takes about 10 minutes on 2 cores"
    setup.run(what, cmake, "--build", str(target), "--parallel", jobs, "--target", *PROGRAMS, environment=environment)
    return target / "bin"


def main() -> int:
    try:
        found = ensure()
        print(found.server)
        print(found.batched_bench)
        print(ensure_python_server(), "-m llama_cpp.server")
    except (setup.SetupFailed, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
