"""Print how large the core is, and how many files outside name what a feature declares.  python -m tools.house --base COMMIT

With --without, try what a person does who takes features away: delete their folders in this checkout, write what is generated, check, and
start a stack from it.  python -m tools.house --without webhooks
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from shared import access_table, config, features
from shared.api.method import Method, StreamMethod
from shared.telemetry.instrument import Instrument
from tools import generated, reference

ROOT = generated.ROOT
CORE = ("services", "shared", "cli", "stack")
SOURCE = (*CORE, "features", "tools", "sdk/python/src", "packages/pyhyperswarm/src")
SERVICES = ("auth", "gateway", "inference", "metrics", "web")
#: What decision 0026 has sizes of.
_PARTS = (CORE, *((f"services/{each}",) for each in SERVICES), ("features",), ("bench", "tools"), ("tests",))
#: Prose may be wrong after a removal; who deletes for good edits it.
PROSE = ("docs/", "tests/", "CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md", "bench/results/")
_START, _END = "<!-- sizes, by `make docs` -->", "<!-- end -->"
#: Tests of tests/test_docs.py that read prose.
_PROSE_TESTS = (
    "test_relative_links_lead_somewhere", "test_every_page_can_be_reached_from_the_readme", "test_aicli_commands_that_are_shown_exist",
    "test_variables_that_are_shown_exist", "test_paths_and_names_in_the_feature_list_exist", "test_metrics_that_are_named_exist",
    "test_methods_that_are_named_exist", "test_modules_that_are_shown_exist", "test_each_place_that_can_read_a_prompt_has_tests_that_exist",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.house", description="Print how large the core is.")
    parser.add_argument("--base", metavar="COMMIT", help="compare with a commit")
    parser.add_argument(
        "--without",
        metavar="NAME",
        nargs="+",
        help="delete features from this checkout, with those that need them, and check it; `all`: every one",
    )
    options = parser.parse_args()
    if options.without:
        return _try_without([*features.known()] if options.without == ["all"] else with_dependents(options.without))
    _print_figures(options.base)
    return 0


# --- figures ------------------------------------------------------------------------------------------------------------


def _print_figures(base: str | None) -> None:
    now = measure(ROOT)
    before = {} if base is None else _measure_commit(base)
    for name, value in now.items():
        change = f"  ({value - before[name]:+,})" if name in before else ""
        print(f"{name:<62}{value:>9,}{change}")
    for feature in features.known():
        found = files_that_name(feature)
        print(f"{f'central files that name what {feature} declares':<62}{len(found):>9}  {' '.join(found)}")


def measure(root: Path) -> dict[str, int]:
    service = root / "services" / "gateway" / "service.py"
    source, tests = sum(_lines(root, each) for each in SOURCE), _lines(root, "tests")
    return {
        "core: lines of Python in services, shared, cli, stack": sum(_lines(root, each) for each in CORE),
        "service.py of the gateway: lines": len(service.read_text(encoding="utf-8").splitlines()),
        "service.py of the gateway: imports": len(re.findall(r"^(?:from|import) ", service.read_text(encoding="utf-8"), re.MULTILINE)),
        "longest __init__ of a service": max(_longest_init(root / "services" / each / "service.py") for each in SERVICES),
        "source in all": source,
        "tests, in hundredths of the source": round(100 * tests / source),
        "features": len(list((root / "features").glob("*/feature.py"))),
    }


def files() -> dict[Path, str]:
    """Return the page of sizes, in thousands: so it seldom changes."""
    page = ROOT / "docs" / "decisions" / "0026-sizes.md"
    rows = ((", ".join(f"`{each}`" for each in part), f"{round(sum(_lines(ROOT, each) for each in part), -3):,}") for part in _PARTS)
    table = generated.table(("part", "lines of Python"), rows)
    return {page: generated.with_part(page.read_text(encoding="utf-8"), _START, f"\n{table}\n\n", _END)}


def _lines(root: Path, folder: str) -> int:
    paths = (path for path in (root / folder).rglob("*.py") if "node_modules" not in path.parts)
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def _longest_init(path: Path) -> int:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    found = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    return max((node.end_lineno or 0) - node.lineno + 1 for node in found)


def _measure_commit(commit: str) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder, "tree.tar")
        _git("archive", f"--output={packed}", commit)
        with tarfile.open(packed) as archive:
            archive.extractall(Path(folder, "tree"), filter="data")
        return measure(Path(folder, "tree"))


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)  # noqa: S603, S607 - our own words
    return done.stdout


def names_of(feature: str) -> Iterator[str]:
    """Yield what a feature declares, as others would write it."""
    yield from (f"features.{feature}", f"features/{feature}")
    declared = [*_vars(feature, "contract"), *_vars(feature, "instruments")]
    yield from (value.name for value in declared if isinstance(value, Method | StreamMethod | Instrument))
    core = {route.partition(" ")[2] for route in access_table.ROUTES.keys() - features.merged({}, "access", "ROUTES").keys()}
    kinds = features.parts("settings", dict, "SETTINGS").get(feature, {}).values()
    # The core reads some of them, too.
    of_core = {
        row.variable.name for kind in reference.settings_kinds().values() for row in config.settings_of(kind) if row.declared_by is kind
    }
    yield from (name for kind in kinds for setting in config.settings_of(kind) if (name := setting.variable.name) not in of_core)
    for module in _modules(feature, "access"):
        # The core may have routes at the same path.
        yield from {route.partition(" ")[2] for route in getattr(module, "ROUTES", ())} - core
        yield from getattr(module, "PAGES", ())
    yield from (command.place for command in features.known()[feature].commands)
    queries = (path.read_text(encoding="utf-8") for path in (features.FOLDER / feature).glob("*.sql"))
    yield from {f'"{name}"' for text in queries for name in re.findall(r"^-- name: (\w+)", text, re.MULTILINE)}


def files_that_name(feature: str) -> list[str]:
    """Return the files outside that name any of it, by hand and as code."""
    listed = [name for name in _git("ls-files").splitlines() if (ROOT / name).is_file()]
    made = {
        "deploy/proxy/Caddyfile",
        "deploy/proxy/haproxy.cfg",
        "deploy/proxy/nginx.conf",
        "compose.yaml",
        "deploy/swarm/stack.yaml",
        "deploy/helm/ai-inference/values.schema.json",
    }
    made |= {name for name in listed if re.search(r"feature-[\w-]+\.json$|features\.rules\.yml$", name)}
    # A feature that needs it is no part of the core.
    own = (*(f"features/{name}/" for name, each in features.known().items() if feature in {name, *each.needs}), *PROSE)
    words = re.compile("|".join(rf"(?<![\w./]){re.escape(name)}(?![\w(])" for name in names_of(feature)))
    names = (name for name in listed if not name.startswith(own) and name not in made and "/migrations/" not in name)
    return [name for name in names if words.search((ROOT / name).read_text(encoding="utf-8", errors="replace"))]


def _modules(feature: str, place: str) -> list[object]:
    return [import_module(f"features.{feature}.{place}")] if (features.FOLDER / feature / f"{place}.py").exists() else []


def _vars(feature: str, place: str) -> list[object]:
    return [value for module in _modules(feature, place) for value in vars(module).values()]


# --- a removal ----------------------------------------------------------------------------------------------------------


def with_dependents(names: list[str]) -> list[str]:
    """Return these features, and those that need them."""
    found = list(names)
    # Each comes after those that it needs.
    for name, feature in features.known().items():
        if name not in found and feature.needs.intersection(found):
            found.append(name)
    return found


def _try_without(names: list[str]) -> int:
    if _git("status", "--porcelain"):
        print("this checkout has changes, and --without deletes files: commit them, or use a fresh clone", file=sys.stderr)
        return 2
    for name in names:
        for folder in (features.FOLDER / name, ROOT / "tests" / "features" / name):
            shutil.rmtree(folder)
    steps = {
        "what is generated": "make docs",
        "the checks": "make check",
        "the pure cores": "make quick",
        "a stack with a first answer": "make test TESTS=tests/integration/test_first_requests.py",
    }
    environment = os.environ | {"PYTEST_ADDOPTS": f"-k 'not ({' or '.join(_PROSE_TESTS)})'"}
    failed = []
    for what, words in steps.items():
        if subprocess.run(words.split(), cwd=ROOT, check=False, timeout=1800, env=environment).returncode:  # noqa: S603 - our own targets
            failed.append(what)
    print(f"without {', '.join(names)}: " + (f"failed: {', '.join(failed)}" if failed else "all passes"))
    print("to have them again: git checkout . && make docs")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
