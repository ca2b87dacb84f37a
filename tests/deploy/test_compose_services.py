"""Each service starts with compose's own command and environment, from the files that `init` makes, and works with the others."""

import json
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from stack import stack_home as homes
from stack.recovery import sealing
from stack.recovery.agent import backup_files
from stack.servers import nats_server
from tests.deploy import compose_file, containers
from tests.deploy.containers import Container, House

SERVICES = ("auth", "gateway", "inference", "metrics", "web")
PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[House, dict[str, Container]]]:
    with containers.house(tmp_path_factory.mktemp("compose")) as everything:
        yield everything


@pytest.fixture
def house(running: tuple[House, dict[str, Container]]) -> House:
    return running[0]


def test_init_hands_out_what_compose_mounts(tmp_path: Path) -> None:
    handed = containers.run_init(tmp_path)
    for service in compose_file.services():
        for value in compose_file.environment_of(service).values() if "environment" in compose_file.services()[service] else ():
            if value.startswith("/run/aimesh/"):
                file = handed / service / Path(value).name
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert subprocess.run([nats_server.binary(), "-t", "-c", handed / "nats/nats.conf"], capture_output=True, check=False).returncode == 0
    # A worker learns nothing but its own key and the token of its own port.
    assert {path.name for path in (handed / "inference").iterdir()} == {"node.nk", "service_token", "hf_token"}


def test_init_hands_out_your_own_servers_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "DATABASE_URL": "postgresql://me:pw@db/all",
        "METRICS_DATABASE_URL": "postgresql://me:pw@db/metrics",
        "REDIS_URL": "redis://cache:6379",
        "OPENAI_API_KEY": "sk-one",
        "HF_TOKEN": "hf-one",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    handed = containers.run_init(tmp_path)
    urls = {service: (handed / service / "database_url").read_text(encoding="utf-8") for service in ("auth", "gateway", "metrics")}
    assert urls == {"auth": given["DATABASE_URL"], "gateway": given["DATABASE_URL"], "metrics": given["METRICS_DATABASE_URL"]}
    assert (handed / "gateway/redis_url").read_text(encoding="utf-8") == given["REDIS_URL"]
    assert (handed / "inference-openai/openai_api_key").read_text(encoding="utf-8") == "sk-one"
    assert (handed / "inference/hf_token").read_text(encoding="utf-8") == "hf-one"
    assert (handed / "inference-openai/openai_upstream_keys").read_bytes() == b""
    # No other container sees the key.
    assert not list(handed.glob("inference/openai*"))


def test_init_hands_out_a_home_to_the_backup_agent_and_the_key_of_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "BACKUP_TO": "s3://aimesh/home",
        "BACKUP_RECIPIENTS": sealing.recipient_of(sealing.new_identity()),
        "AWS_ACCESS_KEY_ID": "aimesh",
        "AWS_SECRET_ACCESS_KEY": "secret-one",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    handed = containers.run_init(tmp_path, given)
    home = handed / "backup"
    # With everything that a backup contains: the agent's own paths are those of init.
    found = backup_files.collect(homes.locate({"AIMESH_HOME": str(home)}), {})
    assert {"secrets/data_key", "secrets/mesh_ca.nk", "secrets/recovery.nk", "secrets/backup_identity", "keys/auth.nk"} <= {
        str(path) for path in found.secrets
    }
    assert Path("stack.env") in found.files
    assert "BACKUP_TO=s3://aimesh/home" in (home / "stack.env").read_text(encoding="utf-8")
    assert "secret-one" not in (home / "stack.env").read_text(encoding="utf-8")
    assert {stat.S_IMODE(path.stat().st_mode) for path in home.rglob("*")} == {0o600, 0o700}
    assert re.fullmatch(
        r"postgresql://backup:[\w-]+@postgres:5432/aimesh", (home / "secrets/database_url_backup").read_text(encoding="utf-8")
    )
    assert (home / "secrets/environment/aws_secret_access_key").read_bytes() == b"secret-one"
    assert (home / "secrets/environment/aws_session_token").read_bytes() == b""
    [user] = json.loads((handed / "s3/s3.json").read_bytes())["identities"]
    assert user["credentials"] == [{"accessKey": "aimesh", "secretKey": "secret-one"}]
    # Your own database is copied only with a role of it that may do so.
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:pw@db/all")
    assert (containers.run_init(tmp_path, given) / "backup/secrets/database_url_backup").read_bytes() == b""
    monkeypatch.setenv("BACKUP_DATABASE_URL", "postgresql://copier:pw@db/all")
    assert b"copier" in (containers.run_init(tmp_path, given) / "backup/secrets/database_url_backup").read_bytes()


def test_without_backups_the_agent_gets_nothing_and_nobody_knows_the_key_of_the_store(tmp_path: Path) -> None:
    handed = containers.run_init(tmp_path)
    assert not list((handed / "backup").iterdir())
    [user] = json.loads((handed / "s3/s3.json").read_bytes())["identities"]
    assert len(user["credentials"][0]["secretKey"]) >= 40


@pytest.mark.parametrize(
    ("given", "state"),
    [
        ({}, "off"),
        ({"PUBLISH_ADDRESS": "127.0.0.1"}, "off"),
        ({"PUBLISH_ADDRESS": "0.0.0.0"}, "missing"),
        ({"PUBLISH_ADDRESS": "0.0.0.0", "BACKUP_TO": "/backup"}, "on"),
        ({"PUBLISH_ADDRESS": "0.0.0.0", "BACKUP_STATE": "off"}, "off"),
    ],
)
def test_auth_is_told_whether_there_are_backups(given: dict[str, str], state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert containers.hand_out_program().backup_state() == state


@pytest.mark.parametrize("service", SERVICES)
def test_the_health_check_of_the_image_passes(house: House, service: str) -> None:
    check = [sys.executable, str(compose_file.ROOT / "deploy/docker/alive.py"), service, "1"]
    port = {f"{service.upper()}_SERVICE_PORT": str(house.ports[service])}
    assert subprocess.run(check, env=port, capture_output=True, check=False, timeout=60).returncode == 0


def test_the_health_check_fails_where_nobody_listens() -> None:
    check = [sys.executable, str(compose_file.ROOT / "deploy/docker/alive.py"), "auth", str(containers.free_port())]
    assert subprocess.run(check, env={}, capture_output=True, check=False, timeout=60).returncode != 0


def test_a_new_user_gets_an_answer_through_the_published_ports(house: House) -> None:
    with httpx.Client(base_url=house.url("web", ""), timeout=60) as web:
        account = {"username": "john_doe", "email": "john@example.com", "password": PASSWORD}
        assert web.post("/api/auth/register", json=account).status_code == 201
        session = web.post("/api/auth/login", json={"username": "john_doe", "password": PASSWORD}).json()
        bearer = {"Authorization": f"Bearer {session['access_token']}"}
        made = web.post("/api/auth/api-keys", json={"name": "My CLI Key"}, headers=bearer).json()
        key = {"X-API-Key": made.get("apiKey") or made["api_key"]}
        answer = web.post("/api/inference", json={"prompt": "Say hello", "model": "smollm2", "maxTokens": 8}, headers=key)
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("service", SERVICES)
def test_it_ends_properly_when_compose_stops_it(running: tuple[House, dict[str, Container]], service: str) -> None:
    # The last test of the module: the house is empty afterwards.
    assert running[1][service].stop() == 0
