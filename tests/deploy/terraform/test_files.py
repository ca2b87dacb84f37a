"""The Terraform files parse, stay small, and name only what exists. No provider is needed, so nothing here runs `terraform validate`."""

import re
import subprocess
from pathlib import Path

import pytest

from tests import capabilities
from tests.deploy.terraform import hcl

ORDERED = ["cloud-run", "cloud-sql", "edge", "gke", "gpu-pool", "memorystore", "network", "security"]
FOLDERS = [*hcl.MODULES, *hcl.EXAMPLES]


def own_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def lines(paths: list[Path]) -> int:
    return sum(path.read_text(encoding="utf-8").count("\n") for path in paths)


def test_the_modules_and_examples_are_the_ordered_ones() -> None:
    assert [path.name for path in hcl.MODULES] == ORDERED
    assert [path.name for path in hcl.EXAMPLES] == ["demo", "tier-1", "tier-2", "tier-3", "tier-4"]


def test_they_stay_small() -> None:
    assert {path.name: lines(own_files(path)) for path in hcl.MODULES if lines(own_files(path)) > 120} == {}
    assert lines(own_files(hcl.FOLDER)) <= 1200


def test_versions_are_in_one_file() -> None:
    assert [path.parent for path in own_files(hcl.FOLDER) if "required_providers" in path.read_text(encoding="utf-8")] == [hcl.FOLDER]
    assert {(folder / "versions.tf").resolve() for folder in FOLDERS} == {hcl.FOLDER / "versions.tf"}
    assert re.search(r'version = "~> \d+\.\d+"', (hcl.FOLDER / "versions.tf").read_text(encoding="utf-8"))


@pytest.mark.parametrize("tier", [2, 3, 4])
def test_each_tier_has_all_of_the_tier_before(tier: int) -> None:
    """Links, so that resources keep their addresses when an operator moves up one tier with the same state."""
    before, after = ({path.resolve() for path in (hcl.FOLDER / f"examples/tier-{each}").glob("*.tf")} for each in (tier - 1, tier))
    assert {path.name for path in before - after} <= {"single-region.tf"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_each_reference_leads_to_something(folder: Path) -> None:
    configuration = hcl.load(folder)
    unknown = []
    for reference in configuration.references():
        kind, name, *rest = hcl.steps(reference)
        if kind == "local":
            known = name in configuration.locals
        elif kind == "module":
            call = configuration.blocks.get(f"module.{name}")
            outputs = {block.labels[0] for block in configuration.called(call).of("output")} if call else set()
            # Only a key of count or for_each may come in between.
            known = bool(call) and bool(outputs & set(rest[:2]))
        elif kind == "data":
            known = f"data.{name}.{rest[0]}" in configuration.blocks
        else:
            known = f"{kind}.{name}" in configuration.blocks
        if not known:
            unknown.append(reference)
    assert unknown == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_each_variable_and_local_is_used(folder: Path) -> None:
    configuration = hcl.load(folder)
    used = {tuple(hcl.steps(reference)[:2]) for reference in configuration.references()}
    validated = {name for block in configuration.of("variable") for name in block.labels}
    assert {("var", name) for name in validated} - used == set()
    # single-region.tf serves three tiers, and only some of them need each of these.
    shared = {"binary_authorization", "kms_keys"} if (folder / "single-region.tf").exists() else set()
    assert {name for name in configuration.locals if ("local", name) not in used} <= shared


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_each_call_passes_the_variables_of_the_module(folder: Path) -> None:
    configuration = hcl.load(folder)
    for call in configuration.of("module"):
        variables = {block.labels[0]: block.body for block in configuration.called(call).of("variable")}
        passed = call.body.keys() - hcl.META
        assert passed <= variables.keys(), call.address
        assert {name for name, body in variables.items() if "default" not in body} <= passed, call.address


@pytest.mark.parametrize("folder", hcl.MODULES, ids=lambda path: path.name)
def test_variables_of_modules_have_types_and_some_refuse_mistakes(folder: Path) -> None:
    variables = list(hcl.load(folder).of("variable"))
    assert all("type" in block.body for block in variables)
    assert any("validation" in block.body for block in variables)
    assert {path.name for path in own_files(folder) if re.search(r"^variable ", path.read_text(encoding="utf-8"), re.M)} == {"variables.tf"}


def test_no_key_is_created() -> None:
    """Pods, machines and Cloud Run get credentials from Google, and secrets get their values elsewhere."""
    kinds = {block.labels[0] for folder in FOLDERS for block in hcl.load(folder).of("resource")}
    assert not kinds & {"google_service_account_key", "google_secret_manager_secret_version", "google_sql_user", "google_storage_hmac_key"}


def test_terraform_formats_them_alike() -> None:
    capabilities.require("terraform")
    terraform = capabilities.find_program("terraform")
    assert terraform
    done = subprocess.run(
        [terraform, "fmt", "-check", "-diff", "-recursive", hcl.FOLDER], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
