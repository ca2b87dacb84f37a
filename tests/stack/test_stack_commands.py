"""`aicli stack add-node` and `migrate`; up, down, status, logs and restart are in test_up_down.py and tests/acceptance."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from cli import main, profile
from cli.cli_context import CliContext
from cli.profile import Profile
from shared.api import gateway
from shared.api.gateway import NodeRow
from shared.identity import enrollment_list, node_keys
from shared.identity.enrollment_list import EnrolledNode
from shared.types import NodeId, Role
from stack import stack_commands
from stack import stack_home as homes
from tests.cli.fake_mesh import FakeMesh
from tests.replicas import read_environment


def aicli(folder: Path, *arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(main.aicli, ["stack", *arguments], env={"AIMESH_HOME": str(folder), **variables})


def test_add_node_creates_a_key_and_a_user(tmp_path: Path) -> None:
    home = homes.locate({"AIMESH_HOME": str(tmp_path / "h")})
    # A variable that is exported for a service started by hand is no setting of the stack.
    done = aicli(home.root, "add-node", "gpu-box", "worker", "--json", NATS_URL="nats://127.0.0.1:1")
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    key = Path(made["key_file"])
    assert (key, key.stat().st_mode & 0o777) == (home.key("gpu-box"), 0o600)
    assert EnrolledNode("gpu-box", Role.WORKER, made["id"]) in enrollment_list.read(home.enrollment).nodes
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


def test_the_first_question_is_not_answered_from_the_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Nothing runs in this home, so the command fails; only its words count.
    with pytest.raises(click.ClickException, match="the first answer failed"):
        stack_commands._run_prompt(homes.locate({"AIMESH_HOME": str(tmp_path / "h")}), "Say hello")
    assert capsys.readouterr().out == "\n$ aicli infer --no-cache --temperature 0 --max-tokens 64 'Say hello'\n"


@pytest.fixture
def migrating(tmp_path: Path) -> tuple[CliContext, FakeMesh]:
    """A home with a profile, whose mesh has an old gateway."""
    mesh, home = FakeMesh(), homes.locate({"AIMESH_HOME": str(tmp_path / "h")})
    homes.ensure_folders(home)
    profile.write(home.profile, Profile(node_key_file=home.key("client")))
    now = datetime(2026, 1, 1, tzinfo=UTC)
    row = NodeRow(NodeId("UOLD"), Role.GATEWAY, "gateway", "nats", True, True, "", (), now, "0.1.0", 0, 0, 0)
    mesh.answer(gateway.list_nodes, gateway.NodeRows((row,)))
    return CliContext({}, tmp_path, mesh.open), mesh


def migrate(here: CliContext, *arguments: str, url: str) -> Result:
    environment = {"AIMESH_HOME": str(here.folder / "h"), "DATABASE_URL": url}
    return CliRunner().invoke(main.aicli, ["stack", "migrate", *arguments], obj=here, env=environment)


def test_post_migrations_are_refused_while_an_older_node_runs(migrating: tuple[CliContext, FakeMesh]) -> None:
    done = migrate(migrating[0], "--post", url="postgresql://nobody@127.0.0.1:1/x")
    assert done.exit_code == 2, "the database, which does not answer, was not even asked"
    assert "gateway UOLD (0.1.0)" in done.stderr


def test_post_migrations_are_refused_while_no_gateway_says_which_nodes_run(migrating: tuple[CliContext, FakeMesh]) -> None:
    migrating[1]._answers.clear()
    done = migrate(migrating[0], "--post", url="postgresql://nobody@127.0.0.1:1/x")
    assert (done.exit_code, "no gateway answers" in done.stderr) == (5, True)


async def test_migrations_are_listed_for_each_schema(migrating: tuple[CliContext, FakeMesh], postgres_url: str) -> None:
    done = await asyncio.to_thread(migrate, migrating[0], "--status", "--json", url=postgres_url)
    rows = json.loads(done.stdout)
    assert [row["schema"] for row in rows] == ["auth", "gateway", "metrics"]
    assert all(row.keys() == {"schema", "applied", "pending_pre", "pending_post"} for row in rows)
    assert rows[0]["applied"] == []
    assert rows[0]["pending_pre"][0] == "0001_pre_accounts.sql"


async def test_pre_migrations_run_without_a_service(migrating: tuple[CliContext, FakeMesh], postgres_url: str) -> None:
    done = await asyncio.to_thread(migrate, migrating[0], "--pre", "--json", url=postgres_url)
    assert (done.exit_code, "Ran auth 0001_pre_accounts.sql, " in done.stderr) == (0, True)
    assert [(row["schema"], row["pending_pre"], row["applied"] != []) for row in json.loads(done.stdout)] == [
        ("auth", [], True), ("gateway", [], True), ("metrics", [], True)
    ]  # fmt: skip
    again = await asyncio.to_thread(migrate, migrating[0], "--pre", url=postgres_url)
    assert "nothing to run" in again.stderr


@pytest.mark.parametrize("flags", [(), ("--post", "--status"), ("--pre", "--post")])
def test_migrate_needs_one_option(migrating: tuple[CliContext, FakeMesh], flags: tuple[str, ...]) -> None:
    done = migrate(migrating[0], *flags, url="")
    assert (done.exit_code, "give one of --status, --pre and --post" in done.stderr) == (2, True)


def test_the_static_list_and_new_keys_for_nats(tmp_path: Path) -> None:
    home = homes.locate({"AIMESH_HOME": str(tmp_path / "h")})
    for command in (("nats-users",), ("nats-keys", "--renew")):
        refused = aicli(home.root, *command)
        assert (refused.exit_code, "there is no stack" in refused.output) == (2, True)
    aicli(home.root, "add-node", "gpu-box", "worker")
    assert "# gpu-box: worker\n" in aicli(home.root, "nats-users").stdout
    before = {path.name: path.read_bytes() for folder in (home.secrets, home.keys) for path in folder.iterdir() if path.is_file()}
    assert aicli(home.root, "nats-keys", "--renew").exit_code == 0
    after = {path.name: path.read_bytes() for folder in (home.secrets, home.keys) for path in folder.iterdir() if path.is_file()}
    assert {name for name in before if before[name] != after[name]} == {"nats_issuer.nk", "nats_callout.nk", "nats_sys.nk"}
    assert node_keys.load(home.secrets / "nats_callout.nk").id in (home.nats / "users.conf").read_text()


def test_a_folder_for_a_replica_needs_a_stack_and_a_path_that_needs_no_quotes(tmp_path: Path) -> None:
    none = aicli(tmp_path / "h", "replica", "auth", str(tmp_path / "auth"))
    assert (none.exit_code, "there is no stack in" in none.output) == (2, True)
    for place in ("relative/path", "/with a space"):
        refused = aicli(tmp_path / "h", "replica", "auth", str(tmp_path / "auth"), "--at", place)
        assert (refused.exit_code, "must be an absolute path" in refused.output) == (2, True)


def test_a_replica_at_a_nats_server_with_a_static_list_gets_a_key_instead_of_a_ticket(tmp_path: Path) -> None:
    home, folder = homes.locate({"AIMESH_HOME": str(tmp_path / "h")}), tmp_path / "web"
    assert aicli(home.root, "init", NATS_URL="tls://nats.example.org").exit_code == 0
    for _ in range(2):  # Again after a change of settings: the key stays.
        done = aicli(home.root, "replica", "web", str(folder), "--at", "/etc/aimesh/web", "--port", "3100")
        assert done.exit_code == 0, done.output
    assert "Reload your NATS server" in done.stderr
    given = read_environment(folder / "environment")
    assert (given["NODE_KEY_FILE"], given["WEB_SERVICE_PORT"]) == ("/etc/aimesh/web/node.nk", "3100")
    assert "JOIN_TICKET_FILE" not in given
    added = [node for node in enrollment_list.read(home.enrollment).nodes if node.name.startswith("web-")]
    assert [(node.role, node.node) for node in added] == [(Role.WEB, node_keys.load(folder / "node.nk").id)]
    secret = (folder / "web_secret").read_text().strip()
    assert secret not in done.output
