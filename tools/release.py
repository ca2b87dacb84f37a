"""Build a release: the wheels of aimesh, aimesh-hyperswarm and aimesh-server, the npm package of the JavaScript client, and the notes.

`.github/workflows/release.yml` runs this for a tag. To try it: `.venv/bin/python -m tools.release --tag v0.1.0 --into dist`.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from tools import locks, setup, setup_steps

PYTHON_PROJECTS = (*setup.PROJECTS, locks.SIDECAR)
JAVASCRIPT_CLIENT = setup_steps.ROOT / "sdk" / "javascript"
#: All wheels have this version.
VERSION_FILE = setup_steps.ROOT / "sdk" / "python" / "src" / "aimesh" / "version.py"
#: One of our distributions as a requirement of another.
PIN = re.compile(r'"aimesh[^"=]*==([^"]+)"')


def read_versions() -> dict[str, str]:
    """Return the version of each package, by the file that contains it."""
    client = re.search(r'^__version__ = "(.+)"$', VERSION_FILE.read_text(encoding="utf-8"), re.MULTILINE)
    pinning = [project / "pyproject.toml" for project in setup.PROJECTS]
    pins = {f"{path.relative_to(setup_steps.ROOT)}": PIN.search(path.read_text(encoding="utf-8")) for path in pinning}
    package = json.loads((JAVASCRIPT_CLIENT / "package.json").read_text(encoding="utf-8"))
    locked = json.loads((JAVASCRIPT_CLIENT / "package-lock.json").read_text(encoding="utf-8"))
    return {
        "sdk/python/src/aimesh/version.py": client[1] if client else "none",
        **{path: pin[1] if pin else "none" for path, pin in pins.items()},
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


def build(into: Path) -> None:
    """Build all packages into the folder. Raises SetupFailed."""
    for project in PYTHON_PROJECTS:
        command = (str(setup_steps.VENV / "bin" / "python"), "-m", "hatchling", "build", "--target", "wheel", "--directory", str(into))
        setup_steps.run(f"building the wheel of {project.name}", *command, folder=project)
    setup.npm("packing the JavaScript client", JAVASCRIPT_CLIENT, "pack", "--ignore-scripts", f"--pack-destination={into}")


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
