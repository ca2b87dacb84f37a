"""The specified names and numbers, read from the files down to the argument of the provider's resource."""

from typing import Any

import pytest

from tests.deploy.terraform import hcl
from tests.deploy.terraform.hcl import Scope

CLUSTER, POOL, GPU = "google_container_cluster.this", "google_container_node_pool.system", "google_container_node_pool.gpu"
RUN, SQL, REDIS = "google_cloud_run_service.this", "google_sql_database_instance.primary", "google_redis_instance.this"
_RUN_SPEC, _RUN_NOTES = "template spec", "template metadata annotations"
_ACCELERATOR = "node_config guest_accelerator"

#: example, module call, resource, its argument, value.
Row = tuple[str, str, str, str, Any]


def cloud_run(service: str, cpu: int, memory: str, concurrency: int, cpu_target: float) -> list[Row]:
    return [
        ("tier-1", service, RUN, "name", service),
        ("tier-1", service, RUN, f"{_RUN_NOTES} autoscaling.knative.dev/minScale", 1),
        ("tier-1", service, RUN, f"{_RUN_NOTES} autoscaling.knative.dev/maxScale", 10),
        ("tier-1", service, RUN, f"{_RUN_SPEC} containers resources limits cpu", cpu),
        ("tier-1", service, RUN, f"{_RUN_SPEC} containers resources limits memory", memory),
        ("tier-1", service, RUN, f"{_RUN_SPEC} container_concurrency", concurrency),
        # 800 of 1,000 and 400 of 500: Cloud Run takes a fraction.
        ("tier-1", service, RUN, f"{_RUN_NOTES} run.googleapis.com/scaling-concurrency-target", 0.8),
        ("tier-1", service, RUN, f"{_RUN_NOTES} run.googleapis.com/scaling-cpu-target", cpu_target),
    ]


def pool(example: str, call: str, resource: str, nodes: tuple[int, int], machine: str) -> list[Row]:
    return [
        (example, call, resource, "autoscaling total_min_node_count", nodes[0]),
        (example, call, resource, "autoscaling total_max_node_count", nodes[1]),
        (example, call, resource, "node_config machine_type", machine),
    ]


def accelerator(example: str, call: str, gpu: str) -> list[Row]:
    return [(example, call, GPU, f"{_ACCELERATOR} type", gpu), (example, call, GPU, f"{_ACCELERATOR} count", 1)]


ROWS: list[Row] = [
    ("demo", "gke", CLUSTER, "name", "ai-inference-demo-v1"),
    ("demo", "gke", CLUSTER, "location", "us-east1"),
    ("demo", "gke", POOL, "node_config machine_type", "e2-standard-4"),
    *pool("demo", "accelerator_pool", GPU, (1, 5), "g2-standard-12"),
    *accelerator("demo", "accelerator_pool", "nvidia-l4"),
    *cloud_run("frontend", 1, "1Gi", 1000, 0.8),
    *cloud_run("backend", 2, "2Gi", 500, 0.7),
    ("tier-1", "cloud_sql", SQL, "settings availability_type", "REGIONAL"),
    ("tier-1", "cloud_sql", SQL, "settings backup_configuration backup_retention_settings retained_backups", 7),
    ("tier-1", "cloud_sql", SQL, "settings backup_configuration point_in_time_recovery_enabled", True),
    ("tier-1", "cloud_sql", SQL, "database_version", "POSTGRES_17"),
    ("tier-1", "memorystore", REDIS, "memory_size_gb", 1),
    ("tier-2", "gke", CLUSTER, "name", "afpi-prod"),
    ("tier-2", "gke", CLUSTER, "location", "us-central1"),
    *pool("tier-2", "gke", POOL, (1, 10), "n1-standard-4"),
    ("tier-2", "gke", POOL, "management auto_repair", True),
    ("tier-2", "gke", POOL, "management auto_upgrade", True),
    ("tier-3", "gpu_pool", GPU, "name", "gpu-pool"),
    *pool("tier-3", "gpu_pool", GPU, (1, 5), "n1-standard-4"),
    *accelerator("tier-3", "gpu_pool", "nvidia-tesla-t4"),
    ("tier-3", "gpu_pool", GPU, "node_config disk_size_gb", 100),
    ("tier-4", "standby_gke", CLUSTER, "location", "us-east1"),
]


def example(name: str) -> Scope:
    return Scope(hcl.load(hcl.FOLDER / "examples" / name), {})


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}-{row[3].split()[-1]}")
def test_ordered(row: Row) -> None:
    folder, call, resource, argument, wanted = row
    assert example(folder).call(call).get(resource, argument) == wanted


@pytest.mark.parametrize(
    ("folder", "call", "resource", "nodes"),
    [("tier-2", "gke", POOL, 3), ("tier-3", "gpu_pool", GPU, 2), ("demo", "accelerator_pool", GPU, 1)],
)
def test_nodes_at_the_start(folder: str, call: str, resource: str, nodes: int) -> None:
    """Terraform counts nodes per zone."""
    module = example(folder).call(call)
    assert module.get(resource, "initial_node_count") * len(module.get(resource, "node_locations")) == nodes


def test_gpu_options_of_tier_3() -> None:
    assert example("tier-3").evaluate("${local.gpus}") == {
        "t4": {"type": "n1-standard-4", "gpu": "nvidia-tesla-t4", "count": 1},
        "v100": {"type": "n1-standard-8", "gpu": "nvidia-tesla-v100", "count": 1},
        "a100": {"type": "a2-highgpu-2g", "gpu": "nvidia-tesla-a100", "count": 2},
    }


def test_tier_1_names() -> None:
    scope = example("tier-1")
    defaults = {name: scope.evaluate(f"${{var.{name}}}") for name in ("project", "hosts")}
    assert defaults == {"project": "afpi-production", "hosts": {"web": "afpip.com", "api": "api.afpip.com"}}
    assert scope.evaluate("${local.regions}") == ["us-central1"]
    assert scope.get("google_compute_instance.mesh", "machine_type") == "e2-standard-2"


def test_tier_4_regions() -> None:
    assert example("tier-4").evaluate("${local.regions}") == ["us-central1", "us-east1"]


def test_every_cluster_is_private_and_has_workload_identity() -> None:
    cluster = hcl.load(hcl.FOLDER / "modules/gke").blocks[CLUSTER].body
    assert cluster["private_cluster_config"][0]["enable_private_nodes"] is True
    assert cluster["monitoring_config"][0]["managed_prometheus"][0]["enabled"] is True
    (identity,) = cluster["dynamic"]["workload_identity_config"]
    assert (identity["for_each"], identity["content"]) == ("${var.autopilot ? [] : [1]}", [{"workload_pool": "${var.project}.svc.id.goog"}])
    for path in hcl.EXAMPLES:
        for call in hcl.load(path).of("module"):
            if call.body["source"].endswith("/gke"):
                assert (call.body["autopilot"], call.body["authorized_networks"]) == ("${var.autopilot}", "${var.authorized_networks}")
