"""Nodes revoked by auth are rejected by NATS: the supervisor's part."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from shared import errors
from shared.identity import certificates, node_keys
from shared.node import membership_file
from shared.transports.nats.nats_client import NatsClient
from shared.types import MeshName, NodeId, Role
from stack import initialization
from stack import stack_home as homes
from stack.servers import nats_revocation, nats_server
from stack.stack_home import StackHome
from tests.testnet import NatsServer

MESH = MeshName("home")
NOW = 1_800_000_000.0


@pytest.fixture
def home(tmp_path: Path) -> StackHome:
    found = homes.locate({"AIMESH_HOME": str(tmp_path / "h")})
    initialization.ensure(found, {}, tmp_path)
    return found


def write_revocations(home: StackHome, *nodes: NodeId, number: int = 1) -> None:
    """What auth does after a revocation."""
    authority = node_keys.load_authority(home.secrets / "mesh_ca.nk")
    body = certificates.issue_list(authority, number, 1, nodes, NOW)
    membership_file.save(
        nats_revocation.list_file(home), membership_file.MembershipFile(MESH, Role.AUTH, revocations=body, authorities=(authority.id,))
    )


def node(home: StackHome, name: str) -> NodeId:
    return node_keys.load(home.key(name)).id


def users(home: StackHome) -> str:
    return (home.nats / "users.conf").read_text()


def test_revocation_list_of_auth_is_read(home: StackHome) -> None:
    path = nats_revocation.list_file(home)
    assert nats_revocation.read_revoked(path) == frozenset()
    write_revocations(home, node(home, "web"))
    assert nats_revocation.read_revoked(path) == {node(home, "web")}
    membership_file.save(path, membership_file.MembershipFile(MESH, Role.AUTH))
    assert nats_revocation.read_revoked(path) == frozenset()


def test_list_without_a_valid_ca_signature_revokes_nothing(home: StackHome) -> None:
    stranger = node_keys.Authority(node_keys.new_authority_seed())
    ours = node_keys.load_authority(home.secrets / "mesh_ca.nk")
    body = certificates.issue_list(stranger, 9, 1, (node(home, "gateway"),), NOW)
    membership_file.save(
        nats_revocation.list_file(home), membership_file.MembershipFile(MESH, Role.AUTH, revocations=body, authorities=(ours.id,))
    )
    with pytest.raises(errors.NotCertified):
        nats_revocation.read_revoked(nats_revocation.list_file(home))
    nats_revocation.list_file(home).write_text("{")
    with pytest.raises(errors.BadSettings, match="cannot be read"):
        nats_revocation.read_revoked(nats_revocation.list_file(home))


def test_revoked_user_stays_revoked(home: StackHome, tmp_path: Path) -> None:
    key = nats_server.add_node(home, MESH, "gpu-box", Role.WORKER)
    box = node_keys.load(key).id
    gone = nats_server.revoke(home, MESH, {box, NodeId("UNKNOWN")})
    assert [each.name for each in gone] == ["gpu-box"]
    assert nats_server.revoke(home, MESH, {box}) == []
    initialization.ensure(home, {}, tmp_path)
    nats_server.add_node(home, MESH, "another", Role.WORKER)
    # Also when the list has forgotten it: a certificate ends, a user of NATS does not.
    nats_server.revoke(home, MESH, set())
    assert box not in users(home)
    assert node(home, "another") in users(home)
    with pytest.raises(errors.BadSettings, match="has been revoked"):
        nats_server.add_node(home, MESH, "gpu-box", Role.WORKER)
    key.unlink()
    assert node_keys.load(nats_server.add_node(home, MESH, "gpu-box", Role.WORKER)).id in users(home)


@contextlib.asynccontextmanager
async def watching(home: StackHome) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(nats_revocation.watch(home, MESH))
        yield
        task.cancel()


async def test_revoked_node_is_disconnected_and_others_are_not(home: StackHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_revocation, "_LOOK_SECONDS", 0.02)
    server = NatsServer(home.nats)
    nats_server.ensure(home, MESH, server.port)
    server.start()
    closed = asyncio.Event()
    web, metrics = Client(), Client()

    async def ignore(_: Exception) -> None:
        """What counts is that it is closed."""

    async def note() -> None:
        closed.set()

    try:
        async with watching(home):
            await web.connect(server.url, nkeys_seed=str(home.key("web")), allow_reconnect=False, closed_cb=note, error_cb=ignore)
            await metrics.connect(server.url, nkeys_seed=str(home.key("metrics")), allow_reconnect=False, error_cb=ignore)
            write_revocations(home, node(home, "web"))
            async with asyncio.timeout(30):
                await closed.wait()
            assert metrics.is_connected
            # Ours, because the stock client leaves its socket open when it is refused.
            with pytest.raises(errors.Unavailable):
                await NatsClient(server.url, node_keys.load(home.key("web")), name="web").connect(deadline_seconds=1)
    finally:
        await metrics.close()
        server.kill()
