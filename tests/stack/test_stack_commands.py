"""`aicli stack add-node`; up, down, status, logs and restart are in test_up_down.py and tests/acceptance."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli import main
from shared.types import Role
from stack import stack_commands
from stack import stack_home as homes


def aicli(folder: Path, *arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(main.aicli, ["stack", *arguments], env={"AIMESH_HOME": str(folder), **variables})


def test_every_role_can_be_added() -> None:
    # A newcomer comes over Hyperswarm, for a certificate, and never to NATS.
    assert list(stack_commands.NODE_ROLES) == [role.value for role in Role if role is not Role.NEWCOMER]


def test_add_node_creates_a_key_and_a_user(tmp_path: Path) -> None:
    home = homes.locate({"AIMESH_HOME": str(tmp_path / "h")})
    # What is exported for a service that is started by hand is no setting of the stack.
    done = aicli(home.root, "add-node", "gpu-box", "worker", "--json", NATS_URL="nats://127.0.0.1:1")
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    key = Path(made["key_file"])
    assert (key, key.stat().st_mode & 0o777) == (home.key("gpu-box"), 0o600)
    assert f"# gpu-box: worker\n  {{ nkey: {made['id']}" in (home.nats / "users.conf").read_text()
    assert "NATS_URL" not in home.settings_file.read_text()
    assert aicli(home.root, "add-node", "gpu-box", "worker").stdout == f"{key}\n"


@pytest.mark.parametrize(
    ("name", "role", "words"),
    [
        ("gpu-box", "gateway", "already the name of a worker"),
        ("../x", "worker", "lowercase letters"),
        ("Box", "worker", "lowercase letters"),
        ("box", "king", "king"),
        ("auth", "worker", "already the name of the stack's own auth"),
    ],
)
def test_add_node_refuses(tmp_path: Path, name: str, role: str, words: str) -> None:
    assert aicli(tmp_path / "h", "add-node", "gpu-box", "worker").exit_code == 0
    done = aicli(tmp_path / "h", "add-node", name, role)
    assert done.exit_code == 2, done.output
    assert words in done.stderr
