"""The folder of a replica has what the stack's own service gets, and nothing that only the first one needs."""

import shlex
from pathlib import Path

import pytest

from shared.protocol import replica_check
from shared.types import SERVICE_NAMES
from stack import initialization, stack_plan
from stack import stack_home as homes
from stack.servers import replica_folder
from stack.servers.replica_folder import ReplicaFolder
from stack.stack_home import StackHome

PLACE = Path("/etc/aimesh/replica")
NOT_FOR_REPLICAS = {"ADMIN_PASSWORD_FILE", "ADMIN_API_KEY_FILE", "REPLICA_CHECK"}


def folder_of(home: StackHome, service: str, folder: Path, **settings: str) -> tuple[ReplicaFolder, dict[str, str]]:
    made = initialization.ensure(home, settings, folder)
    given = stack_plan.service_environment(home, made.settings, made.recorded, service)
    return replica_folder.plan(given, PLACE, {} if service == "auth" else {"JOIN_TICKET_FILE": b"aip_join_x"}), given


@pytest.fixture
def home(tmp_path: Path) -> StackHome:
    return homes.locate({"AIMESH_HOME": str(tmp_path / "home")})


@pytest.mark.parametrize("service", replica_folder.SERVICES)
def test_a_replica_gets_every_setting_of_the_stacks_own_service(home: StackHome, service: str, tmp_path: Path) -> None:
    mail = {"SMTP_URL": "smtp://me:secret@mail.example.org", "MAIL_FROM": "aimesh <me@example.org>", "PUBLIC_URL": "https://ai.example.org"}
    made, given = folder_of(home, service, tmp_path, **mail)
    names = {name.removesuffix("_FILE") for name in made.environment}
    assert {name.removesuffix("_FILE") for name, value in given.items() if value} - names == {
        name.removesuffix("_FILE") for name in NOT_FOR_REPLICAS & given.keys()
    }
    assert ("JOIN_TICKET_FILE" in made.environment) is (service != "auth")
    # A shell, systemd and Docker read the file, and not all of them know quotes.
    assert all(shlex.quote(value) == value for value in made.environment.values())


def test_secrets_and_keys_are_in_private_files_and_paths_are_those_of_the_other_machine(home: StackHome, tmp_path: Path) -> None:
    made, given = folder_of(home, "auth", tmp_path, SMTP_URL="smtp://me:sec-ret@mail.example.org")
    folder = tmp_path / "replica"
    replica_folder.write(folder, made)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    text = (folder / "environment").read_text()
    assert "sec-ret" not in text
    assert str(home.root) not in "".join(line for line in text.splitlines() if "_URL" not in line)
    for name in ("MESH_CA_KEY_FILE", "DATA_KEY_FILE", "NATS_CALLOUT_KEY_FILE", "ENROLLMENT_LIST", "SMTP_URL_FILE"):
        there = Path(made.environment[name])
        assert there.parent == PLACE
        assert (folder / there.name).read_bytes() == Path(given[name]).read_bytes()
    # The replica makes these.
    assert made.environment["NODE_KEY_FILE"] == f"{PLACE}/node.nk"
    assert not (folder / "node.nk").exists()


@pytest.mark.parametrize(
    ("settings", "only_here"),
    [
        ({}, ("NATS_URL", "DATABASE_URL", "REDIS_URL", "DHT_BOOTSTRAP")),
        (
            {
                "NATS_URL": "tls://a.example.org,tls://b.example.org",
                "DATABASE_URL": "postgresql://me:x@db1,db2/aimesh",
                "REDIS_URL": "rediss://c.example.org",
                "DHT_HOST": "mesh.example.org",
            },
            (),
        ),
    ],
)
def test_servers_that_only_this_machine_reaches_are_named(
    home: StackHome, tmp_path: Path, settings: dict[str, str], only_here: tuple[str, ...]
) -> None:
    assert folder_of(home, "auth", tmp_path, **settings)[0].on_this_machine == only_here


def test_every_service_that_is_compared_with_others_can_have_replicas() -> None:
    assert set(replica_folder.SERVICES) == {SERVICE_NAMES[role] for role in replica_check.COMPARED_WITH}
