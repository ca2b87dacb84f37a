"""The agent in Compose: its settings, its files from `init`, and its health check."""

import json
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from features.backup.settings import BackupSettings
from features.backup.stack import agent_program, part, sealing
from features.backup.stack.agent import backup_files
from shared import config, node
from stack import stack_home as homes
from tests.deploy import compose_file, containers
from tests.deploy.test_compose_file import LOG, SERVICES, mounts_of

ROOT = compose_file.ROOT


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
    # The backup has all its files: the agent's own paths are those that init writes.
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
    # A database of your own is copied only if you provide a role for backups.
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
    assert part._state_in_container(containers.hand_out_program().given) == state


def test_the_backup_agent_gets_every_setting_of_backups_and_secrets_as_files() -> None:
    environment = compose_file.environment_of("backup")
    known = {
        setting.variable.name: setting.variable.secret
        for kind in (BackupSettings, node.NodeSettings)
        for setting in config.settings_of(kind)
    }
    given = {name if name in known else name.removesuffix("_FILE") for name in environment}
    assert given - known.keys() - {"SWARM_CLIENTS"} == {"AIMESH_HOME"}
    backups = {setting.variable.name for setting in config.settings_of(BackupSettings)}
    assert backups <= given
    assert {name for name in given if known.get(name) and name in environment} == set()
    # init records the settings for the commands, with the paths of the agent's container.
    recorded = compose_file.environment_of("init")
    assert backups <= recorded.keys()
    assert environment["AIMESH_HOME"] == recorded["AIMESH_HOME"] == "/state"
    assert recorded["AUDIT_ANCHOR_FILE"].startswith("/state/recovery_log/")
    assert "recovery-data:/state/recovery_log:ro" in SERVICES["backup"]["volumes"]
    assert {mounts_of(service)[LOG] for service in ("auth", "gateway")} == {"recovery-data"}


@pytest.mark.parametrize(("given", "source"), [({}, "backup-data"), ({"BACKUP_FOLDER": "/mnt/nas"}, "/mnt/nas")])
def test_backups_go_to_a_volume_or_a_folder_of_the_host(given: dict[str, str], source: str) -> None:
    assert compose_file.resolve(SERVICES["backup"]["volumes"][-1], given) == f"{source}:/backup"


def test_postgresql_keeps_as_much_log_as_the_setting_says() -> None:
    command = SERVICES["postgres"]["command"]
    assert compose_file.resolve(command[-1], {"BACKUP_WAL_MOST": "1GB"}) == "max_slot_wal_keep_size=1GB"
    default = next(each.default for each in config.settings_of(BackupSettings) if each.variable.name == "BACKUP_WAL_MOST")
    assert compose_file.resolve(command[-1], {}) == f"max_slot_wal_keep_size={default}"


@pytest.mark.parametrize(("answer", "status"), [(agent_program.READY, 0), (b"opening the store\n", 1)])
def test_the_agent_is_asked_as_the_supervisor_asks_it(answer: bytes, status: int, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as agent:
        agent.settimeout(10)
        agent.bind(str(tmp_path / "s"))
        agent.listen()
        with subprocess.Popen([sys.executable, str(ROOT / "deploy/docker/alive_backup.py"), str(tmp_path / "s")]) as check:
            asking, _ = agent.accept()
            with asking:
                asking.send(answer)
            assert check.wait(timeout=60) == status
