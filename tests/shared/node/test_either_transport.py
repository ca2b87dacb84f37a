"""A node whose ticket names NATS, and Hyperswarm beside it: one of the two is enough."""

import asyncio

import msgspec
import pytest

from shared import errors
from shared.node import member, membership_file
from shared.node.client_node import ClientSettings
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
