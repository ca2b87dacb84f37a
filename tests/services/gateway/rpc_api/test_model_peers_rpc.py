"""Workers may ask only about files that may be loaded."""

from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from services.gateway.models import model_readers
from services.gateway.models.model_readers import ModelReaders
from services.gateway.models.registry_store import ModelReader
from services.gateway.rpc_api.model_peers_rpc import ModelPeersRpc
from shared import errors
from shared.api.model_copies import AdvisePull, FindModelPeers, LeaseBlocks, PulledFile
from shared.models.block_list import DIGEST_BYTES
from shared.models.manifest import MAX_BYTES
from shared.protocol.directory import Announcement, Directory
from shared.rpc import RpcCall
from shared.telemetry.metrics_registry import Metrics
from shared.types import ModelName, Peer, Role
from tests.services.gateway.fakes import FakeRpc
from tests.shared.identity.test_trust import certified

FILE, OTHER, LIST = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32, "sha256:" + "ef" * 32
SIZE = 1 << 20
WORKER = certified(Role.WORKER)


class Store:
    """Has one version of the mesh."""

    def __init__(self) -> None:
        self.loadable = {FILE}
        self.asked = 0

    async def may_read(self, reader: ModelReader, digest: str) -> bool | None:
        self.asked += 1
        return True if digest in self.loadable else None

    async def find_size(self, digest: str) -> int | None:
        """The registry's."""
        self.asked += 1
        return SIZE if digest in self.loadable else None


def rpc_of(store: Any, clock: Callable[[], float] = lambda: 0.0) -> tuple[ModelPeersRpc, RpcCall]:
    nodes = Directory(lambda: 0.0)
    nodes.apply_announcement(Announcement(Role.WORKER, WORKER.me.id, "1", datetime.now(UTC)), "direct")
    node: Any = SimpleNamespace(
        trust=certified(Role.GATEWAY), directory=nodes, node_transports=SimpleNamespace(swarm=None), metrics=Metrics("gateway")
    )
    call = RpcCall(Peer(Role.WORKER, WORKER.me.id, WORKER.me.id, "", ()), deadline=9, credential=None, idempotency_key=None)
    rpc: Any = FakeRpc()
    sources = {ModelName("qwen3"): "hf:org/qwen3"}
    return ModelPeersRpc(node, ModelReaders(store, rpc, clock), sources.get, store.find_size), call


async def test_only_files_that_may_be_loaded_are_leased_and_the_database_is_asked_seldom() -> None:
    clock, store = 0.0, Store()
    rpc, call = rpc_of(store, lambda: clock)
    lease = LeaseBlocks(FILE, SIZE, had=b"\0")
    assert (await rpc.lease(lease, call)).blocks == (0,)
    assert (await rpc.find(FindModelPeers(FILE), call)).peers == ()
    assert (await rpc.lease(lease, call)).blocks == ()
    assert store.asked == 2
    with pytest.raises(errors.NotFound):
        await rpc.lease(LeaseBlocks(OTHER, 1), call)
    with pytest.raises(errors.NotFound):
        await rpc.find(FindModelPeers(OTHER), call)
    store.loadable.clear()
    clock = model_readers.KEPT_SECONDS
    with pytest.raises(errors.NotFound):
        await rpc.lease(lease, call)


async def test_the_size_of_a_file_is_that_of_the_manifest_or_of_the_pull() -> None:
    rpc, call = rpc_of(Store())
    for size in (SIZE - 1, SIZE + 1, MAX_BYTES):
        with pytest.raises(errors.BadRequest, match="another size"):
            await rpc.lease(LeaseBlocks(FILE, size, had=b"\0"), call)
    pulled = PulledFile(OTHER, 5 * SIZE, LIST, b"")
    await rpc.advise(AdvisePull(ModelName("qwen3"), "hf:org/qwen3", pulled), call)
    for digest, right in ((OTHER, 5 * SIZE), (LIST, 5 * DIGEST_BYTES)):
        assert (await rpc.lease(LeaseBlocks(digest, right, had=b"\0"), call)).blocks == (0,)
        with pytest.raises(errors.BadRequest, match="another size"):
            await rpc.lease(LeaseBlocks(digest, right + 1, had=b"\0"), call)


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
