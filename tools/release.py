"""Build a release: the wheels of aimesh-client, aimesh-hyperswarm and aimesh-server, their requirements, the JavaScript client, the notes,
and install.sh with its lists and with the packages that no public index has.

`.github/workflows/release.yml` runs this for a tag. To try it: `.venv/bin/python -m tools.release --tag v0.1.0 --into dist --base https://…`.
"""

import argparse
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from packaging.utils import canonicalize_name

from services.web import install_script
from services.web.install_script import PackageIndex
from shared.telemetry import version
from tools import locks, setup, setup_steps
from tools.engine.wheel import ENGINE_LIBRARIES
from tools.packages import role_packages
from tools.packages.role_packages import Wheel

#: In the wheels, so that a mesh knows the release that it runs. The images get one in release.yml.
RELEASE_FILE = setup_steps.ROOT / "sdk" / "python" / "src" / "aimesh" / version.RELEASE_FILE
#: Requirements of a release -> the projects whose wheels it installs. The last also gets the servers and tools of `make up`.
REQUIREMENTS = {
    "client": (setup.CLIENT,),
    "mesh": (setup.CLIENT, setup.HYPERSWARM),
    "server": setup.PROJECTS,
}


def read_versions() -> dict[str, str]:
    """Return the version of each package, by the file that contains it."""
    package = json.loads((role_packages.JAVASCRIPT / "package.json").read_text(encoding="utf-8"))
    locked = json.loads((role_packages.JAVASCRIPT / "package-lock.json").read_text(encoding="utf-8"))
    return {
        "sdk/python/src/aimesh/version.py": version.version(),
        "sdk/javascript/package.json": package["version"],
        "sdk/javascript/package-lock.json": locked["version"],
    }


def find_mistakes(tag: str, versions: Mapping[str, str], changelog: str) -> list[str]:
    """Return why this tag cannot be released, one sentence each. Pure."""
    wanted = tag.removeprefix("v")
    mistakes = [f"{path} says {each}, the tag {tag}" for path, each in versions.items() if tag != f"v{each}"]
    return mistakes if read_notes(wanted, changelog) else [*mistakes, f"CHANGELOG.md has nothing under [{wanted}]"]


def read_notes(wanted: str, changelog: str) -> str:
    """Return the changelog's section for this version; empty if there is none. Pure."""
    match = re.search(rf"^## \[{re.escape(wanted)}\].*\n((?:(?!## ).*(?:\n|\Z))*)", changelog, re.MULTILINE)
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
        wheels = [_wheel(folder, locks.read_project(each)) for each in projects]
        wanted = locks.read_runtime() if name == "server" else locks.read_dependencies(projects)
        (folder / f"requirements-{name}.txt").write_text(requirements(wheels, wanted, lock.read_text(encoding="utf-8")), encoding="utf-8")


def _wheel(folder: Path, project: Mapping[str, str]) -> Path:
    # Hyperswarm has a version of its own.
    return folder / f"{project['name'].replace('-', '_')}-{project.get('version') or version.version()}-py3-none-any.whl"


def build(into: Path, base: str, engine: Path | None) -> None:
    """Build all packages into the folder; the arguments are those of the command line. Raises SetupFailed."""
    own_engine = [] if engine is None else list(engine.glob("*.whl"))
    if engine is not None and ENGINE_LIBRARIES not in {Wheel.of(each).name for each in own_engine}:
        raise setup_steps.SetupFailed(f"{engine} has no wheel of {ENGINE_LIBRARIES}")
    try:
        RELEASE_FILE.write_text(f"{base}\n", encoding="utf-8")
        role_packages.build_ours(into, setup.PROJECTS)
    finally:
        # The checkout is no release.
        RELEASE_FILE.unlink(missing_ok=True)
    write_requirements(into)
    role_packages.pack_javascript(into)
    role_packages.build_nkeys(into)
    for machine in role_packages.MACHINES:
        role_packages.make_node(machine, into)
        for wheel in role_packages.engine_wheels(machine) if engine is None else role_packages.plug_ins(machine):
            shutil.copy(wheel, into)
    for each in own_engine:
        shutil.copy(each, into)
    pip = role_packages.fetch_pip(into)
    write_script(into, base, pip)


def write_script(folder: Path, base: str, pip: Path) -> None:
    """Write install.sh, and the list of each role, for the wheels of this folder. Raises SetupFailed if one is missing."""
    # A worker on macOS needs a checkout.
    wheels = [Wheel.of(path) for path in folder.glob("*.whl") if path != pip and "-macosx_" not in path.name]
    for name in role_packages.distributions("worker"):
        machines = {each.machine for each in wheels if each.name == canonicalize_name(name)}
        if machines not in ({None}, set(role_packages.MACHINES)):
            raise setup_steps.SetupFailed(f"{folder} has no wheels of {name} for {' and '.join(role_packages.MACHINES)}")
    sha256 = {pip.name: Wheel.of(pip).sha256, **role_packages.write_lists(folder, wheels, base)}
    index = PackageIndex(pip=pip.name, sha256=sha256, ready=())
    (folder / "install.sh").write_text(install_script.render(index, "", base=base), encoding="utf-8")


def release(tag: str, into: Path, base: str, engine: Path | None) -> None:
    """Build all packages and the notes. Raises SetupFailed, also if the tag cannot be released."""
    changelog = (setup_steps.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if mistakes := find_mistakes(tag, read_versions(), changelog):
        raise setup_steps.SetupFailed("\n".join(mistakes))
    into.mkdir(parents=True, exist_ok=True)
    build(into, base, engine)
    (into / "notes.md").write_text(read_notes(tag.removeprefix("v"), changelog) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tag", required=True, help="tag to release, such as v0.3.0")
    parser.add_argument("--into", required=True, type=Path, help="folder for the packages and notes.md")
    parser.add_argument("--base", required=True, help="address of the release's files, from which install.sh downloads")
    parser.add_argument("--engine", type=Path, help="folder of the wheels that tools.engine.released made; default: npm's libraries")
    arguments = parser.parse_args()
    return setup_steps.exit_code(lambda: release(arguments.tag, arguments.into.resolve(), arguments.base.rstrip("/"), arguments.engine))


if __name__ == "__main__":
    sys.exit(main())
