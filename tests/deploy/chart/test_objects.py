"""The chart's objects: valid, with the names and numbers of the specification."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from services.inference.models import models_file
from services.inference.models.catalog import Defaults
from stack.servers import nats_server
from tests import capabilities, tiers
from tests.deploy import test_versions
from tests.deploy.chart import rendering
from tests.deploy.chart.rendering import CASES, CHART, ROOT

#: The oldest and newest Kubernetes that the README names.
VERSIONS = ("1.29", "1.37")
MAX_LINES = {"values.yaml": 220, "templates": 1150, "all": 1405}
#: Fields of CloudNativePG's Cluster that the chart uses, from its API reference (v1); no package has the schema.
CLUSTER_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["instances", "storage"],
    "properties": {
        "instances": {"type": "integer", "minimum": 1},
        "imageName": {"type": "string"},
        "enableSuperuserAccess": {"type": "boolean"},
        "storage": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"size": {"type": "string", "pattern": "^[0-9]+[KMGT]i$"}, "storageClass": {"type": "string"}},
        },
        "resources": {"type": "object", "additionalProperties": False, "properties": {"requests": {}, "limits": {}}},
        "inheritedMetadata": {"type": "object", "additionalProperties": False, "properties": {"labels": {}, "annotations": {}}},
        "postgresql": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "parameters": {"type": "object", "additionalProperties": {"type": "string"}},
                "pg_hba": {"type": "array", "items": {"type": "string"}},
            },
        },
    },
}


def test_there_is_a_values_file_for_each_way_to_run_it() -> None:
    assert set(CASES) == {"dev", "prod", "namespaces", "external-stores", "cnpg", "gpu", "vllm", "keda", "demo"}


@pytest.mark.parametrize("case", CASES)
def test_helm_finds_nothing_to_complain_about(case: str) -> None:
    done = rendering.helm("lint", "--strict", str(CHART), "--values", str(CHART / "ci" / f"{case}.yaml"))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("case", tiers.by_day(CASES, "prod", group="containers"))
def test_every_object_is_valid(case: str, tmp_path: Path) -> None:
    capabilities.require("kubernetes_schemas")
    (tmp_path / "x.yaml").write_text(rendering.render(case), encoding="utf-8")
    program = str(capabilities.find_program("kubernetes-validate"))
    for version in VERSIONS:
        command = [program, "--strict", "--kubernetes-version", version, str(tmp_path / "x.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        without = set(re.findall(r"find schema for kind (\w+)", done.stdout + done.stderr))
        assert without <= {"Cluster", *(kind for kinds in KINDS.values() for kind in kinds)}


#: npm package -> folder -> kinds.
KINDS = {
    "keda/keda.sh/v1alpha1": ("ScaledObject", "TriggerAuthentication"),
    "cert-manager/cert-manager.io/v1": ("Certificate", "Issuer"),
    "prometheus-operator/monitoring.coreos.com/v1": ("ServiceMonitor", "PrometheusRule"),
    "gateway-api/gateway.networking.k8s.io/v1": ("Gateway", "HTTPRoute"),
    "external-secrets/external-secrets.io/v1": ("ExternalSecret",),
    "gke/networking.gke.io/v1": ("GCPBackendPolicy", "HealthCheckPolicy"),
}
_CHECK = """
const [packages, kinds] = [process.argv[1], JSON.parse(process.argv[2])];
const objects = JSON.parse(require("fs").readFileSync(0, "utf8"));
let seen = 0;
for (const [folder, names] of Object.entries(kinds)) for (const name of names) {
  const Kind = require(`${packages}/${folder}/${name}`)[name];
  for (const each of objects.filter((one) => one.kind === name)) {
    seen += 1;
    try { new Kind(each).validate() } catch (error) { console.log(name, each.metadata.name, error.message) }
  }
}
console.error(seen);
"""


def test_every_custom_object_is_valid() -> None:
    capabilities.require("kubernetes_schemas")
    keda = capabilities.find_package("@kubernetes-models/keda")
    assert keda is not None
    every = [each for case in CASES for each in rendering.objects(case)]
    kinds = {kind for kinds in KINDS.values() for kind in kinds}
    assert kinds <= {each["kind"] for each in every}, "a kind is in no values file"
    command = [str(capabilities.find_program("node")), "-e", _CHECK, str(keda.parent), json.dumps(KINDS)]
    text = json.dumps([each for each in every if each["kind"] in kinds])
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    assert int(done.stderr) >= len(kinds)


def test_the_cluster_of_cloudnativepg_is_valid() -> None:
    import jsonschema

    for case in ("cnpg", "prod"):
        cluster = rendering.find("Cluster", "aimesh-postgres", case)
        assert cluster["apiVersion"] == "postgresql.cnpg.io/v1"
        jsonschema.validate(cluster["spec"], CLUSTER_SCHEMA)
        assert cluster["spec"]["instances"] == 3
    command = rendering.find("Job", "aimesh-init", "cnpg")["spec"]["template"]["spec"]["containers"][0]["command"]
    urls = {word.partition("@")[2] for word in command if word.startswith("postgresql:")}
    assert urls == {f"aimesh-postgres-{kind}.aimesh:5432/aimesh" for kind in ("rw", "ro")}
    gateway = rendering.find("StatefulSet", "aimesh-gateway", "cnpg")["spec"]["template"]["spec"]["containers"][0]
    assert rendering.environment(gateway)["DATABASE_READ_URL_FILE"] == "/run/aimesh/database_read_url"


def test_it_has_the_ordered_names_and_numbers() -> None:
    find = rendering.find
    assert [find("Deployment", f"aimesh-{name}")["spec"]["replicas"] for name in ("auth", "metrics", "web")] == [2, 2, 2]
    gateway = find("StatefulSet", "aimesh-gateway")["spec"]
    assert gateway["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] == "1Gi"
    assert gateway["template"]["spec"]["terminationGracePeriodSeconds"] == 320
    assert "replicas" not in gateway
    scaler = find("HorizontalPodAutoscaler", "aimesh-gateway")["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, 20)
    assert scaler["metrics"][0]["resource"]["target"]["averageUtilization"] == 60
    assert find("StatefulSet", "aimesh-nats")["spec"]["replicas"] == 3
    assert 'lame_duck_duration: "30s"' in find("ConfigMap", "aimesh-nats")["data"]["nats.conf"]
    assert find("StatefulSet", "aimesh-valkey")["spec"]["replicas"] == 1
    assert find("StatefulSet", "aimesh-valkey", "prod")["spec"]["replicas"] == 3
    assert find("StatefulSet", "aimesh-postgres")["spec"]["replicas"] == 1


def test_it_has_the_ordered_pools() -> None:
    find = rendering.find
    gpu = find("HorizontalPodAutoscaler", "inference", "gpu")["spec"]
    assert (gpu["minReplicas"], gpu["maxReplicas"]) == (2, 10)
    assert [each["external"]["target"]["value"] for each in gpu["metrics"]] == ["70", "5"]
    rules = yaml.safe_load(find("ConfigMap", "aimesh-prometheus-adapter", "gpu")["data"]["config.yaml"])["externalRules"]
    assert {each["name"]["as"] for each in rules} == {each["external"]["metric"]["name"] for each in gpu["metrics"]}
    assert "ai_platform_gpu_usage_ratio" in rules[1]["metricsQuery"] + rules[0]["metricsQuery"]
    llm = find("HorizontalPodAutoscaler", "llm-hpa", "prod")["spec"]
    assert (llm["scaleTargetRef"]["name"], llm["minReplicas"], llm["maxReplicas"]) == ("llm-inference", 1, 5)
    assert llm["metrics"][0]["resource"]["target"]["averageUtilization"] == 70
    mistral = find("StatefulSet", "llm-inference", "prod")["spec"]["template"]["spec"]["initContainers"][0]
    assert mistral["args"][0] == "mistralai/Mistral-7B-Instruct-v0.2"
    assert (mistral["resources"]["requests"]["cpu"], mistral["resources"]["requests"]["memory"]) == ("4", "16Gi")
    vllm = find("StatefulSet", "vllm-inference", "vllm")["spec"]
    assert vllm["replicas"] == 3
    [worker], [engine] = vllm["template"]["spec"]["containers"], vllm["template"]["spec"]["initContainers"]
    assert engine["restartPolicy"] == "Always", "it stops after the worker"
    assert engine["args"][0] == "meta-llama/Llama-2-7b-hf"
    assert (engine["resources"]["requests"]["memory"], engine["resources"]["limits"]["memory"]) == ("16Gi", "32Gi")
    assert engine["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in worker["resources"]["limits"]
    assert {"llm-gptq-service", "embedding-service"} <= {each["metadata"]["name"] for each in rendering.objects("vllm")}
    demo = find("ScaledObject", "inference", "demo")["spec"]
    assert (demo["minReplicaCount"], demo["maxReplicaCount"]) == (1, 5)
    assert (
        rendering.environment(find("StatefulSet", "inference", "demo")["spec"]["template"]["spec"]["initContainers"][0])["MODEL"]
        == "gemma3:4b"
    )
    [wanted] = find("ScaledObject", "inference", "keda")["spec"]["triggers"]
    assert wanted["metadata"] == {
        "url": "http://aimesh-metrics.aimesh:3004/autoscale/v1/inference",
        "valueLocation": "wanted",
        "targetValue": "1",
        "activationTargetValue": "0",
        "authMode": "bearer",
    }


def test_namespaces_are_those_of_the_document() -> None:
    places = {each["metadata"]["name"]: each["metadata"]["namespace"] for _, each in _workloads("namespaces")}
    assert {places[f"aimesh-{name}"] for name in ("auth", "gateway", "web")} | {places["model-router"]} == {"ai-gateway"}
    assert places["inference"] == "ai-models"
    assert {places[f"aimesh-{name}"] for name in ("metrics", "prometheus", "grafana")} == {"ai-observability"}
    assert {places[f"aimesh-{name}"] for name in ("nats", "valkey", "postgres")} == {"ai-infra"}
    registry = rendering.find("ConfigMap", "model-registry", "namespaces")
    assert registry["metadata"]["namespace"] == "ai-gateway"
    reading = models_file.read(registry["data"]["models.yaml"], source="models.yaml", folder=Path("/"), found={}, defaults=Defaults())
    assert not reading.mistakes
    assert [(each.service, each.port, each.token_file) for each in reading.elsewhere] == [
        ("llm-gptq-service.ai-models", 8080, Path("/run/aimesh/token-llama-gptq")),
        ("embedding-service.ai-models", None, None),
    ]


def _workloads(case: str) -> list[tuple[str, rendering.Object]]:
    return [(each["kind"], each) for each in rendering.objects(case) if each["kind"] in ("Deployment", "StatefulSet")]


def test_model_router_restarts_when_its_registry_changes() -> None:
    annotations = [
        rendering.find("Deployment", "model-router", "namespaces", *more)["spec"]["template"]["metadata"]["annotations"]
        for more in ((), ("modelRouter.models[0].port=81",))
    ]
    assert annotations[0] != annotations[1]


def test_nats_is_configured_as_by_stack_init() -> None:
    text = rendering.find("ConfigMap", "aimesh-nats")["data"]["nats.conf"]
    for line in nats_server.render_server(4222, "callout").splitlines():
        assert line.startswith(("#", "listen")) or line in text, line


def test_rules_and_dashboards_are_those_of_the_checkout() -> None:
    for path in sorted((ROOT / "deploy/prometheus/rules").glob("*.yml")):
        rule = rendering.find("PrometheusRule", f"aimesh-{path.name.removesuffix('.rules.yml')}", "prod")
        assert rule["spec"] == yaml.safe_load(path.read_text(encoding="utf-8"))
        assert rule["metadata"]["labels"]["release"] == "prometheus"
    for path in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json")):
        board = rendering.find("ConfigMap", f"aimesh-{path.stem.replace('aimesh-', 'dashboard-')}", "prod")
        assert board["data"] == {path.name: path.read_text(encoding="utf-8")}


def test_images_and_version_are_those_of_the_checkout() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert set(values["images"].values()) <= test_versions.known()
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["version"] == chart["appVersion"] == test_versions.our_version()


def test_it_stays_readable() -> None:
    lines = {
        str(path.relative_to(CHART)): len(path.read_text(encoding="utf-8").splitlines())
        for path in (CHART / "values.yaml", *(CHART / "templates").iterdir(), *(CHART / "files").glob("*.*"))
        if not path.is_symlink()
    }
    assert lines["values.yaml"] <= MAX_LINES["values.yaml"]
    assert sum(count for name, count in lines.items() if name.startswith("templates")) <= MAX_LINES["templates"]
    assert sum(lines.values()) <= MAX_LINES["all"]


def test_every_value_has_a_comment() -> None:
    from tools import chart

    assert [path for path, _, text in chart.rows() if not text] == []


def test_the_chart_of_a_release_names_the_images_that_the_release_pushes(tmp_path: Path) -> None:
    capabilities.require("helm")
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs["images"]["env"]["AIMESH_REGISTRY"] == jobs["charts"]["env"]["AIMESH_REGISTRY"] == "ghcr.io/${{ github.repository_owner }}"
    for name in ("Makefile", "deploy", "sdk/python/src/aimesh/version.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, tmp_path / name)
    programs = f"{Path(str(capabilities.find_program('helm'))).parent}:{os.environ['PATH']}"
    command = ["make", "chart", "AIMESH_REGISTRY=ghcr.io/OWNER"]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "PATH": programs}, check=True, capture_output=True, timeout=60)
    # Nothing else becomes a file of the release.
    [packaged] = (tmp_path / "build").iterdir()
    done = rendering.helm("template", "x", str(packaged), "--values", str(CHART / "ci/prod.yaml"), "--set", "pools.x.gpus=1")
    named = {image for document in yaml.safe_load_all(done.stdout) for image in test_versions.images(document)}
    ours = {image for image in named if "aimesh" in image}
    assert {f"ghcr.io/OWNER/{name}:{test_versions.our_version()}" for name in test_versions.pushed() - {"aimesh-dht"}} == ours
    assert (tmp_path / "deploy/kustomize/base/aimesh.yaml").read_text(encoding="utf-8").count("ghcr.io/OWNER/") > 1


def test_without_pools_the_notes_name_an_example() -> None:
    assert not [each for each, _ in rendering.pods() if "aimesh.dev/pool" in each["spec"]["template"]["metadata"]["labels"]]
    notes = [
        rendering.helm("install", "x", str(CHART), "--dry-run=client", *rendering.REGISTRY, *more).stdout.partition("NOTES:")[2]
        for more in ((), ("--set", "pools.l4.gpus=1"))
    ]
    assert ['pools: {l4: {gpus: 1, model: "hf:' in each for each in notes] == [True, False]


def test_volumes_of_models_are_deleted_with_their_pods_or_shared() -> None:
    for each in rendering.objects("gpu"):
        if each["kind"] == "StatefulSet":
            is_pool = each["metadata"]["name"] == "inference"
            policy = {"whenScaled": "Delete" if is_pool else "Retain", "whenDeleted": "Retain"}
            assert each["spec"]["persistentVolumeClaimRetentionPolicy"] == policy, each["metadata"]["name"]

    def mounts(pool: str, case: str) -> dict[str, dict[str, str]]:
        """Return where each container has its volumes."""
        pod = rendering.find("StatefulSet", pool, case, f"pools.{pool}.modelsClaim=shared")["spec"]["template"]["spec"]
        [claim] = [each["persistentVolumeClaim"] for each in pod["volumes"] if each["name"] == "models"]
        assert claim == {"claimName": "shared"}
        return {each["name"]: {mount["name"]: mount["mountPath"] for mount in each["volumeMounts"]} for each in rendering.containers(pod)}

    assert mounts("inference", "gpu")["pool-inference"]["models"] == "/var/lib/aimesh/models"
    of_vllm = mounts("embedding-service", "vllm")
    assert of_vllm["vllm"] | {"models": "/var/lib/aimesh/huggingface", "shm": "/dev/shm"} == of_vllm["vllm"]
    assert "models" not in of_vllm["pool-embedding-service"]


def test_metrics_knows_a_pool_by_the_names_of_its_models() -> None:
    pools = yaml.safe_load(rendering.find("ConfigMap", "aimesh-pools", "keda")["data"]["pools.yaml"])["pools"]
    assert {each["name"]: each["models"] for each in pools} == {
        "inference": ["Qwen3-8B-Q4_K_M"],
        "vllm-inference": ["meta-llama/Llama-2-7b-hf"],
    }


def test_machines_outside_join_by_the_entry() -> None:
    def urls(case: str, *settings: str) -> str:
        [container] = rendering.find("Deployment", "aimesh-auth", case, *settings)["spec"]["template"]["spec"]["containers"]
        return rendering.environment(container)["PUBLIC_NATS_URL"]

    assert urls("dev") == "wss://aimesh.localhost/mesh"
    assert urls("prod") == "wss://api.example.org/mesh"
    for without in ("entry.allowPlainHttp=true", "entry.webHost="):
        assert urls("dev", without, "entry.kind=none") == "nats://aimesh-nats-0.aimesh-nats.aimesh:4222"
    assert urls("external-stores") == "tls://nats-1.example.org:4222,tls://nats-2.example.org:4222"
    for case in ("dev", "prod"):
        for rule in rendering.find("Ingress", "aimesh-entry", case)["spec"]["rules"]:
            paths = {each["path"]: each["backend"]["service"]["name"] for each in rule["http"]["paths"]}
            assert paths.get("/mesh") == ("aimesh-web" if "/v1" in paths else None), rule["host"]


def test_machines_outside_pass_google_without_its_login_for_a_day() -> None:
    policy = rendering.find("GCPBackendPolicy", "aimesh-mesh", "external-stores")["spec"]["default"]
    assert (policy["timeoutSec"], "iap" in policy) == (86400, False)
    assert "iap" in rendering.find("GCPBackendPolicy", "aimesh-web", "external-stores")["spec"]["default"]
    [rule] = [each for each in rendering.find("HTTPRoute", "aimesh-api", "external-stores")["spec"]["rules"] if "/mesh" in str(each)]
    assert rule["backendRefs"] == [{"name": "aimesh-mesh", "port": 3000}]
    selector = rendering.find("Service", "aimesh-mesh", "external-stores")["spec"]["selector"]
    assert selector == rendering.find("Service", "aimesh-web", "external-stores")["spec"]["selector"]


def test_port_4222_is_public_on_request() -> None:
    assert not [each for each in rendering.objects("prod") if each.get("spec", {}).get("type") == "LoadBalancer"]
    asked = ("prod", "nats.publicHost=nats.example.org")
    [container] = rendering.find("Deployment", "aimesh-auth", *asked)["spec"]["template"]["spec"]["containers"]
    assert rendering.environment(container)["PUBLIC_NATS_URL"] == "tls://nats.example.org:4222,wss://api.example.org/mesh"
    public = rendering.find("Service", "aimesh-nats-public", *asked)["spec"]
    assert ([port["port"] for port in public["ports"]], public["type"]) == ([4222], "LoadBalancer")
    assert "nats.example.org" in rendering.find("Certificate", "aimesh-nats-tls", *asked)["spec"]["dnsNames"]
    [rule] = rendering.find("NetworkPolicy", "aimesh-nats-public", *asked)["spec"]["ingress"]
    assert rule == {"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}], "ports": [{"port": 4222}]}
