"""References in workflows, issue forms and hooks, and the workflows' permissions. Only GitHub can run the workflows."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aimesh.version import __version__

from tests import capabilities

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
SETUP = ROOT / ".github/actions/setup/action.yml"
#: Each file and the schema that check-jsonschema includes for it.
SCHEMAS = [
    *((path, "vendor.github-workflows") for path in WORKFLOWS),
    *((path, "custom.github-workflows-require-timeout") for path in WORKFLOWS),
    (SETUP, "vendor.github-actions"),
    (ROOT / ".github/dependabot.yml", "vendor.dependabot"),
    (ROOT / ".github/ISSUE_TEMPLATE/config.yml", "vendor.github-issue-config"),
    (ROOT / ".github/ISSUE_TEMPLATE/bug.yml", "vendor.github-issue-forms"),
    (ROOT / ".github/ISSUE_TEMPLATE/feature.yml", "vendor.github-issue-forms"),
]
#: A major version or a commit, never a branch.
PINNED = re.compile(r"actions/[a-z-]+@(v\d+|[0-9a-f]{40})")
PATH = re.compile(r"(?<![\w./$-])(?:tests|tools|cli|shared|services|sdk|requirements|docs|deploy|shared)(?:/[\w.-]+)+")


def read(path: Path) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def steps(path: Path) -> Iterator[dict[str, str]]:
    document = read(path)
    for job in document["jobs"].values() if "jobs" in document else [document["runs"]]:
        yield from job["steps"]


def commands() -> Iterator[str]:
    for path in (*WORKFLOWS, SETUP):
        yield from (step["run"] for step in steps(path) if "run" in step)
    for repository in read(ROOT / ".pre-commit-config.yaml")["repos"]:
        yield from (hook["entry"] for hook in repository["hooks"])


@pytest.mark.parametrize("schema", sorted({schema for _, schema in SCHEMAS}))
def test_files_have_the_form_that_github_expects(schema: str) -> None:
    paths = [str(path) for path, its_schema in SCHEMAS if its_schema == schema]
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_actionlint_finds_nothing() -> None:
    capabilities.require("actionlint")
    done = subprocess.run([capabilities.find_program("actionlint") or "", *WORKFLOWS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_image_is_built() -> None:
    shown = subprocess.run(["make", "-n", "images", "PUSH=1", "ARCH=-arm64"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (names,) = re.findall(r"for image in (.*);", shown)
    stages = re.findall(r"^FROM \S+ AS (\S+)", (ROOT / "deploy/docker/Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    targets = [name.removeprefix("aimesh-") for name in names.split()]
    assert targets == ["aimesh", "web", "worker", "worker-cuda", "dht", "backup"]
    assert set(targets) <= set(stages)
    assert f":{__version__}-arm64" in shown
    for wanted in ("--push", "--sbom=true", "--provenance=mode=max"):
        assert wanted in shown


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+(?: [a-z-]+)*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    known = {word for line in targets for word in line.split()}
    named = {match for command in commands() for match in re.findall(r"\bmake ([a-z-]+)", command)}
    assert {"test-system", "setup-dev"} <= named
    assert named - known == set()


def test_every_path_and_module_exists() -> None:
    named = {match for command in commands() for match in PATH.findall(command)}
    named |= {path for file in (*WORKFLOWS, SETUP) for path in PATH.findall(file.read_text(encoding="utf-8"))}
    named |= {f"{match.replace('.', '/')}.py" for command in commands() for match in re.findall(r"-m (tools(?:\.\w+)+)", command)}
    assert "tests/sdk" in named
    assert [path for path in sorted(named) if not list(ROOT.glob(path.replace("@biomejs/cli-", "@biomejs/cli-*")))] == []


def test_only_githubs_own_actions_in_fixed_versions_are_used() -> None:
    used = [step["uses"] for path in (*WORKFLOWS, SETUP) for step in steps(path) if "uses" in step]
    assert [name for name in used if name != "./.github/actions/setup" and not PINNED.fullmatch(name)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read(path: Path) -> None:
    document = read(path)
    assert document["permissions"] == {"contents": "read"}
    wider = {name: job["permissions"] for name, job in document["jobs"].items() if "permissions" in job}
    pushes = {"contents": "read", "packages": "write"}
    allowed = {"release": {"contents": "write"}, "images": pushes, "charts": pushes}
    assert wider == (allowed if path.name == "release.yml" else {})
    assert "secrets." not in path.read_text(encoding="utf-8")
    checkouts = [step for step in steps(path) if step.get("uses", "").startswith("actions/checkout")]
    assert [step for step in checkouts if step.get("with", {}).get("persist-credentials") is not False] == []
    # An expression in a script would run what a stranger puts into a branch name or a title.
    assert [step["run"] for step in steps(path) if "${{" in step.get("run", "")] == []


def test_the_shards_of_ci_are_all_of_them() -> None:
    job = read(ROOT / ".github/workflows/ci.yml")["jobs"]["test"]
    shards = job["strategy"]["matrix"]["shard"]
    assert shards == list(range(1, len(shards) + 1))
    assert job["env"]["PYTEST_ADDOPTS"] == f"-p tests.sharding --shard ${{{{ matrix.shard }}}}/{len(shards)}"


def test_dependabot_looks_at_every_npm_lock() -> None:
    (npm,) = (each for each in read(ROOT / ".github/dependabot.yml")["updates"] if each["package-ecosystem"] == "npm")
    listed = subprocess.run(["git", "ls-files", "*package-lock.json"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert sorted(npm["directories"]) == sorted("/" + str(Path(path).parent) for path in listed)
