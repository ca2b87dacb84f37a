"""Terraform itself applies the examples, with a stand-in for Google's provider. Whether Google would accept the result is not tested."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import capabilities
from tests.deploy.terraform import hcl, provider_stand_in

NETWORKS = {"office": "203.0.113.0/24"}
TIER_1: dict[str, Any] = {"owner": "example", "release": "1.2.3", "iap_members": ["group:team@example.org"]}
TIER_2 = {**TIER_1, "authorized_networks": NETWORKS}
TIER_4 = {**TIER_2, "access_policy": "123"}


class Terraform:
    def __init__(self, folder: Path, reattach: str) -> None:
        program = capabilities.find_program("terraform")
        assert program
        self._program, self._folder = program, folder
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TF_REATTACH_PROVIDERS": reattach,
            "TF_CLI_CONFIG_FILE": os.devnull,
            "CHECKPOINT_DISABLE": "1",
        }

    def run(self, example: str, *arguments: str, ok: bool = True) -> str:
        environment = self._environment | {"TF_DATA_DIR": str(self._folder / example)}
        command = [self._program, f"-chdir={hcl.FOLDER / 'examples' / example}", *arguments, "-no-color"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done.stdout + done.stderr

    def init(self, example: str) -> None:
        self.run(example, "init", "-backend=false", "-input=false")

    def apply(self, example: str, variables: dict[str, Any]) -> tuple[int, int, int]:
        """Return how many resources were added, changed and destroyed."""
        self.init(example)
        output = self.run(
            example, "apply", "-auto-approve", "-input=false", f"-state={self.state_file}", *self._options(example, variables)
        )
        found = re.search(r"Resources: (\d+) added, (\d+) changed, (\d+) destroyed", output)
        assert found, output
        added, changed, destroyed = map(int, found.groups())
        return added, changed, destroyed

    def refuse(self, example: str, variables: dict[str, Any]) -> str:
        return self.run(example, "plan", "-input=false", *self._options(example, variables), ok=False)

    def _options(self, example: str, variables: dict[str, Any]) -> list[str]:
        path = self._folder / f"{example}.tfvars.json"
        path.write_text(json.dumps(variables), encoding="utf-8")
        return [f"-var-file={path}"]

    @property
    def state_file(self) -> Path:
        return self._folder / "state"

    def resources(self, module: str, kind: str) -> list[dict[str, Any]]:
        state = json.loads(self.state_file.read_text(encoding="utf-8"))
        chosen = (each for each in state["resources"] if each.get("module", "").startswith(module) and each["type"] == kind)
        return [instance["attributes"] for each in chosen for instance in each["instances"]]


@pytest.fixture
def terraform(tmp_path: Path) -> Iterator[Terraform]:
    capabilities.require("terraform")
    capabilities.require("hcl")
    text = "\n".join(path.read_text(encoding="utf-8") for path in hcl.FOLDER.rglob("*.tf"))
    with provider_stand_in.used(text).running(tmp_path / "socket") as reattach:
        yield Terraform(tmp_path, reattach)


@pytest.mark.nightly("long")
def test_going_up_the_tiers_destroys_nothing(terraform: Terraform) -> None:
    assert terraform.apply("tier-1", {**TIER_1, "serve": False})[1:] == (0, 0)
    # Two services, each with its permission for callers.
    assert terraform.apply("tier-1", TIER_1) == (4, 0, 0)
    assert_cloud_run_joins_the_mesh_machine(terraform)
    assert terraform.apply("tier-2", TIER_2)[1:] == (0, 0)
    assert terraform.apply("tier-3", TIER_2) == (1, 0, 0)
    added, changed, destroyed = terraform.apply("tier-4", TIER_4)
    # Google does destroy what gets another encryption key; docs/howto/gcp.md says so.
    assert (added > 30, changed > 10, destroyed) == (True, True, 0)
    # The standby's machine starts, and the active one stops.
    assert terraform.apply("tier-4", {**TIER_4, "active_region": "us-east1"})[::2] == (0, 0)
    machines = {each["zone"]: each["desired_status"] for each in terraform.resources("", "google_compute_instance")}
    assert machines == {"us-central1-b": "TERMINATED", "us-east1-b": "RUNNING"}


def assert_cloud_run_joins_the_mesh_machine(terraform: Terraform) -> None:
    (machine,) = terraform.resources("", "google_compute_address")
    (backend,) = terraform.resources('module.backend["us-central1"]', "google_cloud_run_service")
    (frontend,) = terraform.resources('module.frontend["us-central1"]', "google_cloud_run_service")
    container = frontend["template"][0]["spec"][0]["containers"][0]
    variables = {each["name"]: each["value"] for each in container["env"] if each["value"] is not None}
    assert variables["NATS_URL"] == f"tls://{machine['address']}:4222"
    assert variables["GATEWAY_URL"] == backend["status"]["value"][0]["url"]
    assert backend["template"][0]["spec"][0]["volumes"][0]["nfs"] == [
        {"path": "/srv/journal", "read_only": None, "server": machine["address"]}
    ]
    notes = frontend["template"][0]["metadata"][0]["annotations"]
    assert (notes["run.googleapis.com/scaling-cpu-target"], notes["autoscaling.knative.dev/maxScale"]) == ("0.8", "10")


def test_the_demo_and_autopilot(terraform: Terraform) -> None:
    demo = {"project": "demo", "authorized_networks": NETWORKS}
    assert terraform.apply("demo", demo)[1:] == (0, 0)
    assert terraform.apply("demo", demo) == (0, 0, 0)
    assert len(terraform.resources("", "google_container_node_pool")) == 2
    terraform.apply("demo", {**demo, "autopilot": True})
    assert terraform.resources("", "google_container_node_pool") == []
    (cluster,) = terraform.resources("", "google_container_cluster")
    assert (cluster["enable_autopilot"], cluster["remove_default_node_pool"], cluster["workload_identity_config"]) == (True, None, [])


def test_mistakes_are_refused(terraform: Terraform) -> None:
    terraform.init("tier-2")
    wrong = {**TIER_2, "authorized_networks": {"all": "0.0.0.0/0"}, "release": "latest", "hosts": {"web": "a.org", "api": "a.org"}}
    output = " ".join(terraform.refuse("tier-2", wrong).split())
    for sentence in ("and not the whole internet", "not latest", "two different host names"):
        assert sentence in output
