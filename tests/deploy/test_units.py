"""The systemd units: the programs that they start exist, and get no permission that they don't need."""

import configparser
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from cli import main
from tests import capabilities
from tests.deploy import compose_file

UNITS = sorted((compose_file.ROOT / "deploy").glob("mesh-*.service"))


def read(unit: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # systemd's names have capitals
    parser.read(unit, encoding="utf-8")
    return parser


def test_there_are_units_for_both() -> None:
    assert [unit.name for unit in UNITS] == ["mesh-bootstrap.service", "mesh-relay.service"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_command_is_one_of_aicli(unit: Path) -> None:
    program, *words = shlex.split(read(unit)["Service"]["ExecStart"])
    assert program.endswith("/.venv/bin/aicli")
    command: click.Command = main.aicli
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None
        command = found
    # The address is set when the unit is installed.
    arguments = [word.replace("${DHT_HOST}", "203.0.113.5") for word in words]
    command.make_context(command.name, arguments)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_it_is_confined_and_comes_back(unit: Path) -> None:
    service = read(unit)["Service"]
    assert service["DynamicUser"] == service["NoNewPrivileges"] == "yes"
    assert (service["ProtectSystem"], service["CapabilityBoundingSet"], service["Restart"]) == ("strict", "", "always")
    assert service["RestartPreventExitStatus"] == "2", "wrong settings, and a key that another process uses"
    assert "MemoryDenyWriteExecute" not in service


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_itself_finds_no_mistake(unit: Path, tmp_path: Path) -> None:
    capabilities.require("systemd")
    analyze = capabilities.find_program("systemd-analyze")
    assert analyze is not None
    # systemd-analyze requires that the program exists.
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text(encoding="utf-8").replace("/opt/aimesh/.venv/bin/aicli", "/bin/true"), encoding="utf-8")
    done = subprocess.run([analyze, "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False, timeout=120)
    assert unit.name not in done.stderr, done.stderr
