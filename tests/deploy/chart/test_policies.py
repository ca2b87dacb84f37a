"""Security rules: checkov's, and our own in policy.rego. Network policies allow what the services need and no more."""

import json
import subprocess
from pathlib import Path

import pytest

from tests import capabilities, tiers
from tests.deploy.chart import rendering
from tests.deploy.chart.rendering import CASES

#: Reviewed: why one of checkov's checks does not apply.
SKIPPED = {
    "CKV_K8S_15": "images have a version, so IfNotPresent gets the same image and works while the registry is down",
    "CKV_K8S_43": "digests are the operator's choice: images.* and image.tag accept them",
    "CKV_K8S_40": "999, 472 and 65534 are the users of the images of PostgreSQL, Valkey, Grafana and Prometheus",
    "CKV_K8S_8": "Jobs and init containers end, and the others have probes: policy.rego",
    "CKV_K8S_9": "Jobs and init containers end, and the others have probes: policy.rego",
    "CKV_K8S_35": "psql in the provision Job reads its password from PGPASSWORD only",
    "CKV_K8S_38": "Prometheus discovers pods, and init writes Secrets: both need a token",
    "CKV2_K8S_6": "checkov does not see the policies of other documents of the file: policy.rego does",
}
_REGO = """
import json, sys
from regopy import Interpreter
interpreter = Interpreter()
interpreter.add_module("chart", open(sys.argv[1]).read())
interpreter.set_input(json.load(sys.stdin))
print(json.dumps(interpreter.query("x = data.chart.deny").results[0].bindings["x"]))
"""


def denied(objects: list[rendering.Object]) -> list[str]:
    capabilities.require("rego")
    command = [str(capabilities.find_rego()), "-c", _REGO, str(Path(__file__).with_name("policy.rego"))]
    done = subprocess.run(command, input=json.dumps({"objects": objects}), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found: list[str] = [*json.loads(done.stdout)]
    return found


@pytest.mark.parametrize("case", tiers.by_day(CASES, "demo", "prod", group="containers"))
def test_our_rules_hold(case: str) -> None:
    assert denied(list(rendering.objects(case))) == []


def test_our_rules_find_what_they_are_for() -> None:
    pod = {
        "automountServiceAccountToken": True,
        "containers": [{"name": "c", "image": "x:latest", "env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s"}}}]}],
    }
    labels = {"app.kubernetes.io/component": "web"}
    spec = {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}
    found = denied(
        [
            {"kind": "Deployment", "metadata": {"name": "web", "namespace": "n"}, "spec": spec},
            {"kind": "ClusterRole", "metadata": {"name": "all"}},
            {"kind": "Secret", "metadata": {"name": "s"}},
            {"kind": "Role", "metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]},
        ]
    )
    for text in (
        *("can write to its root", "may run as root", "has no limits of memory", "has no version", "has no livenessProbe"),
        *(
            "has no PodDisruptionBudget",
            "not spread",
            "token of the API server",
            "whole cluster",
            "more than Prometheus",
            "contains the Secret",
        ),
        *("in its environment", "has no NetworkPolicy", "no default-deny"),
    ):
        assert [each for each in found if text in each], (text, found)


@pytest.mark.nightly("containers")
@pytest.mark.parametrize("case", CASES)
def test_checkov_finds_nothing(case: str, tmp_path: Path) -> None:
    capabilities.require("checkov")
    (tmp_path / "x.yaml").write_text(rendering.render(case), encoding="utf-8")
    command = [str(capabilities.find_program("checkov")), "--file", str(tmp_path / "x.yaml"), "--framework", "kubernetes"]
    command += ["--compact", "--quiet", "--output", "json", "--skip-download", "--skip-check", ",".join(SKIPPED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    assert [(each["check_id"], each["resource"]) for each in report["results"]["failed_checks"]] == []


def _allowed(case: str, component: str, *settings: str) -> set[tuple[str, int]]:
    """Return the components, namespaces and networks to which a component's policy allows connections."""
    name = component if component in ("default-deny",) else f"aimesh-{component}"
    found = set()
    for rule in rendering.find("NetworkPolicy", name, case, *settings)["spec"]["egress"] or ():
        for peer in rule["to"]:
            labels = peer.get("podSelector", {}).get("matchLabels", {})
            namespace = peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")
            to = labels.get("app.kubernetes.io/component") or peer.get("ipBlock", {}).get("cidr") or namespace
            found |= {(to, port["port"]) for port in rule["ports"]}
    return found


def test_services_reach_only_what_they_need() -> None:
    nats, postgres, valkey = {("nats", 4222), ("nats", 6222)}, {("postgres", 5432)}, {("valkey", 6379), ("valkey", 26379)}
    assert _allowed("", "auth") == nats | postgres | valkey
    assert _allowed("", "gateway") == nats | postgres | valkey
    assert _allowed("", "metrics") == nats | postgres
    assert _allowed("", "web") == nats | {("gateway", 3002), ("nats", 8080)}
    [rule] = rendering.find("NetworkPolicy", "aimesh-nats-websocket")["spec"]["ingress"]
    assert [peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in rule["from"]] == ["web"]
    assert _allowed("dev", "pool-inference") == nats
    assert _allowed("namespaces", "model-router") == nats | {("ai-models", 8080), ("ai-models", 80)}
    assert _allowed("external-stores", "web") == {("gateway", 3002), ("10.1.0.0/24", 4222)}
    assert ("10.1.1.4/32", 5432) in _allowed("external-stores", "gateway")
    # Its store of models is elsewhere.
    assert _allowed("", "gateway", "gateway.egress[0].cidr=10.9.0.0/16,gateway.egress[0].port=9000") - _allowed("", "gateway") == {
        ("10.9.0.0/16", 9000)
    }
