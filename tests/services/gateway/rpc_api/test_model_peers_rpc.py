"""Workers may ask only about files that may be loaded."""

from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from services.gateway.rpc_api import model_peers_rpc
from services.gateway.rpc_api.model_peers_rpc import ModelPeersRpc
from shared import errors
from shared.api.model_copies import AdvisePull, FindModelPeers, LeaseBlocks, PulledFile
from shared.protocol.directory import Announcement, Directory
from shared.rpc import RpcCall
from shared.telemetry.metrics_registry import Metrics
from shared.types import ModelName, Peer, Role
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


def rpc_of(store: Store, clock: Callable[[], float] = lambda: 0.0) -> tuple[ModelPeersRpc, RpcCall]:
    nodes = Directory(lambda: 0.0)
    nodes.apply_announcement(Announcement(Role.WORKER, WORKER.me.id, "1", datetime.now(UTC)), "direct")
    node = SimpleNamespace(
        trust=certified(Role.GATEWAY), directory=nodes, node_transports=SimpleNamespace(swarm=None), metrics=Metrics("gateway")
    )
    call = RpcCall(Peer(Role.WORKER, WORKER.me.id, WORKER.me.id, "", ()), deadline=9, credential=None, idempotency_key=None)
    sources = {ModelName("qwen3"): "hf:org/qwen3"}
    return ModelPeersRpc(node, store, sources.get, clock=clock), call  # type: ignore[arg-type]


async def test_only_files_that_may_be_loaded_are_leased_and_the_database_is_asked_seldom() -> None:
    clock, store = 0.0, Store()
    rpc, call = rpc_of(store, lambda: clock)
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


async def test_files_of_public_sources_are_copied_only_for_deployments() -> None:
    rpc, call = rpc_of(Store())
    for model, source, is_deployed in (
        ("qwen3", "hf:org/other", False),
        ("private", "hf:org/qwen3", False),
        ("qwen3", "hf:org/qwen3", True),
    ):
        await rpc.advise(AdvisePull(ModelName(model), source, PulledFile(OTHER, 1, FILE, b"")), call)
        if is_deployed:
            assert (await rpc.lease(LeaseBlocks(OTHER, 1, had=b"\1"), call)).blocks == ()
        else:
            with pytest.raises(errors.NotFound):
                await rpc.lease(LeaseBlocks(OTHER, 1, had=b"\1"), call)
