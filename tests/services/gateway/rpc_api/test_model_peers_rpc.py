"""Workers may ask only about files that may be loaded."""

from types import SimpleNamespace

import pytest

from services.gateway.rpc_api import model_peers_rpc
from services.gateway.rpc_api.model_peers_rpc import ModelPeersRpc
from shared import errors
from shared.api.model_copies import FindModelPeers, LeaseBlocks
from shared.protocol.directory import Directory
from shared.rpc import RpcCall
from shared.types import Peer, Role
from tests.shared.identity.test_trust import certified

FILE, OTHER = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
WORKER = certified(Role.WORKER)


class Store:
    def __init__(self) -> None:
        self.loadable = {FILE}
        self.asked = 0

    async def is_loadable(self, digest: str) -> bool:
        self.asked += 1
        return digest in self.loadable


async def test_only_files_that_may_be_loaded_are_leased_and_the_database_is_asked_seldom() -> None:
    clock, store = 0.0, Store()
    node = SimpleNamespace(trust=certified(Role.GATEWAY), directory=Directory(lambda: 0.0), node_transports=SimpleNamespace(swarm=None))
    rpc = ModelPeersRpc(node, store, clock=lambda: clock)  # type: ignore[arg-type]
    call = RpcCall(Peer(Role.WORKER, WORKER.me.id, WORKER.me.id, "", ()), deadline=9, credential=None, idempotency_key=None)
    lease = LeaseBlocks(FILE, 1 << 20, had=b"\0")
    assert (await rpc.lease(lease, call)).blocks == (0,)
    assert (await rpc.find(FindModelPeers(FILE), call)).peers == ()
    assert store.asked == 1
    with pytest.raises(errors.NotFound):
        await rpc.lease(LeaseBlocks(OTHER, 1), call)
    with pytest.raises(errors.NotFound):
        await rpc.find(FindModelPeers(OTHER), call)
    store.loadable.clear()
    clock = model_peers_rpc._LOADABLE_SECONDS
    with pytest.raises(errors.NotFound):
        await rpc.lease(lease, call)
