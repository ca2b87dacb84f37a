"""A node and a client whose ticket names NATS, and Hyperswarm beside it: one of the two is enough."""

import asyncio

import msgspec
import pytest

from shared import errors
from shared.node import member, membership_file
from shared.node.client_node import ClientSettings, client
from shared.types import Role
from tests.swarmnet import SwarmNet, swarmnet
from tests.testnet import MESH, IdleService, NodeService, RunningNode, start_node, until


class Auth(NodeService):
    role = Role.AUTH


def joined(net: SwarmNet, name: str, role: Role, *, beside: bool = True) -> ClientSettings:
    """Return the settings of a profile whose ticket names the NATS server."""
    assert net.server is not None
    key_file = net.join(name, role)
    path = key_file.with_suffix(".mesh")
    kept = membership_file.load(path)
    assert kept is not None
    membership_file.save(path, msgspec.structs.replace(kept, nats=(net.server.url,), beside=beside))
    return ClientSettings(mesh=MESH, nats_url=None, node_key_file=key_file, mesh_file=path, connect_seconds=0.3)


async def test_a_node_starts_without_nats_and_uses_it_once_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member, "CONNECT_BESIDE_SECONDS", 0.3)
    async with swarmnet(nats=True) as net:
        assert net.server is not None
        auth, box = await net.start(Auth), joined(net, "box", Role.WORKER)
        net.server.kill()
        settings = msgspec.structs.replace(net.settings(box.node_key_file, nats=True), dht_bootstrap=())
        async with asyncio.TaskGroup() as tasks:
            worker: RunningNode = await start_node(tasks, IdleService, settings)
            await until(lambda: auth.node.directory.find(worker.node.id), seconds=30)
            net.server.start()
            nats = worker.node.node_transports.nats
            assert nats is not None
            await until(lambda: nats.connected, seconds=10)
            await worker.stop()


async def test_a_node_that_has_only_nats_ends_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member, "CONNECT_SECONDS", 0.3)
    async with swarmnet(nats=True) as net:
        assert net.server is not None
        box = joined(net, "box", Role.WORKER, beside=False)
        net.server.kill()
        with pytest.raises(errors.Unavailable, match="no NATS server answers"):
            async with member.member(msgspec.structs.replace(net.settings(box.node_key_file, nats=True), dht_bootstrap=()), Role.WORKER):
                pass


async def test_a_profile_uses_nats_first_and_hyperswarm_without_it() -> None:
    async with swarmnet(nats=True) as net:
        assert net.server is not None
        auth, profile = await net.start(Auth, nats=True), joined(net, "cafe", Role.CLIENT)
        async with client(profile) as node:
            await until(lambda: node.directory.usable(Role.AUTH), seconds=10)
            assert (node.node_transports.nats is not None, node.node_transports.swarm) == (True, None)
        net.server.kill()
        async with client(profile) as node:
            assert (node.node_transports.nats, node.node_transports.swarm is not None) == (None, True)
            await until(lambda: node.directory.find(auth.node.id), seconds=30)


async def test_a_profile_that_has_only_nats_says_that_it_does_not_answer() -> None:
    async with swarmnet(nats=True) as net:
        assert net.server is not None
        profile = joined(net, "cafe", Role.CLIENT, beside=False)
        net.server.kill()
        with pytest.raises(errors.Unavailable, match="no NATS server answers"):
            async with client(profile):
                pass
