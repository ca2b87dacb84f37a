"""Builds a release's wheels, as tools/release.py does, and installs them offline: dependencies are copied from this environment."""

import email
import importlib.metadata
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Collection, Iterable
from email.message import Message
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import setup, setup_steps

ROOT = setup_steps.ROOT


def build(folder: Path, projects: Iterable[Path] = setup.PROJECTS) -> dict[str, Path]:
    """Return each distribution's wheel by the distribution's name, with _ for -."""
    for project in projects:
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
        subprocess.run(command, cwd=project, check=True, timeout=300, capture_output=True)
    return {wheel.name.split("-")[0]: wheel for wheel in folder.glob("*.whl")}


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def install(folder: Path, *wheels: Path, extra: str = "", without: Collection[str] = ()) -> Path:
    """Make a virtual environment with the wheels and their requirements, except ``without``. Return its site-packages."""
    needs = [need for wheel in wheels for need in metadata(wheel).get_all("Requires-Dist") or []]
    site = make_environment(folder, closure(needs, extra) - set(without))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", *map(str, wheels)], check=True, timeout=300, capture_output=True)
    subprocess.run([str(folder / "bin/python"), "-m", "compileall", "-q", str(site)], check=True, timeout=300, capture_output=True)
    return site


def make_environment(folder: Path, names: Iterable[str]) -> Path:
    """Make a virtual environment with these distributions alone. Return its site-packages."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in names:
        _copy(importlib.metadata.distribution(name), site)
    return site


def size(site: Path) -> int:
    """Return the bytes of all files."""
    return sum(path.stat().st_size for path in site.rglob("*") if path.is_file())


def closure(needs: Iterable[str], extra: str = "") -> set[str]:
    """Return the names of these requirements, with those of one extra, and of all that they need."""
    found: set[str] = set()
    for requirement in map(Requirement, needs):
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
            continue
        found.add(name)
        found |= closure(importlib.metadata.requires(name) or ())
    return found


def _copy(distribution: importlib.metadata.Distribution, site: Path) -> None:
    for file in distribution.files or ():
        # Scripts are outside site-packages, and nothing needs them.
        if ".." not in file.parts and file.suffix != ".pyc":
            target = site / str(file)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), target)
