"""deploy/compose/database-cluster.yaml fits compose.yaml: the same PostgreSQL, data, access and secrets, and services know all nodes."""

import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import yaml

from features.backup.stack.agent.source_database import SLOT
from shared.stores import server_sessions
from tests.deploy import compose_file, containers

FOLDER = compose_file.ROOT / "deploy/compose"
CLUSTER = compose_file.load("deploy/compose/database-cluster.yaml")
NODES = {name: service for name, service in CLUSTER["services"].items() if name.startswith("postgres")}
SINGLE = compose_file.services()["postgres"]
PATRONI: dict[str, Any] = yaml.safe_load((FOLDER / "patroni.yaml").read_text(encoding="utf-8"))
DYNAMIC = PATRONI["bootstrap"]["dcs"]


def test_it_fits_the_compose_specification() -> None:
    vendored = resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = json.loads(vendored.read_text(encoding="utf-8"))
    assert not [error.message for error in jsonschema.validators.validator_for(schema)(schema).iter_errors(CLUSTER)]


@pytest.mark.parametrize("name", NODES)
def test_a_node_is_confined_and_checked_as_the_single_server_is(name: str) -> None:
    # Compose merges the service `postgres`.
    node = {**SINGLE, **NODES[name]} if name == "postgres" else NODES[name]
    for key in ("restart", "user", "read_only", "tmpfs", "shm_size", "cap_drop", "security_opt", "healthcheck"):
        assert node[key] == SINGLE[key], key
    places = {volume.split(":")[1] for volume in [*NODES[name]["volumes"], *(SINGLE["volumes"] if name == "postgres" else ())]}
    assert {"/run/aimesh", "/etc/patroni.yaml", "/var/lib/postgresql"} <= places
    assert NODES[name]["environment"]["PATRONI_NAME"] == name
    assert NODES[name]["environment"]["PATRONI_SUPERUSER_USERNAME"] == SINGLE["environment"]["POSTGRES_USER"]
    major = re.findall(r"postgres:(\d+)", SINGLE["image"])
    assert re.findall(r"postgresql/(\d+)", str(NODES[name]["environment"])) == major * 2


def test_services_and_their_roles_are_told_all_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CLUSTER["services"]["init"]["environment"] == {"POSTGRES_HOSTS": ",".join(f"{name}:5432" for name in NODES)}
    for name, value in CLUSTER["services"]["init"]["environment"].items():
        monkeypatch.setenv(name, value)
    url = (containers.run_init(tmp_path, {}) / "gateway/database_url").read_text(encoding="utf-8")
    assert [urlsplit(each).netloc.rpartition("@")[2] for each in server_sessions.urls_of(url)] == [f"{name}:5432" for name in NODES]
    (command,) = CLUSTER["services"]["provision"]["command"]
    assert f"PGHOST={','.join(NODES)} " in command
    (single,) = compose_file.services()["provision"]["command"]
    assert command.partition(" && exec ")[2] == single.partition(" && exec ")[2].replace("-h postgres ", "")


def test_the_database_has_the_settings_of_the_single_one() -> None:
    assert {"auth": "scram-sha-256"} in PATRONI["bootstrap"]["initdb"]
    assert "data-checksums" in PATRONI["bootstrap"]["initdb"]
    assert SINGLE["environment"]["POSTGRES_INITDB_ARGS"] == "--auth=scram-sha-256 --data-checksums"
    kept = DYNAMIC["postgresql"]["parameters"]["max_slot_wal_keep_size"]
    assert compose_file.resolve(SINGLE["command"][-1], {}) == f"max_slot_wal_keep_size={kept}"
    assert DYNAMIC["synchronous_mode"] is True
    assert DYNAMIC["ignore_slots"] == [{"name": SLOT, "type": "physical"}]


def test_only_the_nodes_may_also_copy_each_other() -> None:
    single = compose_file.mounted("postgres")["/etc/postgresql/pg_hba.conf"].read_text(encoding="utf-8").splitlines()
    wanted = [line.split() for line in single if not line.startswith("#")]
    administrator = SINGLE["environment"]["POSTGRES_USER"]
    assert [line.split() for line in PATRONI["postgresql"]["pg_hba"]] == [
        *wanted,
        ["host", "replication", administrator, "all", "scram-sha-256"],
    ]


def test_patroni_may_lose_its_lease_only_after_its_retries() -> None:
    assert DYNAMIC["loop_wait"] + 2 * DYNAMIC["retry_timeout"] <= DYNAMIC["ttl"]


def test_its_image_is_the_single_servers_with_packages_by_hash() -> None:
    dockerfile = FOLDER / "database-cluster.Dockerfile"
    text = dockerfile.read_text(encoding="utf-8")
    assert f"ARG POSTGRES={SINGLE['image']}\n" in text
    assert "--require-hashes -r /build/patroni.lock" in text
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "--no-color", "--ignore=DL3008", str(dockerfile)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (service["build"] for service in NODES.values() if "build" in service)
    assert built["dockerfile"] == str(dockerfile.relative_to(compose_file.ROOT))
    images = {service["image"].rpartition("/")[2].partition(":")[0] for service in CLUSTER["services"].values() if "image" in service}
    assert images == {"aimesh-database-cluster"}
