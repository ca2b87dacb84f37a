"""Build a release: the wheels of aimesh-client, aimesh-hyperswarm and aimesh-server, their requirements, the JavaScript client, the notes.

`.github/workflows/release.yml` runs this for a tag. To try it: `.venv/bin/python -m tools.release --tag v0.1.0 --into dist`.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from shared.telemetry.version import version
from tools import locks, setup, setup_steps
from tools.packages import role_packages

PYTHON_PROJECTS = (*setup.PROJECTS, locks.SIDECAR)
#: Requirements of a release -> the projects whose wheels it installs. The last also gets the servers and tools of `make up`.
REQUIREMENTS = {
    "client": (setup.PROJECTS[1],),
    "mesh": (setup.PROJECTS[1], locks.SIDECAR),
    "server": PYTHON_PROJECTS,
}


def read_versions() -> dict[str, str]:
    """Return the version of each package, by the file that contains it."""
    package = json.loads((role_packages.JAVASCRIPT / "package.json").read_text(encoding="utf-8"))
    locked = json.loads((role_packages.JAVASCRIPT / "package-lock.json").read_text(encoding="utf-8"))
    return {
        "sdk/python/src/aimesh/version.py": version(),
        "sdk/javascript/package.json": package["version"],
        "sdk/javascript/package-lock.json": locked["version"],
    }


def find_mistakes(tag: str, versions: Mapping[str, str], changelog: str) -> list[str]:
    """Return why this tag cannot be released, one sentence each. Pure."""
    version = tag.removeprefix("v")
    mistakes = [f"{path} says {each}, the tag {tag}" for path, each in versions.items() if tag != f"v{each}"]
    return mistakes if read_notes(version, changelog) else [*mistakes, f"CHANGELOG.md has nothing under [{version}]"]


def read_notes(version: str, changelog: str) -> str:
    """Return the changelog's section for this version; empty if there is none. Pure."""
    match = re.search(rf"^## \[{re.escape(version)}\].*\n((?:(?!## ).*(?:\n|\Z))*)", changelog, re.MULTILINE)
    return match[1].strip() if match else ""


def requirements(wheels: Iterable[Path], wanted: Iterable[str], lock: str) -> str:
    """Return requirements for pip: our wheels as files of the same folder, and of the lock what these names need.

    Every line has a hash, so pip accepts nothing else. Our wheels don't require each other: metadata has no hashes, and anyone may own our
    names on a public index.
    """
    ours = [f"./{wheel.name} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n" for wheel in wheels]
    return "".join([*ours, *(pin.text for pin in role_packages.needed(list(locks.read_pins(lock)), wanted))])


def write_requirements(folder: Path) -> None:
    """Write requirements-NAME.txt beside the wheels."""
    lock = setup_steps.LOCKS / "runtime.lock"
    for name, projects in REQUIREMENTS.items():
        wheels = [folder / f"{locks.read_project(each)['name'].replace('-', '_')}-{version()}-py3-none-any.whl" for each in projects]
        wanted = locks.read_runtime() if name == "server" else locks.read_dependencies(projects)
        (folder / f"requirements-{name}.txt").write_text(requirements(wheels, wanted, lock.read_text(encoding="utf-8")), encoding="utf-8")


def build(into: Path) -> None:
    """Build all packages into the folder. Raises SetupFailed."""
    role_packages.build_ours(into, PYTHON_PROJECTS)
    write_requirements(into)
    role_packages.pack_javascript(into)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tag", required=True, help="tag to release, such as v0.2.0")
    parser.add_argument("--into", required=True, type=Path, help="folder for the packages and notes.md")
    arguments = parser.parse_args()
    changelog = (setup_steps.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if mistakes := find_mistakes(arguments.tag, read_versions(), changelog):
        sys.stderr.writelines(f"{mistake}\n" for mistake in mistakes)
        return 1
    into = arguments.into.resolve()
    into.mkdir(parents=True, exist_ok=True)
    try:
        build(into)
    except (setup_steps.SetupFailed, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    (into / "notes.md").write_text(read_notes(arguments.tag.removeprefix("v"), changelog) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
