"""The worker's systemd unit and its compose file: neither contains a ticket, both use the host's network, and their commands exist."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import yaml

from cli import main
from tests import capabilities
from tests.deploy import compose_file
from tests.deploy.test_units import read

DEPLOY = compose_file.ROOT / "deploy"
UNIT = DEPLOY / "worker.service"
COMPOSE = DEPLOY / "worker.compose.yaml"


def options_of(words: Sequence[str]) -> dict[str, object]:
    """Return the options that `aicli` parses from these words. Fails for an unknown option."""
    command = main.aicli.get_command(click.Context(main.aicli), words[0])
    assert command is not None
    return dict(command.make_context(command.name, list(words[1:])).params)


def test_the_unit_starts_a_worker_that_has_joined() -> None:
    program, *words = shlex.split(read(UNIT)["Service"]["ExecStart"])
    assert program.endswith("/.venv/bin/aicli")
    given = options_of(words)
    assert (given["ticket"], given["state"]) == (None, f"%S/{read(UNIT)['Service']['StateDirectory']}")


def test_the_unit_is_confined_and_comes_back() -> None:
    service = read(UNIT)["Service"]
    assert service["DynamicUser"] == service["NoNewPrivileges"] == service["PrivateDevices"] == "yes"
    assert (service["ProtectSystem"], service["CapabilityBoundingSet"], service["Restart"]) == ("strict", "", "always")
    assert service["StateDirectoryMode"] == "0700"
    assert service["RestartPreventExitStatus"] == "2 6", "wrong settings, a key that another process uses, a revoked machine"
    assert "MemoryDenyWriteExecute" not in service


def test_systemd_itself_finds_no_mistake(tmp_path: Path) -> None:
    capabilities.require("systemd")
    analyze = capabilities.find_program("systemd-analyze")
    assert analyze is not None
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/aimesh/.venv/bin/aicli", "/bin/true"), encoding="utf-8")
    done = subprocess.run([analyze, "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False, timeout=120)
    assert UNIT.name not in done.stderr, done.stderr


def test_the_containers_join_once_and_then_serve_on_the_hosts_network() -> None:
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    given = {name: options_of(service["command"][3:]) for name, service in services.items()}
    assert all(service["command"][:3] == ["python", "-m", "cli.main"] for service in services.values())
    assert (given["join"]["ticket"], given["join"]["no_serve"]) == ("-", True)
    assert (given["worker"]["ticket"], given["worker"]["port"]) == (None, 3003)
    assert given["worker"]["state"] == given["join"]["state"] == "/state"
    assert services["join"]["profiles"] == ["join"]
    for service in services.values():
        assert (service["network_mode"], service["read_only"], service["cap_drop"]) == ("host", True, ["ALL"])
        assert "environment" not in service


def test_a_schema_finds_nothing_wrong() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
