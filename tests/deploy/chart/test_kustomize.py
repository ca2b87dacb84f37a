"""deploy/kustomize: the base is what helm renders, and the overlays change it to valid objects."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests import capabilities
from tests.deploy.chart import rendering
from tests.deploy.chart.rendering import ROOT, Object

FOLDER = ROOT / "deploy" / "kustomize"


def built(overlay: str, folder: Path) -> list[Object]:
    capabilities.require("helm")
    capabilities.require("kubernetes_schemas")
    kubectl = capabilities.find_program("kubectl")
    if kubectl is None:
        pytest.skip("needs helm: not installed: kubectl")
    command = [kubectl, "kustomize", str(FOLDER / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    (folder / "x.yaml").write_text(done.stdout, encoding="utf-8")
    validate = [str(capabilities.find_program("kubernetes-validate")), "--strict", str(folder / "x.yaml")]
    checked = subprocess.run(validate, capture_output=True, text=True, check=False, timeout=120)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def test_the_base_is_what_helm_renders() -> None:
    done = rendering.helm(
        *("template", "aimesh", str(rendering.packaged()), "--namespace", "aimesh", "--values", str(FOLDER / "values.yaml")),
        *rendering.REGISTRY,
    )
    written = (FOLDER / "base" / "aimesh.yaml").read_text(encoding="utf-8")
    assert done.stdout == written, "deploy/kustomize/base is out of date. Run: make chart"


def test_the_base_has_no_hooks_and_makes_no_secrets() -> None:
    every = list(yaml.safe_load_all((FOLDER / "base" / "aimesh.yaml").read_text(encoding="utf-8")))
    assert not [each for each in every if "helm.sh/hook" in each["metadata"].get("annotations", {})]
    assert not {each["kind"] for each in every} & {"Secret", "Role", "ClusterRole"}


def test_dev_runs_one_of_everything(tmp_path: Path) -> None:
    every = built("dev", tmp_path)
    replicas = {each["metadata"]["name"]: each["spec"]["replicas"] for each in every if each["kind"] == "Deployment"}
    assert replicas == {"aimesh-auth": 1, "aimesh-metrics": 1, "aimesh-web": 1}
    assert {each["spec"]["minReplicas"] for each in every if each["kind"] == "HorizontalPodAutoscaler"} == {1}


@pytest.mark.nightly("containers")
def test_prod_uses_your_own_postgresql_and_an_ingress_with_tls(tmp_path: Path) -> None:
    every = built("prod", tmp_path)
    names = {(each["kind"], each["metadata"]["name"]) for each in every}
    assert ("StatefulSet", "aimesh-postgres") not in names
    assert "Job" not in {kind for kind, _ in names}
    [ingress] = [each for each in every if each["kind"] == "Ingress"]
    assert ingress["spec"]["tls"][0]["hosts"] == ["ai.example.org"]
    [auth] = [each for each in every if (each["kind"], each["metadata"]["name"]) == ("Deployment", "aimesh-auth")]
    urls = [each["value"] for each in auth["spec"]["template"]["spec"]["containers"][0]["env"] if each["name"] == "PUBLIC_NATS_URL"]
    assert urls == ["wss://ai.example.org/mesh"]
