"""`aicli mesh export`: what it prints, where, and for which profiles."""

import json
from base64 import b64encode
from pathlib import Path

import pytest

from cli import profile
from cli.profile import Profile
from shared import errors
from shared.api import gateway, membership
from shared.api.membership import Membership
from shared.identity import node_keys
from shared.identity.node_keys import NodeKey
from shared.types import AuthorityId, MeshName, Role
from tests.cli.fake_mesh import Shell

DHT = ("192.0.2.1:4737", "192.0.2.1:4738")


def joined(shell: Shell) -> NodeKey:
    """Give the shell a profile that joined with a ticket; return its key."""
    file = shell.folder / ".aimesh" / profile.FILE
    key_file = file.with_name("client.nk")
    profile.write(file, Profile(node_key_file=key_file, nats_url=None, mesh_file=file.with_name("default.mesh")))
    return node_keys.load(key_file)


def renewed(bootstrap: tuple[str, ...] = DHT) -> Membership:
    return Membership(MeshName("home"), Role.CLIENT, b"certified", b"", (AuthorityId("A"),), b"", (), bootstrap, (), 0)


def answering(shell: Shell, membership_: Membership) -> tuple[NodeKey, NodeKey]:
    """Give the mesh one auth and one gateway; return their keys."""
    keys = NodeKey(node_keys.new_seed()), NodeKey(node_keys.new_seed())
    shell.mesh.answer(membership.renew_certificate, membership_)
    shell.mesh.answer(gateway.get_service_health, gateway.ServiceHealth("healthy", (), 0, (), 0))
    shell.mesh.alive_nodes = {Role.AUTH: [keys[0].id], Role.GATEWAY: [keys[1].id]}
    return keys


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_export_goes_to_stdout_and_the_warning_to_stderr(shell: Shell, arguments: tuple[str, ...]) -> None:
    key = joined(shell)
    an_auth, a_gateway = answering(shell, renewed())
    done = shell("mesh", "export", *arguments)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == {
        "seed": key.raw_seed.hex(),
        "certificate": b64encode(b"certified").decode(),
        "bootstrap": list(DHT),
        "nodes": {"auth": [an_auth.raw.hex()], "gateway": [a_gateway.raw.hex()]},
    }
    assert "your profile's key" in done.stderr
    assert key.raw_seed.hex() not in done.stderr


@pytest.mark.parametrize("bootstrap", [(), ("public",)])
def test_public_dht_is_null_because_an_empty_list_means_a_private_one(shell: Shell, bootstrap: tuple[str, ...]) -> None:
    joined(shell)
    answering(shell, renewed(bootstrap))
    assert json.loads(shell("mesh", "export").stdout)["bootstrap"] is None


def test_nats_profile_has_no_certificate_to_export(shell: Shell) -> None:
    done = shell("mesh", "export")
    assert done.exit_code == 2
    assert "connects over NATS" in done.stderr
    assert "aicli mesh connect TICKET" in done.stderr
    assert done.stdout == ""


def test_nothing_is_printed_without_a_mesh(shell: Shell, tmp_path: Path) -> None:
    joined(shell)
    shell.mesh.answer(membership.renew_certificate, errors.NodeRevoked("this node was revoked", hint="ask for a new ticket"))
    done = shell("mesh", "export")
    assert done.exit_code != 0
    assert done.stdout == ""
    assert "revoked" in done.stderr
